//! The checkpoint codec: a shard's map and segment table as a file of chunks, and back.
//!
//! A checkpoint is a stream of [`Item`]s in chunks of up to 256 KiB, each with a checksum bound to
//! store, shard, checkpoint and position. Trees keep their shape: a node stands once, however many
//! clones share it, and refers to its children by their position in the stream.
//!
//! Invariants:
//! 1. A chunk is believed only as a whole, after its checksum.
//! 2. A checkpoint counts only if every chunk up to the one marked last is good.
//! 3. Decoding any bytes ends in items or an error, and allocates no more than the chunk's length.

use super::checksum::{Identity, StoreId};
use super::record::Malformed;
use super::segment::FORMAT_VERSION;
use crate::payload_id::PayloadId;
use crate::retention::RetentionPolicy;
use crate::types::{
    Epoch, Generation, Location, Lsn, PAGE, PayloadNo, SegmentId, ShardId, page_ceil,
};
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: [u8; 8] = *b"RINGCKP\0";

/// Bytes of a chunk at most: large enough to stream at the device's speed.
pub(crate) const CHUNK_BYTES_MAX: usize = 256 << 10;

/// Stands in for the epoch in the identity of a checkpoint, so that it never passes for a segment.
const CHECKPOINT_EPOCH: Epoch = Epoch(u64::MAX);

/// No tree: the root of a payload without extents.
const NO_ROOT: u32 = u32::MAX;

/// Stands beside that number where the past is lost.
const PAST_LOST: u32 = 1 << 31;

/// Largest number of a file that the beginning of a checkpoint can name.
const NEXT_FILE_MAX: u64 = (1 << 31) - 1;

/// No file: the segment is in the remote only.
const NO_FILE: u64 = u64::MAX;

/// One thing that a checkpoint says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Item {
    /// Always first: where replay goes on, and which numbers are taken. Files are numbered behind
    /// all that were ever named, for an older checkpoint may name them still.
    Start {
        next_lsn: u64,
        chain: u32,
        segment: SegmentId,
        pages: u32,
        next_payload: u64,
        next_generation: u64,
        next_file: u64,
        /// All checkpoints before this one were lost, and records with them.
        past_lost: bool,
    },
    /// A leaf of extents: offset, length, location.
    ExtentLeaf(Vec<(u64, u32, Location)>),
    /// Children of a node over extents.
    ExtentInner(Vec<u32>),
    /// A leaf of explicitly zeroed ranges: start, end.
    ZeroedLeaf(Vec<(u64, u64)>),
    /// Children of a node over zeroed ranges.
    ZeroedInner(Vec<u32>),
    Payload {
        payload: PayloadNo,
        generation: Generation,
        id: Option<PayloadId>,
        size: u64,
        cut: u64,
        extents: Option<u32>,
        zeroed: Option<u32>,
    },
    /// What may be evicted of a payload, which came before.
    Policy {
        payload: PayloadNo,
        policy: RetentionPolicy,
    },
    /// A sealed segment: the file that holds it, if there is one, where its footer begins, its
    /// first batch and the one behind its last, and whether the remote has it.
    Segment {
        segment: SegmentId,
        epoch: Epoch,
        file: Option<u64>,
        pages: u32,
        lsns: (Lsn, Lsn),
        uploaded: bool,
    },
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct ChunkHead {
    magic: [u8; 8],
    version: U32,
    sum: U32,
    index: U32,
    len: U32,
    last: U32,
    reserved: U32,
}

const CHUNK_HEAD: usize = size_of::<ChunkHead>();

/// What a checkpoint's chunks are bound to.
pub(crate) fn identity(store: &StoreId, shard: ShardId, sequence: u64) -> Identity {
    Identity::new(store, shard, SegmentId(sequence), CHECKPOINT_EPOCH)
}

/// Gathers items into chunks.
pub(crate) struct Encoder {
    identity: Identity,
    chunk: Vec<u8>,
    index: u32,
}

impl Encoder {
    pub(crate) fn new(identity: Identity) -> Encoder {
        Encoder {
            identity,
            chunk: vec![0; CHUNK_HEAD],
            index: 0,
        }
    }

    /// Adds an item. Returns a chunk that is full, to be written behind those before it.
    pub(crate) fn push(&mut self, item: &Item) -> Option<Vec<u8>> {
        let before = self.chunk.len();
        encode(item, &mut self.chunk);
        if self.chunk.len() <= CHUNK_BYTES_MAX {
            return None;
        }
        let overhang = self.chunk.split_off(before);
        assert!(
            CHUNK_HEAD + overhang.len() <= CHUNK_BYTES_MAX,
            "an item is smaller than a chunk"
        );
        let full = self.take(false);
        self.chunk.extend_from_slice(&overhang);
        Some(full)
    }

