//! The manifest: which objects of a bucket count, and who may say so next.
//!
//! Manifests are numbered without a gap, and each is made by a conditional create: the one who
//! makes the next number has the bucket. Names count down, so that the newest comes first in a
//! listing.
//!
//! Invariants:
//! 1. What a manifest names is in the bucket, whole, before the manifest is.
//! 2. Per shard it names a checkpoint, or none, and every segment of the log behind that, without a
//!    gap: a prefix of the shard's log.
//! 3. Decoding any bytes ends in a manifest or an error, and allocates no more than their length.

use crate::log::checksum::{StoreId, crc32c};
use crate::types::{Epoch, Lsn, NUMBER_MAX, NodeId, SegmentId, ShardId};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: [u8; 8] = *b"RINGMAN\0";
/// Version of the manifest's format.
pub(crate) const VERSION: u32 = 1;

/// What the names of manifests begin with.
pub(crate) const MANIFEST_PREFIX: &str = "m-";

/// A segment's object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Object {
    pub(crate) segment: SegmentId,
    pub(crate) epoch: Epoch,
    /// Its first batch, and the one behind its last.
    pub(crate) first: Lsn,
    pub(crate) next: Lsn,
    /// Pages before its footer.
    pub(crate) pages: u32,
}

/// A checkpoint's object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Base {
    pub(crate) sequence: u64,
    /// The opening that uploaded it.
    pub(crate) epoch: Epoch,
    pub(crate) bytes: u64,
}

/// What counts of one shard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ShardState {
    /// The batch behind the last one that counts.
    pub(crate) next: Lsn,
    pub(crate) base: Option<Base>,
    /// The segments behind the checkpoint, oldest first.
    pub(crate) tail: Vec<Object>,
}

impl ShardState {
    /// Nothing yet.
    pub(crate) fn empty() -> ShardState {
        ShardState {
            next: Lsn(1),
            base: None,
            tail: Vec::new(),
        }
    }
}

