//! Reads: a plan from the map, then bytes from memory and from the device, checked.
//!
//! Invariants:
//! 1. The plan is made in one step, so a read sees one state of the map. Bytes in memory are taken
//!    in that step; segments to be read are held, so that their files are not used again meanwhile.
//! 2. Every page from the device is compared with its sum before a byte of it is handed out.

use super::request::{Layer, LayerPart, LayerParts, zeros};
use super::{Shard, State, pages_of};
use crate::error::{Error, ErrorKind, Result};
use crate::io::{Driver, DriverFile};
use crate::log::segment::{BatchHead, Footer, is_good_page};
use crate::map::{Found, Map, Piece};
use crate::marks::{mark, planted};
use crate::payload_id::PayloadId;
use crate::residency::Held;
use crate::stats::Stage;
use crate::types::{Location, PAGE, page_ceil};
use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use smallvec::{SmallVec, smallvec};
use std::ops::{Deref, Range};
use std::rc::Rc;

/// Bytes that one device read asks for at most: the largest request that devices take whole.
const DEVICE_READ_MAX: u32 = 1 << 20;

/// Device reads of one request in flight at once.
const READS_MAX: usize = 64;

/// Longest footer that is believed: what describes the largest segment, filled with the smallest
/// batches.
const FOOTER_BYTES_MAX: usize = 512 << 20;

/// Where a part of a read comes from.
pub(super) enum Source {
    Zeros(u64),
    Absent(u64, u64),
    /// Bytes at hand, and where in the log they are, or will be.
    Memory(Bytes, Location),
    Device(DevicePart),
}

impl Source {
    /// Bytes that are read from the device for it, checksums at hand.
    pub(super) fn device_bytes(&self) -> u64 {
        match self {
            Source::Device(part) => {
                let (_, count) = pages_of(part.at.offset(), part.len);
                u64::from(count) * PAGE as u64
            }
            Source::Zeros(_) | Source::Absent(..) | Source::Memory(..) => 0,
        }
    }

    /// Nobody waits for it.
    pub(super) fn read_ahead(&mut self) {
        if let Source::Device(part) = self {
            part.interest = Interest::Ahead;
        }
    }
}

/// The sources of a read, in order; most reads have one, which needs no allocation.
pub(super) type Sources = SmallVec<[Source; 1]>;

/// Whether who reads may come again, so that what is fetched for it is worth keeping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Interest {
    Lasting,
    /// The same, but nobody waits for it yet.
    Ahead,
    Passing,
    /// The same, and nobody wants what is around it.
    Alone,
}

/// Bytes in a segment on the device, or in the remote.
pub(super) struct DevicePart {
    pub(super) held: Rc<Held>,
    pub(super) at: Location,
    pub(super) len: u32,
    pub(super) interest: Interest,
    /// The sums of its pages, if they are at hand.
    sums: Option<Sums>,
}

/// The sums of some pages.
#[derive(Clone)]
enum Sums {
    /// In the table of a sealed segment.
    Sealed(Rc<[u32]>, Range<usize>),
    /// Of a segment that still grows.
    Copied(Vec<u32>),
}

impl Sums {
    fn sealed(table: Rc<[u32]>, pages: Range<usize>) -> Option<Sums> {
        (pages.end <= table.len()).then_some(Sums::Sealed(table, pages))
    }

    /// Those of some of the pages.
    fn part(&self, pages: Range<usize>) -> Sums {
        match self {
            Sums::Sealed(table, own) => {
                let pages = own.start + pages.start..own.start + pages.end;
                Sums::Sealed(table.clone(), pages)
            }
            Sums::Copied(sums) => Sums::Copied(sums[pages].to_vec()),
        }
    }
}

impl Deref for Sums {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        match self {
            Sums::Sealed(table, pages) => &table[pages.clone()],
            Sums::Copied(sums) => sums,
        }
    }
}

