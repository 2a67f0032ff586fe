//! What the targets work on: bytes read as instructions, and valid stores to spoil.
//!
//! A store that is made twice is the same twice, byte for byte: its name is given, one operation
//! follows the other, and files that nothing was written to are left out.

use super::{STORE, block_on};
use crate::cache::table::Table;
use crate::config::{Config, DriverKind};
use crate::error::Result;
use crate::log::checkpoint;
use crate::log::checksum::Identity;
use crate::payload_id::PayloadId;
use crate::shard::{Params, Routes};
use crate::store::Store;
use crate::superblock::Superblock;
use crate::types::{Ancestors, Epoch, PAGE, ShardId};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tempfile::TempDir;

/// Files by their path in the store's directory.
pub(super) type Files = BTreeMap<String, Vec<u8>>;

/// Bytes of a segment: the smallest that a store can be made with.
const SEGMENT_BYTES: u64 = 64 << 10;

/// Input that is read as instructions. Past its end there is nothing, or zero.
pub(super) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Input<'a> {
        Input(bytes)
    }

    /// The next byte, if there is one.
    pub(super) fn byte(&mut self) -> Option<u8> {
        let (byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*byte)
    }

    /// A number of one byte.
    pub(super) fn small(&mut self) -> usize {
        self.byte().map_or(0, usize::from)
    }

    /// A number of two bytes.
    pub(super) fn half(&mut self) -> u16 {
        u16::from_le_bytes([self.byte().unwrap_or(0), self.byte().unwrap_or(0)])
    }

    /// As many bytes, or as many as there are.
    pub(super) fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        bytes
    }
}

/// What a checkpoint's chunks are bound to.
pub(super) fn checkpoint_identity(sequence: u64) -> Identity {
    checkpoint::identity(&STORE, ShardId(0), sequence)
}

/// What the only shard of the store is told about itself.
pub(super) fn params() -> Params {
    Params {
        store: STORE,
        shard: ShardId(0),
        shards: 1,
        epoch: Epoch(1),
        config: config(Path::new("")),
        routes: Arc::new(Routes::new(1)),
        table: crate::sync::Arc::new(Table::new(0)),
        files_open_max: 8,
        remote: None,
    }
}

/// How the stores here are opened: nothing happens that was not asked for, and nothing takes long.
pub(super) fn config(dir: &Path) -> Config {
    let mut config = Config::new(dir);
    config.shards = Some(1);
    config.pin_threads = false;
    config.driver = DriverKind::Threads;
    config.segment_bytes = SEGMENT_BYTES;
    config.dirty_bytes_max = 1 << 20;
    config.read_buffer_bytes = 0;
    config.flush_after = Duration::from_secs(3600);
    config.stall_timeout = Duration::from_secs(2);
    config.close_timeout = Duration::from_secs(2);
    config
}

/// A directory for one run, in memory where that can be had: a sync costs nothing there.
pub(super) fn directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    let dir = match memory.is_dir() {
        true => tempfile::tempdir_in(memory),
        false => tempfile::tempdir(),
    };
    dir.expect("a directory for what is being tested")
}

/// Valid stores: one that crashed, one that was closed, one that crashed after it had been closed.
pub(super) fn stores() -> &'static [Files; 3] {
    static STORES: OnceLock<[Files; 3]> = OnceLock::new();
    STORES.get_or_init(|| block_on(make()).expect("a store on a good disk"))
}

async fn make() -> Result<[Files; 3]> {
    let home = directory();
    let mut page = vec![0; PAGE];
    let superblock = Superblock {
        store: STORE,
        node: Default::default(),
        epoch: Epoch(0),
        ancestors: Ancestors::NONE,
        shards: 1,
        segment_bytes: SEGMENT_BYTES,
    };
    superblock.write(&mut page);
    for name in ["STORE", "STORE.copy"] {
        fs::write(home.path().join(name), &page).expect("a writable directory");
    }
    let store = Store::open(config(home.path())).await?;
    fill(&store, 0).await?;
    let crashed = files(home.path());
    store.close().await?;
    let closed = files(home.path());
    let store = Store::open(config(home.path())).await?;
    fill(&store, 7).await?;
    let both = files(home.path());
    store.close().await?;
    Ok([crashed, closed, both])
}

/// A little of everything: small and large writes, holes, clones, a payload that is gone.
async fn fill(store: &Store, salt: u8) -> Result<()> {
    let [a, b, c] = ["a", "b", "a longer name"].map(|name| PayloadId::new(name).expect("a name"));
    for step in 0..6 {
        let byte = salt + step;
        let small = Bytes::from(vec![byte; 100]);
        store.write_at(&a, u64::from(byte) * 50, small).await?;
        let large = Bytes::from(vec![byte; 2 * PAGE + 10]);
        store.write_at(&b, u64::from(byte) * 3000, large).await?;
        store.flush_all().await?;
    }
    store.copy(&b, &c).await?;
    store.truncate(&b, 9000).await?;
    store.punch_hole(&c, 1000, 5000).await?;
    store.flush_all().await?;
    store.delete(&a).await?;
    store.write_at(&a, 3, Bytes::from_static(b"again")).await?;
    store.flush_all().await
}

/// The files of a directory, without those that nothing was written to.
fn files(root: &Path) -> Files {
    let mut files = Files::new();
    let mut dirs = vec![String::new()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(root.join(&dir)).expect("it was just there") {
            let entry = entry.expect("it was just there");
            let name = format!("{dir}{}", entry.file_name().to_string_lossy());
            if entry.path().is_dir() {
                dirs.push(format!("{name}/"));
                continue;
            }
            // One that upkeep has just removed is not there; that is no part of the store.
            let bytes = fs::read(entry.path()).unwrap_or_default();
            if bytes.iter().any(|byte| *byte != 0) {
                files.insert(name, bytes);
            }
        }
    }
    files
}