/// What counts of a store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Manifest {
    pub(crate) number: u64,
    pub(crate) store: StoreId,
    pub(crate) node: NodeId,
    /// The opening that made it.
    pub(crate) epoch: Epoch,
    /// Random, once for each opening: tells a manifest of ours from everybody else's.
    pub(crate) writer: u64,
    /// The manifest by which that opening took the bucket, and fenced whoever had it before.
    pub(crate) claim: u64,
    pub(crate) segment_bytes: u64,
    pub(crate) shards: Vec<ShardState>,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct Head {
    magic: [u8; 8],
    version: U32,
    sum: U32,
    number: U64,
    store: StoreId,
    node: NodeId,
    epoch: U64,
    writer: U64,
    claim: U64,
    segment_bytes: U64,
    shards: U32,
    reserved: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct ShardHead {
    next: U64,
    /// 0: there is no checkpoint.
    sequence: U64,
    epoch: U64,
    bytes: U64,
    tail: U32,
    reserved: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawObject {
    segment: U64,
    epoch: U64,
    first: U64,
    next: U64,
    pages: U32,
    reserved: U32,
}

/// Name of a manifest's object.
pub(crate) fn manifest_name(number: u64) -> String {
    format!("{MANIFEST_PREFIX}{:016x}", u64::MAX - number)
}

/// The number in a manifest's name.
pub(crate) fn parse_manifest_name(name: &str) -> Option<u64> {
    let digits = name.strip_prefix(MANIFEST_PREFIX)?;
    let number = u64::MAX - u64::from_str_radix(digits, 16).ok()?;
    (manifest_name(number) == name && number < NUMBER_MAX).then_some(number)
}

/// What the names of a shard's segments begin with.
pub(crate) fn segment_prefix(shard: ShardId) -> String {
    format!("d-{:04x}-", shard.0)
}

/// Name of a segment's object.
pub(crate) fn segment_name(shard: ShardId, segment: SegmentId, epoch: Epoch) -> String {
    numbered(&segment_prefix(shard), segment.0, epoch)
}

/// The segment and the epoch in the name of a segment's object.
pub(crate) fn parse_segment_name(shard: ShardId, name: &str) -> Option<(SegmentId, Epoch)> {
    let (segment, epoch) = parse_numbered(&segment_prefix(shard), name)?;
    Some((SegmentId(segment), epoch))
}

/// What the names of a shard's checkpoints begin with.
pub(crate) fn base_prefix(shard: ShardId) -> String {
    format!("c-{:04x}-", shard.0)
}

/// Name of a checkpoint's object.
pub(crate) fn base_name(shard: ShardId, sequence: u64, epoch: Epoch) -> String {
    numbered(&base_prefix(shard), sequence, epoch)
}

/// The sequence and the epoch in the name of a checkpoint's object.
pub(crate) fn parse_base_name(shard: ShardId, name: &str) -> Option<(u64, Epoch)> {
    parse_numbered(&base_prefix(shard), name)
}

fn numbered(prefix: &str, number: u64, epoch: Epoch) -> String {
    format!("{prefix}{number:016x}-{:016x}", epoch.0)
}

/// The number and the epoch in a name that is written as `numbered` does.
fn parse_numbered(prefix: &str, name: &str) -> Option<(u64, Epoch)> {
    let (number, epoch) = name.strip_prefix(prefix)?.split_once('-')?;
    let parse = |digits| u64::from_str_radix(digits, 16).ok();
    let (number, epoch) = (parse(number)?, Epoch(parse(epoch)?));
    (numbered(prefix, number, epoch) == name).then_some((number, epoch))
}

impl Manifest {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut head = Head {
            magic: MAGIC,
            version: VERSION.into(),
            sum: 0.into(),
            number: self.number.into(),
            store: self.store,
            node: self.node,
            epoch: self.epoch.0.into(),
            writer: self.writer.into(),
            claim: self.claim.into(),
            segment_bytes: self.segment_bytes.into(),
            shards: (self.shards.len() as u32).into(),
            reserved: 0.into(),
        };
        let mut bytes = head.as_bytes().to_vec();
        for shard in &self.shards {
            let base = shard
                .base
                .map(|base| (base.sequence, base.epoch.0, base.bytes));
            let (sequence, epoch, length) = base.unwrap_or((0, 0, 0));
            let raw = ShardHead {
                next: shard.next.0.into(),
                sequence: sequence.into(),
                epoch: epoch.into(),
                bytes: length.into(),
                tail: (shard.tail.len() as u32).into(),
                reserved: 0.into(),
            };
            bytes.extend_from_slice(raw.as_bytes());
            for object in &shard.tail {
                let raw = RawObject {
                    segment: object.segment.0.into(),
                    epoch: object.epoch.0.into(),
                    first: object.first.0.into(),
                    next: object.next.0.into(),
                    pages: object.pages.into(),
                    reserved: 0.into(),
                };
                bytes.extend_from_slice(raw.as_bytes());
            }
        }
        head.sum = crc32c(&bytes).into();
        bytes[..size_of::<Head>()].copy_from_slice(head.as_bytes());
        bytes
    }

    /// Reads and checks a manifest, which may be any bytes; why it is none.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Manifest, &'static str> {
        let cut = "a manifest is cut short";
        let (mut head, mut rest) = Head::read_from_prefix(bytes).map_err(|_| cut)?;
        if head.magic != MAGIC {
            return Err("not a manifest");
        }
        let sum = head.sum.get();
        head.sum = 0.into();
        let mut whole = bytes.to_vec();
        whole[..size_of::<Head>()].copy_from_slice(head.as_bytes());
        if crc32c(&whole) != sum {
            return Err("a manifest fails its checksum");
        }
        if head.version.get() != VERSION {
            return Err("a manifest is of another version");
        }
        let mut shards = Vec::new();
        for _ in 0..head.shards.get() {
            let (raw, behind) = ShardHead::read_from_prefix(rest).map_err(|_| cut)?;
            rest = behind;
            let mut tail = Vec::new();
            for _ in 0..raw.tail.get() {
                let (object, behind) = RawObject::read_from_prefix(rest).map_err(|_| cut)?;
                rest = behind;
                tail.push(
                    object
                        .parse()
                        .ok_or("a manifest names an impossible segment")?,
                );
            }
            shards.push(
                raw.parse(tail)
                    .ok_or("a manifest has an impossible shard")?,
            );
        }
        let numbers = [head.number.get(), head.epoch.get(), head.claim.get()];
        match numbers.iter().all(|number| *number < NUMBER_MAX) && rest.is_empty() {
            true => Ok(Manifest {
                number: head.number.get(),
                store: head.store,
                node: head.node,
                epoch: Epoch(head.epoch.get()),
                writer: head.writer.get(),
                claim: head.claim.get(),
                segment_bytes: head.segment_bytes.get(),
                shards,
            }),
            false => Err("a manifest has impossible numbers"),
        }
    }
}