impl DevicePart {
    /// `[start, start + len)` of it.
    pub(super) fn part(&self, start: u32, len: u32) -> DevicePart {
        assert!(start + len <= self.len, "a part of it");
        let at = self.at.advance(start);
        let (own, _) = pages_of(self.at.offset(), self.len);
        let (first, count) = pages_of(at.offset(), len);
        let range = (first - own) as usize..(first - own + count) as usize;
        DevicePart {
            held: self.held.clone(),
            at,
            len,
            interest: self.interest,
            sums: self.sums.as_ref().map(|sums| sums.part(range)),
        }
    }
}

impl State {
    /// Where `[offset, offset + len)` of a payload comes from, by parts.
    fn sources(&self, id: &PayloadId, offset: u64, len: u64) -> Result<Sources> {
        let payload = self.map.find(id).ok_or_else(Error::not_found)?;
        self.sources_of(&Map::pieces(payload, offset, len))
    }

    /// Where pieces of a payload come from, by parts.
    pub(super) fn sources_of(&self, pieces: &[Piece]) -> Result<Sources> {
        let mut sources = Sources::new();
        for piece in pieces {
            match piece.found {
                Found::Zero => sources.push(Source::Zeros(piece.len)),
                Found::Absent => sources.push(Source::Absent(piece.offset, piece.len)),
                Found::At(at) => {
                    self.located(at, piece.len as u32, Interest::Lasting, &mut sources)?;
                }
            }
        }
        Ok(sources)
    }

    /// Where the bytes at a place come from: memory, or device reads of bounded size.
    pub(super) fn located(
        &self,
        at: Location,
        len: u32,
        interest: Interest,
        out: &mut Sources,
    ) -> Result<()> {
        if let Some(bytes) = self
            .log
            .read_open(at, len)
            .or_else(|| self.tail.read(at, len))
        {
            out.push(Source::Memory(bytes, at));
            return Ok(());
        }
        let lost = || {
            Error::corrupt(format!(
                "the segment of these bytes is missing: segment={} len={len}",
                at.segment().0
            ))
        };
        let held = match self.segments.find(at.segment()) {
            Some(held) => held,
            None if planted("zeros_for_missing") => {
                out.push(Source::Zeros(u64::from(len)));
                return Ok(());
            }
            None => return Err(lost()),
        };
        let mut done = 0;
        while done < len {
            let at = at.advance(done);
            let to_boundary = DEVICE_READ_MAX - at.offset() % PAGE as u32;
            let part = to_boundary.min(len - done);
            let part = match held.file() {
                Some(_) => part,
                None => self.kept.alike(at, part).1,
            };
            let (first, count) = pages_of(at.offset(), part);
            let range = first as usize..(first + count) as usize;
            let sums = match held.is_sealed() {
                true => held.sums().and_then(|table| Sums::sealed(table, range)),
                false => {
                    let sums = self.log.open_sums().get(range);
                    sums.map(|sums| Sums::Copied(sums.to_vec()))
                }
            };
            out.push(Source::Device(DevicePart {
                held: held.clone(),
                at,
                len: part,
                interest,
                sums,
            }));
            done += part;
        }
        Ok(())
    }
}

impl<D: Driver> Shard<D> {
    /// What this payload alone says of a range, for a copy-on-write read.
    pub(super) async fn read_layer(&self, id: &PayloadId, offset: u64, len: u64) -> Result<Layer> {
        let (size, cut, sources) = {
            let state = self.0.state.borrow();
            let Some(payload) = state.map.find(id) else {
                let parts = smallvec![LayerPart::Absent(offset, len)];
                return Ok(Layer {
                    size: None,
                    cut: u64::MAX,
                    parts,
                });
            };
            (payload.size, payload.cut, state.sources(id, offset, len)?)
        };
        let parts = self.gather(sources).await?;
        Ok(Layer {
            size: Some(size),
            cut,
            parts,
        })
    }