    /// The last chunk.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.take(true)
    }

    fn take(&mut self, last: bool) -> Vec<u8> {
        let mut chunk = std::mem::replace(&mut self.chunk, vec![0; CHUNK_HEAD]);
        let mut head = ChunkHead {
            magic: MAGIC,
            version: FORMAT_VERSION.into(),
            sum: 0.into(),
            index: self.index.into(),
            len: (chunk.len() as u32).into(),
            last: u32::from(last).into(),
            reserved: 0.into(),
        };
        // A chunk that is not the last has the full size, so that the next one's place is known.
        let size = if last {
            page_ceil(chunk.len())
        } else {
            CHUNK_BYTES_MAX
        };
        chunk.resize(size, 0);
        chunk[..CHUNK_HEAD].copy_from_slice(head.as_bytes());
        head.sum = self.identity.sum(self.index, &chunk).into();
        chunk[..CHUNK_HEAD].copy_from_slice(head.as_bytes());
        self.index += 1;
        chunk
    }
}

/// Reads and checks the chunk at `index`: its items and whether it is the last.
///
/// `bytes` may reach past the chunk, as far as the file does.
pub(crate) fn decode_chunk(
    identity: Identity,
    index: u32,
    bytes: &[u8],
) -> Result<(Vec<Item>, bool), Malformed> {
    let cut = Malformed("a checkpoint is cut short");
    let (mut head, _) = ChunkHead::read_from_prefix(bytes).map_err(|_| cut)?;
    if head.magic != MAGIC {
        return Err(Malformed("not a checkpoint"));
    }
    let (len, last) = (head.len.get() as usize, head.last.get() != 0);
    if !(CHUNK_HEAD..=CHUNK_BYTES_MAX).contains(&len) {
        return Err(Malformed("a checkpoint's chunk has an impossible length"));
    }
    let size = if last {
        page_ceil(len)
    } else {
        CHUNK_BYTES_MAX
    };
    let mut chunk = bytes.get(..size).ok_or(cut)?.to_vec();
    let sum = head.sum.get();
    head.sum = 0.into();
    chunk[..CHUNK_HEAD].copy_from_slice(head.as_bytes());
    if identity.sum(index, &chunk) != sum || head.index.get() != index {
        return Err(Malformed("a checkpoint fails its checksum"));
    }
    if head.version.get() != FORMAT_VERSION {
        return Err(Malformed("a checkpoint is of another version"));
    }
    let mut rest = Rest(&chunk[CHUNK_HEAD..len]);
    let mut items = Vec::new();
    while !rest.0.is_empty() {
        items.push(decode(&mut rest)?);
    }
    Ok((items, last))
}

/// Smallest file that can hold a checkpoint.
pub(crate) const CHECKPOINT_BYTES_MIN: u64 = PAGE as u64;

const START: u32 = 1;
const EXTENT_LEAF: u32 = 2;
const EXTENT_INNER: u32 = 3;
const ZEROED_LEAF: u32 = 4;
const ZEROED_INNER: u32 = 5;
const PAYLOAD: u32 = 6;
const SEGMENT: u32 = 7;
const POLICY: u32 = 8;

fn encode(item: &Item, out: &mut Vec<u8>) {
    let mut halves = |values: &[u32]| {
        values
            .iter()
            .for_each(|value| out.extend_from_slice(&value.to_le_bytes()));
    };
    let split = |value: u64| [value as u32, (value >> 32) as u32];
    match item {
        Item::Start {
            next_lsn,
            chain,
            segment,
            pages,
            next_payload,
            next_generation,
            next_file,
            past_lost,
        } => {
            let next_file = (*next_file).min(NEXT_FILE_MAX) as u32;
            let past_lost = if *past_lost { PAST_LOST } else { 0 };
            halves(&[START, next_file | past_lost, *chain, *pages]);
            for value in [*next_lsn, segment.0, *next_payload, *next_generation] {
                halves(&split(value));
            }
        }
        Item::ExtentLeaf(entries) => {
            halves(&[EXTENT_LEAF, entries.len() as u32]);
            for (offset, len, at) in entries {
                halves(&split(*offset));
                halves(&[*len]);
                halves(&split(at.to_bits()));
            }
        }
        Item::ExtentInner(children) => {
            halves(&[EXTENT_INNER, children.len() as u32]);
            halves(children);
        }
        Item::ZeroedLeaf(entries) => {
            halves(&[ZEROED_LEAF, entries.len() as u32]);
            for (start, end) in entries {
                halves(&split(*start));
                halves(&split(*end));
            }
        }
        Item::ZeroedInner(children) => {
            halves(&[ZEROED_INNER, children.len() as u32]);
            halves(children);
        }
        Item::Payload {
            payload,
            generation,
            id,
            size,
            cut,
            extents,
            zeroed,
        } => {
            let name = id.as_ref().map_or("", |id| id.as_str());
            halves(&[PAYLOAD, name.len() as u32]);
            for value in [payload.0, generation.0, *size, *cut] {
                halves(&split(value));
            }
            halves(&[extents.unwrap_or(NO_ROOT), zeroed.unwrap_or(NO_ROOT)]);
            out.extend_from_slice(name.as_bytes());
        }
        Item::Policy { payload, policy } => {
            let (kind, span) = policy.to_numbers();
            halves(&[POLICY, kind]);
            for value in [payload.0, span] {
                halves(&split(value));
            }
        }
        Item::Segment {
            segment,
            epoch,
            file,
            pages,
            lsns: (first, next),
            uploaded,
        } => {
            halves(&[SEGMENT, *pages]);
            let file = file.unwrap_or(NO_FILE);
            [segment.0, epoch.0, file, first.0, next.0]
                .iter()
                .for_each(|value| halves(&split(*value)));
            halves(&[u32::from(*uploaded), 0]);
        }
    }
}

