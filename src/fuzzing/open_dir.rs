//! A directory of arbitrary files: opening it, and using whatever opens.
//!
//! The input says which valid store to begin with, or none, and then how it is spoilt: bytes
//! overwritten, pages misplaced, files cut, renamed, removed and invented, numbers driven to their
//! limits, checksums set right afterwards or not.

use super::plant::{self, Files, Input};
use super::{block_on, seal};
use crate::error::{ErrorKind, Result};
use crate::log::segment::SegmentHead;
use crate::payload_id::PayloadId;
use crate::store::Store;
use crate::superblock::Superblock;
use crate::types::PAGE;
use bytes::Bytes;
use std::fs;
use std::path::Path;

/// Names that mean something in a store, and some that come close.
const NAMES: [&str; 20] = [
    "STORE",
    "STORE.copy",
    "STORE.new",
    "LOCK",
    "lost+found",
    "other",
    "shard-0000",
    "shard-0001/seg-00000000",
    "shard-0000/seg-00000000",
    "shard-0000/seg-00000001",
    "shard-0000/seg-00000002",
    "shard-0000/seg-000000000",
    "shard-0000/seg-ffffffffffffffff",
    "shard-0000/seg-fffffffffffffffe",
    "shard-0000/checkpoint-0000000000000001",
    "shard-0000/checkpoint-0000000000000002",
    "shard-0000/checkpoint-ffffffffffffffff",
    "shard-0000/checkpoint-fffffffffffffffe",
    "shard-0000/checkpoint.new",
    "shard-0000/other",
];

/// Numbers at which something may end.
const LIMITS: [u64; 12] = [
    0,
    1,
    2,
    PAGE as u64,
    1 << 28,
    u32::MAX as u64,
    1 << 36,
    1 << 62,
    (1 << 62) + 1,
    u64::MAX - 1,
    u64::MAX,
    1 << 63,
];

/// Bytes of all files at most: what is larger takes longer and finds nothing else.
const BYTES_MAX: usize = 2 << 20;

/// Largest segment that a spoilt superblock may ask for, for the same reason.
const SEGMENT_BYTES_MAX: u64 = 1 << 20;

/// Bytes that are read at a time.
const READ_BYTES: usize = 64 << 10;

/// Opens a directory that `data` describes, and uses the store if there is one.
pub fn open_dir(data: &[u8]) {
    let mut input = Input::new(data);
    let kind = input.small() % 4;
    let mut files = plant::stores().get(kind).cloned().unwrap_or_default();
    while let Some(step) = input.byte() {
        spoil(step, &mut input, &mut files);
    }
    let bytes: usize = files.values().map(Vec::len).sum();
    if bytes > BYTES_MAX || asks_for_too_much(&files) {
        return;
    }
    let dir = plant::directory();
    lay_out(dir.path(), &files);
    match block_on(exercise(dir.path())) {
        Ok(()) => {}
        Err(error) => assert_ne!(error.kind(), ErrorKind::Internal, "{error}"),
    }
}

fn asks_for_too_much(files: &Files) -> bool {
    let copies = ["STORE", "STORE.copy"];
    let found = copies.iter().filter_map(|name| {
        let bytes = files.get(*name)?;
        Superblock::parse(name, bytes).ok()
    });
    found
        .into_iter()
        .any(|superblock| superblock.segment_bytes > SEGMENT_BYTES_MAX)
}

/// Takes one step of what the input asks for.
fn spoil(step: u8, input: &mut Input<'_>, files: &mut Files) {
    let name = match step & 0x80 {
        0 => files
            .keys()
            .nth(input.small() % files.len().max(1))
            .cloned(),
        _ => Some(NAMES[input.small() % NAMES.len()].to_owned()),
    };
    let Some(name) = name else { return };
    let page = input.small();
    match step % 9 {
        0 => overwrite(files, &name, page, input),
        1 => {
            let len = page * PAGE + usize::from(input.half());
            files.entry(name).or_default().resize(len.min(BYTES_MAX), 0);
        }
        2 => {
            let to = NAMES[page % NAMES.len()];
            if let Some(bytes) = files.remove(&name) {
                files.insert(to.to_owned(), bytes);
            }
        }
        3 => {
            files.remove(&name);
        }
        4 => {
            let len = usize::from(input.half());
            files.insert(name, input.bytes(len).to_vec());
        }
        5 => seal_page(files, &name, page),
        6 => misplace(files, &name, page, input),
        7 => {
            let to = NAMES[page % NAMES.len()];
            if let Some(bytes) = files.get(&name).cloned() {
                files.insert(to.to_owned(), bytes);
            }
        }
        _ => {
            to_the_limit(files, &name, page, input);
            seal_page(files, &name, page);
        }
    }
}