    /// Reads what has to be read, all of it at once, and puts the parts in order.
    pub(super) async fn gather(&self, sources: Sources) -> Result<LayerParts> {
        let mut parts = LayerParts::with_capacity(sources.len());
        let mut from_device: SmallVec<[(usize, DevicePart); 1]> = SmallVec::new();
        for source in sources {
            match source {
                Source::Zeros(len) => parts.extend(zeros(len).map(LayerPart::Bytes)),
                Source::Absent(offset, len) => parts.push(LayerPart::Absent(offset, len)),
                Source::Memory(bytes, _) => parts.push(LayerPart::Bytes(bytes)),
                Source::Device(part) => {
                    from_device.push((parts.len(), part));
                    parts.push(LayerPart::Bytes(Bytes::new()));
                }
            }
        }
        if let [(index, _)] = from_device[..] {
            let (_, part) = from_device.pop().expect("it has one");
            parts[index] = LayerPart::Bytes(self.read_device(part).await?);
            return Ok(parts);
        }
        let mut waiting = from_device.into_iter();
        let mut reads = FuturesUnordered::new();
        let begin = |(index, part)| async move { (index, self.read_device(part).await) };
        reads.extend(waiting.by_ref().take(READS_MAX).map(begin));
        while let Some((index, result)) = reads.next().await {
            parts[index] = LayerPart::Bytes(result?);
            reads.extend(waiting.next().map(begin));
        }
        Ok(parts)
    }

    /// Reads and checks one part, from the local disk, or else from the remote. What is bad here is
    /// mended in the background.
    pub(super) async fn read_device(&self, part: DevicePart) -> Result<Bytes> {
        let (bytes, bad) = self.read_tiers(part).await?;
        if let Some(bad) = bad {
            let shard = self.clone();
            self.0.driver.spawn(async move {
                if let Err(error) = shard.mend(&bad).await {
                    tracing::warn!(segment = bad.held.id.0, %error, "bad bytes stay");
                }
            });
        }
        Ok(bytes)
    }

    /// The same; gives the part back if it is bad here.
    pub(super) async fn read_tiers(&self, part: DevicePart) -> Result<(Bytes, Option<DevicePart>)> {
        part.held.used.set(self.pass());
        if part.held.file().is_none() {
            let (is_kept, _) = self.0.state.borrow().is_here(part.at, part.len);
            if is_kept && let Some(bytes) = self.read_kept(&part).await {
                return Ok((bytes, None));
            }
            return Ok((self.read_remote(&part).await?, None));
        }
        let error = match self.read_local(&part).await {
            Ok(bytes) => return Ok((bytes, None)),
            Err(error) => error,
        };
        if error.kind() != ErrorKind::Corrupt || !part.held.is_uploaded() {
            return Err(error);
        }
        let bytes = match self.read_remote(&part).await {
            Ok(bytes) => bytes,
            // Whether they are lost nobody knows before the remote answers.
            Err(away) if away.kind() == ErrorKind::Unavailable => return Err(away),
            Err(_) => return Err(error),
        };
        mark("read served by the other tier");
        Ok((bytes, Some(part)))
    }

    /// Reads and checks one part from the local disk.
    pub(super) async fn read_local(&self, part: &DevicePart) -> Result<Bytes> {
        let (first, count) = pages_of(part.at.offset(), part.len);
        let loaded = match part.sums {
            Some(_) => None,
            None => {
                // It is rare, and large: in a box, it makes no read larger that does not need it.
                let table = Box::pin(self.load_sums(&part.held)).await?;
                let pages = first as usize..(first + count) as usize;
                let sums = Sums::sealed(table, pages);
                Some(sums.ok_or_else(|| part_error("lies behind", &part.held))?)
            }
        };
        let sums = part.sums.as_ref().or(loaded.as_ref());
        let sums = sums.expect("they are at hand, or were loaded");
        let buf = self.read_pages(&part.held, first, count).await?;
        for ((page, sum), index) in buf.chunks_exact(PAGE).zip(sums.iter()).zip(first..) {
            if part.held.identity.sum(index, page) != *sum && !planted("skip_page_checksum") {
                mark("page failed its checksum");
                self.state().stats.checksum_failures += 1;
                return Err(part_error("failed their checksum in", &part.held));
            }
        }
        let start = part.at.offset() as usize - first as usize * PAGE;
        Ok(buf.freeze().slice(start..start + part.len as usize))
    }

