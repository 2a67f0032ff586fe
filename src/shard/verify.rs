//! Verification: every live byte is read from the device and compared with its checksum.
//!
//! Invariant: bytes that several payloads share are read once, and count for each that has them
//! where they are bad.

use super::Shard;
use super::read::{Interest, Source, Sources};
use crate::error::{ErrorKind, Result};
use crate::io::Driver;
use crate::map::{Found, Map};
use crate::payload_id::PayloadId;
use crate::stats::{Extent, ExtentKind, VerifyReport};
use crate::types::{Location, PAGE, PAYLOAD_BYTES_MAX};
use bytes::{Bytes, BytesMut};
use std::collections::BTreeMap;

/// Bytes that are checked at once: what one device read takes.
const PIECE_BYTES: u64 = 1 << 20;

/// What has been looked at, by where it begins: where it ends, and whether it was good. A place in
/// the log is never given to other bytes, so what was found stays true.
#[derive(Default)]
struct Seen(BTreeMap<Location, (Location, bool)>);

impl Seen {
    /// What was found at a place, and of how many bytes from there; or how many have not been
    /// looked at, `len` at most.
    fn at(&self, at: Location, len: u32) -> (Option<bool>, u32) {
        let left = |end: Location| len.min(end.offset() - at.offset());
        let before = self.0.range(..=at).next_back();
        if let Some((_, &(end, good))) = before
            && end > at
        {
            return (Some(good), left(end));
        }
        let behind = self.0.range(at..).next().map(|(begin, _)| *begin);
        let near = behind.filter(|begin| begin.segment() == at.segment());
        (None, near.map_or(len, left))
    }

    fn note(&mut self, at: Location, len: u32, good: bool) {
        let end = at.advance(len);
        // Ranges grow along the log, as payloads do.
        if let Some((_, last)) = self.0.range_mut(..at).next_back()
            && *last == (at, good)
        {
            last.0 = end;
            return;
        }
        self.0.insert(at, (end, good));
    }
}

impl<D: Driver> Shard<D> {
    /// Reads and checks everything that payloads refer to.
    pub(super) async fn verify(&self) -> Result<VerifyReport> {
        let (mut report, mut seen) = (VerifyReport::default(), Seen::default());
        let mut after: Option<PayloadId> = None;
        while let Some(id) = self.list(after.as_ref(), 1).pop() {
            self.verify_payload(&id, &mut seen, &mut report).await?;
            report.payloads += 1;
            after = Some(id);
        }
        self.verify_objects(&mut report).await?;
        Ok(report)
    }

    async fn verify_payload(
        &self,
        id: &PayloadId,
        seen: &mut Seen,
        report: &mut VerifyReport,
    ) -> Result<()> {
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
            let (found, len) = seen.at(at, len);
            let good = match found {
                Some(good) => good,
                None => {
                    let to_page_end = PAGE as u32 - at.offset() % PAGE as u32;
                    let is_page = len <= to_page_end;
                    let (good, repaired) = self.check_place(at, len, is_page).await?;
                    report.bytes_repaired += repaired;
                    if !good && !is_page {
                        careful_until = careful_until.max(start + u64::from(len));
                        (offset, narrow) = (start, u64::from(to_page_end));
                        continue;
                    }
                    seen.note(at, len, good);
                    report.bytes_checked += if good { u64::from(len) } else { 0 };
                    good
                }
            };
            if !good {
                let extent = Extent {
                    offset: start,
                    len: u64::from(len),
                    kind: ExtentKind::Local,
                };
                report.corrupt.push((id.clone(), extent));
            }
            (offset, narrow) = (start + u64::from(len), PAGE as u64);
        }
        Ok(())
    }

    /// Whether the bytes of a place are good where they are read first; or, with `mends`, can be
    /// had at all, and how many have been mended.
    async fn check_place(&self, at: Location, len: u32, mends: bool) -> Result<(bool, u64)> {
        match self.try_place(at, len, mends).await {
            Ok(mended) => Ok((true, mended)),
            Err(error) if error.kind() == ErrorKind::Corrupt => Ok((false, 0)),
            Err(error) => Err(error),
        }
    }

    async fn try_place(&self, at: Location, len: u32, mends: bool) -> Result<u64> {
        let mut sources = Sources::new();
        self.0
            .state
            .borrow()
            .located(at, len, Interest::Passing, &mut sources)?;
        let mut mended = 0;
        for source in sources {
            let Source::Device(part) = source else {
                continue;
            };
            if !mends && part.held.file().is_some() {
                self.read_local(&part).await?;
                continue;
            }
            if let (_, Some(bad)) = self.read_tiers(part).await? {
                match self.mend(&bad).await {
                    Ok(()) => mended += u64::from(bad.len),
                    Err(error) => {
                        tracing::warn!(segment = bad.held.id.0, %error, "bad bytes stay");
                    }
                }
            }
        }
        Ok(mended)
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
                Source::Memory(bytes, _) => bytes,
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