fn overwrite(files: &mut Files, name: &str, page: usize, input: &mut Input<'_>) {
    let at = page * PAGE + usize::from(input.half()) % PAGE;
    let len = input.small();
    let bytes = input.bytes(len);
    if let Some(place) = files
        .get_mut(name)
        .and_then(|file| file.get_mut(at..at + bytes.len()))
    {
        place.copy_from_slice(bytes);
    }
}

/// Puts a page where another one belongs, as a device does that loses its way.
fn misplace(files: &mut Files, name: &str, page: usize, input: &mut Input<'_>) {
    let (other, to) = (NAMES[input.small() % NAMES.len()], input.small());
    let Some(bytes) = files
        .get(name)
        .and_then(|file| file.get(page * PAGE..(page + 1) * PAGE))
        .map(<[u8]>::to_vec)
    else {
        return;
    };
    if let Some(place) = files
        .get_mut(other)
        .and_then(|file| file.get_mut(to * PAGE..(to + 1) * PAGE))
    {
        place.copy_from_slice(&bytes);
    }
}

/// Puts a number where it may be too large or too small: 4 or 8 bytes, anywhere in a page.
fn to_the_limit(files: &mut Files, name: &str, page: usize, input: &mut Input<'_>) {
    let at = page * PAGE + input.small() * 4;
    let limit = input.small();
    let bytes = LIMITS[limit % LIMITS.len()].to_le_bytes();
    let len = if limit & 0x80 == 0 { 8 } else { 4 };
    if let Some(place) = files
        .get_mut(name)
        .and_then(|file| file.get_mut(at..at + len))
    {
        place.copy_from_slice(&bytes[..len]);
    }
}

/// Sets the checksum of a page right, whatever kind of page it is.
fn seal_page(files: &mut Files, name: &str, page: usize) {
    let Some(bytes) = files.get_mut(name) else {
        return;
    };
    if name.starts_with("STORE") {
        seal::superblock(bytes);
    } else if let Some(sequence) = name.strip_prefix("shard-0000/checkpoint-") {
        let sequence = u64::from_str_radix(sequence, 16).unwrap_or(1);
        seal::chunk(plant::checkpoint_identity(sequence), bytes);
    } else if page == 0 {
        seal::segment_head(bytes);
    } else {
        let head = SegmentHead::parse(bytes);
        let (Ok(head), Some(rest)) = (head, bytes.get_mut(page * PAGE..)) else {
            return;
        };
        match rest.starts_with(b"RINGFTR\0") {
            true => seal::footer(head.identity(), rest),
            false if rest.len() >= PAGE => {
                seal::batch_head(head.identity(), page as u32, &mut rest[..PAGE]);
            }
            false => {}
        }
    }
}

fn lay_out(root: &Path, files: &Files) {
    for (name, bytes) in files {
        let path = root.join(name);
        // A name may be a file here and a directory there: whichever comes first is made.
        let parent = path.parent().expect("it is in the store's directory");
        if fs::create_dir_all(parent).is_ok() {
            let _ = fs::write(&path, bytes);
        }
    }
}

/// Opens, reads everything, changes something, closes, and looks again.
async fn exercise(dir: &Path) -> Result<()> {
    let store = Store::open(plant::config(dir)).await?;
    let id = PayloadId::new("a").expect("a name");
    let used = use_up(&store, &id).await;
    let closed = store.close().await;
    used.and(closed)?;
    let store = Store::open(plant::config(dir)).await?;
    let bytes = store.read_at(&id, 70_000, 9).await?.into_bytes();
    assert_eq!(bytes, "it lasts!", "what was flushed and closed is there");
    store.close().await
}

async fn use_up(store: &Store, id: &PayloadId) -> Result<()> {
    for found in store.list(None, 64).await? {
        let size = store.size(&found).await?;
        for offset in [0, size.saturating_sub(READ_BYTES as u64)] {
            tolerate(store.read_at(&found, offset, READ_BYTES).await)?;
        }
        tolerate(store.extents(&found, 0, size).await)?;
    }
    store.verify().await?;
    store.stats().await?;
    store
        .write_at(id, 70_000, Bytes::from_static(b"it lasts!"))
        .await?;
    let other = PayloadId::new("other").expect("a name");
    store.copy(id, &other).await?;
    store.truncate(&other, 10).await?;
    store.flush_all().await?;
    store.delete(&other).await
}

/// Bad bytes are an answer; a defect is not.
fn tolerate<T>(result: Result<T>) -> Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::Internal => Err(error),
        _ => Ok(()),
    }
}