    /// Reads pages of a sealed segment and compares them with its sums.
    pub(super) async fn read_checked(
        &self,
        held: &Held,
        first: u32,
        count: u32,
        sums: &[u32],
    ) -> Result<Bytes> {
        let buf = self.read_pages(held, first, count).await?;
        for (page, index) in buf.chunks_exact(PAGE).zip(first..) {
            if !is_good_page(held.identity, index, page, sums) {
                self.state().stats.checksum_failures += 1;
                return Err(part_error("failed their checksum in", held));
            }
        }
        Ok(buf.freeze())
    }

    pub(super) async fn read_pages(
        &self,
        held: &Held,
        first: u32,
        count: u32,
    ) -> Result<crate::buf::AlignedBuf> {
        let from = self.pass();
        let buf = self.0.driver.pool().take(count as usize * PAGE);
        let result = match self.0.files.open_segment(held).await {
            Ok(file) => file.read(u64::from(first) * PAGE as u64, buf).await,
            Err(error) => Err(error),
        };
        self.note_stage(Stage::DeviceRead, from);
        self.state().stats.device_read_bytes += u64::from(count) * PAGE as u64;
        result.map_err(|error| {
            let message = format!("bytes cannot be read from segment={}", held.id.0);
            Error::with_source(ErrorKind::Corrupt, message, error)
        })
    }

    /// The sums of a sealed segment, from its footer.
    pub(super) async fn load_sums(&self, held: &Rc<Held>) -> Result<Rc<[u32]>> {
        if let Some(sums) = held.sums() {
            return Ok(sums);
        }
        if held.file().is_none() {
            let sums = match self.kept_sums(held).await {
                Some(sums) => sums,
                None => self.fetch_sums(held).await?,
            };
            self.state().segments.keep_sums(held, sums.clone());
            return Ok(sums);
        }
        let sums: Rc<[u32]> = match self.read_footer(held).await {
            Ok(footer) => footer.sums.into(),
            Err(error) => {
                tracing::warn!(segment = held.id.0, %error, "a bad footer");
                let fetched = match held.is_uploaded() {
                    true => self.fetch_sums(held).await.ok(),
                    false => None,
                };
                match fetched {
                    Some(sums) => sums,
                    None => self.sums_of_batches(held).await?.into(),
                }
            }
        };
        self.0
            .state
            .borrow_mut()
            .segments
            .keep_sums(held, sums.clone());
        Ok(sums)
    }

    /// The sums of a sealed segment whose footer is bad, from the heads of its batches.
    ///
    /// Pages of a batch whose head is bad, too, are left without a sum, and fail when they are
    /// read.
    async fn sums_of_batches(&self, held: &Held) -> Result<Vec<u32>> {
        mark("sums taken from batches");
        self.0.state.borrow_mut().stats.checksum_failures += 1;
        let pages = held.pages.get() as usize;
        let mut sums = vec![0; 1];
        while sums.len() < pages {
            let index = sums.len() as u32;
            let page = self.read_pages(held, index, 1).await?;
            match BatchHead::parse(held.identity, index, &page) {
                Ok((head, _)) => {
                    sums.push(held.identity.sum(index, &page));
                    sums.extend(head.data_sums(&page));
                }
                Err(_) => sums.push(0),
            }
        }
        sums.truncate(pages);
        Ok(sums)
    }

    /// A sealed segment's footer, checked.
    pub(super) async fn read_footer(&self, held: &Held) -> Result<Footer> {
        let page = held.pages.get();
        let first = self.read_pages(held, page, 1).await?;
        let bad = || part_error("have no readable footer in", held);
        let len = Footer::announced_len(&first).filter(|len| *len <= FOOTER_BYTES_MAX);
        let len = page_ceil(len.ok_or_else(bad)?);
        let segment_bytes = self.0.params.segment_bytes() as usize;
        if page as usize * PAGE + len > segment_bytes {
            return Err(bad());
        }
        let whole = match len > PAGE {
            true => self.read_pages(held, page, (len / PAGE) as u32).await?,
            false => first,
        };
        Footer::parse(held.identity, page, &whole).map_err(|_| bad())
    }
}

fn part_error(what: &str, held: &Held) -> Error {
    let file = held.file();
    Error::corrupt(format!("bytes {what} segment={} file={file:?}", held.id.0))
}