impl ShardHead {
    fn parse(&self, tail: Vec<Object>) -> Option<ShardState> {
        let numbers = [self.next, self.sequence, self.epoch].map(U64::get);
        let sane = numbers.iter().all(|number| *number < NUMBER_MAX);
        let base = (self.sequence.get() > 0).then(|| Base {
            sequence: self.sequence.get(),
            epoch: Epoch(self.epoch.get()),
            bytes: self.bytes.get(),
        });
        sane.then_some(ShardState {
            next: Lsn(self.next.get()),
            base,
            tail,
        })
    }
}

impl RawObject {
    fn parse(&self) -> Option<Object> {
        let segment = SegmentId(self.segment.get());
        let numbers = [self.epoch, self.first, self.next].map(U64::get);
        let sane = segment.is_valid() && numbers.iter().all(|number| *number < NUMBER_MAX);
        sane.then_some(Object {
            segment,
            epoch: Epoch(self.epoch.get()),
            first: Lsn(self.first.get()),
            next: Lsn(self.next.get()),
            pages: self.pages.get(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let object = Object {
            segment: SegmentId(7),
            epoch: Epoch(3),
            first: Lsn(40),
            next: Lsn(44),
            pages: 12,
        };
        let base = Base {
            sequence: 9,
            epoch: Epoch(2),
            bytes: 4096,
        };
        Manifest {
            number: 5,
            store: [1; 16],
            node: [2; 16],
            epoch: Epoch(3),
            writer: 77,
            claim: 4,
            segment_bytes: 1 << 20,
            shards: vec![
                ShardState::empty(),
                ShardState {
                    next: Lsn(44),
                    base: Some(base),
                    tail: vec![object],
                },
            ],
        }
    }

    #[test]
    fn reads_back_what_it_wrote_and_nothing_else() {
        let bytes = manifest().encode();
        assert_eq!(Manifest::decode(&bytes), Ok(manifest()));
        for len in 0..bytes.len() {
            assert!(Manifest::decode(&bytes[..len]).is_err(), "cut to {len}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Manifest::decode(&bytes).is_err(), "bit {bit} flipped");
        }
    }

    #[test]
    fn names_are_told_apart_and_the_newest_comes_first() {
        assert!(manifest_name(2) < manifest_name(1));
        assert_eq!(parse_manifest_name(&manifest_name(12)), Some(12));
        assert_eq!(parse_manifest_name("m-0"), None);
        let name = segment_name(ShardId(3), SegmentId(10), Epoch(2));
        let parsed = parse_segment_name(ShardId(3), &name);
        assert_eq!(parsed, Some((SegmentId(10), Epoch(2))));
        assert_eq!(parse_segment_name(ShardId(4), &name), None);
    }
}
