//! Setting checksums right: what a fuzzer cannot guess, so that it gets past them.
//!
//! Everything else stays as it came, but for magic and version, which no fuzzer should have to find
//! out. The places are those of the format, which the decoders' golden tests pin.

use crate::log::checksum::{Identity, crc32c};
use crate::log::segment::FORMAT_VERSION;
use crate::types::{PAGE, page_ceil};
use crate::upload::manifest;

/// Bytes of a segment's head that its sum covers.
const SEGMENT_HEAD: usize = 72;

/// Bytes of a footer before its sums.
const FOOTER_HEAD: usize = 40;

/// Bytes of a chunk of a checkpoint before its items.
const CHUNK_HEAD: usize = 32;

/// Bytes of a superblock.
const SUPERBLOCK: usize = 56;

/// Where the sum of everything but batches and footers stands.
const SUM_AT: usize = 12;

/// Where the sum of a footer stands.
const FOOTER_SUM_AT: usize = 8;

/// Where the sum of a batch's head page stands.
const BATCH_SUM_AT: usize = 4;

fn half(bytes: &[u8], at: usize) -> u32 {
    let half = bytes.get(at..at + 4);
    half.map_or(0, |half| {
        u32::from_le_bytes(half.try_into().expect("four bytes"))
    })
}

fn put(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// Gives the first `len` bytes a magic, a version, and their sum.
fn seal_plain(magic: &[u8; 8], version: u32, len: usize, bytes: &mut [u8]) {
    if bytes.len() < len {
        return;
    }
    bytes[..8].copy_from_slice(magic);
    put(bytes, 8, version);
    put(bytes, SUM_AT, 0);
    let sum = crc32c(&bytes[..len]);
    put(bytes, SUM_AT, sum);
}

/// Seals the head of a segment.
pub(super) fn segment_head(bytes: &mut [u8]) {
    seal_plain(b"RINGSEG\0", FORMAT_VERSION, SEGMENT_HEAD, bytes);
}

/// Seals a copy of the superblock.
pub(super) fn superblock(bytes: &mut [u8]) {
    seal_plain(b"RINGSTOR", FORMAT_VERSION, SUPERBLOCK, bytes);
}

/// Seals a manifest, whole.
pub(super) fn manifest(bytes: &mut [u8]) {
    let len = bytes.len().max(SUM_AT + 4);
    seal_plain(b"RINGMAN\0", manifest::VERSION, len, bytes);
}

/// Seals the head page of a batch.
pub(super) fn batch_head(identity: Identity, page: u32, bytes: &mut [u8]) {
    if bytes.len() != PAGE {
        return;
    }
    bytes[..4].copy_from_slice(b"RBAT");
    put(bytes, BATCH_SUM_AT, 0);
    let sum = identity.sum(page, bytes);
    put(bytes, BATCH_SUM_AT, sum);
}

/// The pages that a footer says it covers.
pub(super) fn footer_pages(bytes: &[u8]) -> u32 {
    half(bytes, 16)
}

/// Seals a footer, over as many bytes as it says that it has, or as there are.
pub(super) fn footer(identity: Identity, bytes: &mut [u8]) {
    if bytes.len() < FOOTER_HEAD {
        return;
    }
    let mut len = half(bytes, 12) as usize;
    if len < FOOTER_HEAD || len > bytes.len() {
        len = bytes.len();
        put(bytes, 12, len as u32);
    }
    bytes[..8].copy_from_slice(b"RINGFTR\0");
    put(bytes, FOOTER_SUM_AT, 0);
    let sum = identity.sum(footer_pages(bytes), &bytes[..len]);
    put(bytes, FOOTER_SUM_AT, sum);
}

/// The place in its checkpoint that a chunk claims.
pub(super) fn chunk_index(bytes: &[u8]) -> u32 {
    half(bytes, 16)
}

/// Seals a chunk of a checkpoint, which grows to whole pages. False if it cannot be one.
pub(super) fn chunk(identity: Identity, bytes: &mut Vec<u8>) -> bool {
    if bytes.len() < CHUNK_HEAD {
        return false;
    }
    let mut len = half(bytes, 20) as usize;
    if len < CHUNK_HEAD || len > bytes.len() {
        len = bytes.len();
        put(bytes, 20, len as u32);
    }
    // Whatever is behind the first chunk counts only if that is not the last; here it is.
    put(bytes, 24, 1);
    let size = page_ceil(len);
    bytes.resize(size.max(bytes.len()), 0);
    bytes[..8].copy_from_slice(b"RINGCKP\0");
    put(bytes, 8, FORMAT_VERSION);
    put(bytes, SUM_AT, 0);
    let sum = identity.sum(chunk_index(bytes), &bytes[..size]);
    put(bytes, SUM_AT, sum);
    true
}
