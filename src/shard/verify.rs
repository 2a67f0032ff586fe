//! Verification: every live byte is read from the device and compared with its checksum.

use super::Shard;
use super::read::{Source, Sources};
use crate::error::{ErrorKind, Result};
use crate::io::Driver;
use crate::map::{Found, Map};
use crate::payload_id::PayloadId;
use crate::stats::{Extent, ExtentKind, VerifyReport};
use crate::types::{Location, PAGE, PAYLOAD_BYTES_MAX};
use bytes::{Bytes, BytesMut};

/// Bytes that are checked at once: what one device read takes.
const PIECE_BYTES: u64 = 1 << 20;

impl<D: Driver> Shard<D> {
    /// Reads and checks everything that payloads refer to.
    pub(super) async fn verify(&self) -> Result<VerifyReport> {
        let mut report = VerifyReport::default();
        let mut after: Option<PayloadId> = None;
        while let Some(id) = self.list(after.as_ref(), 1).pop() {
            self.verify_payload(&id, &mut report).await?;
            report.payloads += 1;
            after = Some(id);
        }
        Ok(report)
    }

    async fn verify_payload(&self, id: &PayloadId, report: &mut VerifyReport) -> Result<()> {
        // Where a piece is bad, its pages are looked at one by one.
        let (mut offset, mut careful_until, mut narrow) = (0, 0, PAGE as u64);
        let largest = |offset, careful_until, narrow| match offset < careful_until {
            true => narrow,
            false => PIECE_BYTES,
        };
        // Piece by piece, each looked up anew: cleaning may move what was not yet read.
        while let Some((start, len, at)) =
            self.next_data(id, offset, largest(offset, careful_until, narrow))
        {
            let mut sources = Sources::new();
            let located = self.0.state.borrow().located(at, len, &mut sources);
            let result = match located {
                Ok(()) => self.join(sources).await.map(|_| ()),
                Err(error) => Err(error),
            };
            match result {
                Ok(()) => report.bytes_checked += u64::from(len),
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    let to_page_end = PAGE as u32 - at.offset() % PAGE as u32;
                    if len > to_page_end {
                        careful_until = careful_until.max(start + u64::from(len));
                        (offset, narrow) = (start, u64::from(to_page_end));
                        continue;
                    }
                    let extent = Extent {
                        offset: start,
                        len: u64::from(len),
                        kind: ExtentKind::Local,
                    };
                    report.corrupt.push((id.clone(), extent));
                }
                Err(error) => return Err(error),
            }
            (offset, narrow) = (start + u64::from(len), PAGE as u64);
        }
        Ok(())
    }

    /// The first data of a payload at or behind an offset, as much as one device read takes.
    fn next_data(&self, id: &PayloadId, offset: u64, largest: u64) -> Option<(u64, u32, Location)> {
        let state = self.0.state.borrow();
        let payload = state.map.find(id)?;
        let start = payload.extents.first_at_or_after(offset)?;
        use crate::map::tree::Entry;
        let begin = start.start().max(offset);
        let len = (start.end() - begin)
            .min(largest)
            .min(PAYLOAD_BYTES_MAX - begin);
        let piece = Map::pieces(payload, begin, len).into_iter().next()?;
        match piece.found {
            Found::At(at) => Some((piece.offset, piece.len as u32, at)),
            Found::Zero | Found::Absent => None,
        }
    }

    /// The bytes of located sources as one piece.
    pub(super) async fn join(&self, sources: Sources) -> Result<Bytes> {
        let mut joined = BytesMut::new();
        let mut single = Bytes::new();
        let count = sources.len();
        for source in sources {
            let bytes = match source {
                Source::Memory(bytes) => bytes,
                Source::Device(part) => self.read_device(part).await?,
                Source::Zeros(_) | Source::Absent(..) => continue,
            };
            match count {
                1 => single = bytes,
                _ => joined.extend_from_slice(&bytes),
            }
        }
        Ok(if count == 1 { single } else { joined.freeze() })
    }
}