fn decode(rest: &mut Rest<'_>) -> Result<Item, Malformed> {
    let (kind, count) = (rest.half()?, rest.half()?);
    let root = |index: u32| (index != NO_ROOT).then_some(index);
    Ok(match kind {
        START => {
            let (chain, pages) = (rest.half()?, rest.half()?);
            Item::Start {
                next_lsn: rest.word()?,
                chain,
                segment: SegmentId(rest.word()?),
                pages,
                next_payload: rest.word()?,
                next_generation: rest.word()?,
                next_file: u64::from(count & !PAST_LOST),
                past_lost: count & PAST_LOST != 0,
            }
        }
        EXTENT_LEAF => Item::ExtentLeaf(rest.many(count, |rest| {
            Ok((
                rest.word()?,
                rest.half()?,
                Location::from_bits(rest.word()?),
            ))
        })?),
        EXTENT_INNER => Item::ExtentInner(rest.many(count, Rest::half)?),
        ZEROED_LEAF => Item::ZeroedLeaf(rest.many(count, |rest| Ok((rest.word()?, rest.word()?)))?),
        ZEROED_INNER => Item::ZeroedInner(rest.many(count, Rest::half)?),
        PAYLOAD => {
            let (payload, generation) = (PayloadNo(rest.word()?), Generation(rest.word()?));
            let (size, cut) = (rest.word()?, rest.word()?);
            let (extents, zeroed) = (root(rest.half()?), root(rest.half()?));
            let id = match rest.bytes(count as usize)? {
                [] => None,
                name => Some(
                    std::str::from_utf8(name)
                        .ok()
                        .and_then(|name| PayloadId::new(name).ok())
                        .ok_or(Malformed("a checkpoint holds an id that is not valid"))?,
                ),
            };
            Item::Payload {
                payload,
                generation,
                id,
                size,
                cut,
                extents,
                zeroed,
            }
        }
        SEGMENT => Item::Segment {
            segment: SegmentId(rest.word()?),
            epoch: Epoch(rest.word()?),
            file: Some(rest.word()?).filter(|file| *file != NO_FILE),
            lsns: (Lsn(rest.word()?), Lsn(rest.word()?)),
            uploaded: {
                let flags = rest.half()?;
                rest.half()?;
                flags != 0
            },
            pages: count,
        },
        POLICY => {
            let (payload, span) = (PayloadNo(rest.word()?), rest.word()?);
            let policy = RetentionPolicy::from_numbers(count, span);
            Item::Policy {
                payload,
                policy: policy.ok_or(Malformed("a checkpoint holds a policy that is unknown"))?,
            }
        }
        _ => return Err(Malformed("a checkpoint holds an item of unknown kind")),
    })
}

/// What is left of a chunk.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn bytes(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (bytes, rest) = self
            .0
            .split_at_checked(len)
            .ok_or(Malformed("a checkpoint's item is cut short"))?;
        self.0 = rest;
        Ok(bytes)
    }

    fn half(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(
            self.bytes(4)?.try_into().expect("four bytes"),
        ))
    }

    fn word(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(
            self.bytes(8)?.try_into().expect("eight bytes"),
        ))
    }

    /// `count` values; every one takes at least four bytes, which bounds what is allocated.
    fn many<T>(
        &mut self,
        count: u32,
        one: impl Fn(&mut Rest<'a>) -> Result<T, Malformed>,
    ) -> Result<Vec<T>, Malformed> {
        if count as usize > self.0.len() / 4 {
            return Err(Malformed("a checkpoint's item counts more than it holds"));
        }
        (0..count).map(|_| one(self)).collect()
    }
}

#[cfg(test)]
mod tests;
