//! Restoring a directory from the remote alone, so that it can be opened like any other.
//!
//! The remote is taken: from then on nobody else publishes, and what the manifest names stays. Of
//! every shard the checkpoint is fetched, and the segments behind it; everything else stays where
//! it is until somebody reads it.
//!
//! Invariants:
//! 1. The superblock comes last: until it is there, the directory is no store, and what was begun
//!    is begun anew.
//! 2. Nothing that came from the remote is written before it was checked.
//! 3. Fetching goes beside taking, as what it fetches was made once and for all. The superblock
//!    follows only where the remote was taken with the very manifest that was fetched by.

use super::checkpoint::checkpoint_name;
use super::cold::again;
use super::dir_name;
use super::files::segment_name;
use crate::config::{Config, RemoteConfig};
use crate::error::{Error, ErrorKind, Result};
use crate::io::{Driver, DriverFile, Durability, OpenMode};
use crate::log::checkpoint::{CHUNK_BYTES_MAX, Encoder, Item, decode_chunk, identity};
use crate::log::checksum::Identity;
use crate::log::objects;
use crate::log::segment::is_good_page;
use crate::marks::mark;
use crate::superblock::{self, RESTORE, Superblock, random_id};
use crate::sync::limit::Limit;
use crate::types::{Ancestors, NodeId, PAGE, ShardId};
use crate::upload::manifest::{
    Base, Manifest, Object, ShardState, base_name, segment_name as name_of,
};
use crate::upload::{Client, Taker};
use bytes::Bytes;
use futures_util::future::{join, try_join};
use futures_util::stream::{FuturesOrdered, FuturesUnordered, TryStreamExt};
use std::io;
use std::time::Duration;

/// Bytes that one request fetches.
const GET_BYTES: u64 = 1 << 20;

/// Bytes that are under way at once, whoever they are of: what a link of 3.2 MB/s brings before a
/// request counts as failed, and what one of 320 MB/s brings in 0.1 s.
const UNDER_WAY_MAX: u64 = 32 << 20;

/// Bytes of objects that are in memory at once, under way or on their way to the disk.
const HELD_MAX: u64 = 256 << 20;

/// Times that something is asked for which cannot be had just now, and the pauses between.
const GET_TRIES: u32 = 10;
const GET_PAUSE: Duration = Duration::from_secs(1);

/// Times that somebody else may be faster before the remote counts as one that is fought for.
const TAKES_MAX: usize = 8;

/// Restores the driver's directory, which must be empty, from what the remote holds.
pub(crate) async fn restore<D: Driver>(driver: &D, config: &Config, client: &Client) -> Result<()> {
    let node = random_id(driver);
    // Far beyond what any other directory of this store can have reached: no name is used twice.
    let ahead = driver.random() >> 32;
    let remote = config.remote.as_ref();
    let unfenced = remote.is_some_and(RemoteConfig::is_unfenced);
    let taker = Taker {
        node,
        ahead,
        shards: config.shards,
        unfenced,
    };
    for _ in 0..TAKES_MAX {
        check_empty(driver).await?;
        let manifest = client.successor(taker).await?;
        let taking = client.take(manifest.clone());
        let (taken, fetched) = join(taking, fetch(driver, client, &manifest)).await;
        match (taken?, fetched) {
            (true, Ok(())) => return complete(driver, node, &manifest).await,
            (true, Err(error)) => {
                // It is really so, unless others had long gone on and deleted what is missing.
                let next = client.successor(taker).await;
                if next.map_or(true, |next| next.number == manifest.number + 1) {
                    return Err(error);
                }
                mark("objects went while a rebuild fetched them");
            }
            (false, _) => mark("somebody was faster than a rebuild"),
        }
    }
    let message = "others keep taking the remote, see to it that one engine has it";
    Err(Error::new(ErrorKind::Unavailable, message))
}

/// Fetches what a manifest names, for every shard at once.
async fn fetch<D: Driver>(driver: &D, client: &Client, manifest: &Manifest) -> Result<()> {
    begin(driver).await?;
    let (held, under_way) = (Limit::of(HELD_MAX), Limit::of(UNDER_WAY_MAX));
    let shards = manifest.shards.iter().enumerate().map(|(index, state)| {
        let restore = Restore {
            driver,
            client,
            manifest,
            held: &held,
            under_way: &under_way,
            shard: ShardId(index as u16),
        };
        async move { restore.shard(state).await }
    });
    let shards: FuturesUnordered<_> = shards.collect();
    shards.try_collect().await
}

/// Makes the directory a store.
async fn complete<D: Driver>(driver: &D, node: NodeId, manifest: &Manifest) -> Result<()> {
    mark("restored from the remote");
    let superblock = Superblock {
        store: manifest.store,
        node,
        epoch: manifest.epoch,
        ancestors: Ancestors::NONE,
        shards: manifest.shards.len() as u32,
        segment_bytes: manifest.segment_bytes,
    };
    superblock::make(driver, &superblock).await?;
    let unmark = async {
        driver.unlink(RESTORE).await?;
        driver.sync_dir("").await
    };
    unmark.await.map_err(failed)
}

/// Makes sure that the directory is empty, but for what an earlier restore has begun, which goes.
async fn check_empty<D: Driver>(driver: &D) -> Result<()> {
    let entries = driver.list("").await.map_err(failed)?;
    if entries.iter().any(|entry| entry.name == RESTORE) {
        for entry in entries
            .iter()
            .filter(|entry| entry.name.starts_with("shard-"))
        {
            for file in driver.list(&entry.name).await.map_err(failed)? {
                let path = format!("{}/{}", entry.name, file.name);
                driver.unlink(&path).await.map_err(failed)?;
            }
        }
        for entry in entries
            .iter()
            .filter(|entry| entry.name.starts_with("STORE"))
        {
            driver.unlink(&entry.name).await.map_err(failed)?;
        }
        return Ok(());
    }
    let ours = |name: &str| name == "LOCK" || name == "lost+found";
    match entries.iter().find(|entry| !ours(&entry.name)) {
        None => Ok(()),
        Some(other) => Err(Error::invalid(format!(
            "a store is rebuilt in an empty directory, give another one: found={:?}",
            other.name
        ))),
    }
}

/// Marks the directory as one that is being restored.
async fn begin<D: Driver>(driver: &D) -> Result<()> {
    let mark = async {
        match driver.open(RESTORE, OpenMode::CreateNew).await {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        driver.sync_dir("").await
    };
    mark.await.map_err(failed)
}

struct Restore<'a, D: Driver> {
    driver: &'a D,
    client: &'a Client,
    manifest: &'a Manifest,
    /// For objects that are in memory, and for requests.
    held: &'a Limit,
    under_way: &'a Limit,
    shard: ShardId,
}

impl<D: Driver> Restore<'_, D> {
    fn path(&self, name: &str) -> String {
        format!("{}/{name}", dir_name(self.shard))
    }

    async fn shard(&self, state: &ShardState) -> Result<()> {
        let dir = dir_name(self.shard);
        self.driver.create_dir(&dir).await.map_err(failed)?;
        let base = async {
            let Some(base) = &state.base else {
                return Ok(());
            };
            let _held = self.held.take(base.bytes).await;
            let chunks = again(async || self.checkpoint(base).await).await?;
            self.write_checkpoint(base, chunks).await
        };
        let segments = state.tail.iter().enumerate();
        let segments: FuturesUnordered<_> = segments
            .map(|(file, object)| self.segment(file as u64, object))
            .collect();
        try_join(base, segments.try_collect::<()>()).await?;
        self.driver.sync_dir(&dir).await.map_err(failed)?;
        self.driver.sync_dir("").await.map_err(failed)
    }

    /// A checkpoint as it is, but that all segments are in the remote only.
    async fn checkpoint(&self, base: &Base) -> Result<Vec<Vec<u8>>> {
        let name = base_name(self.shard, base.sequence, base.epoch);
        let whole = self.get_all(&name, base.bytes).await?;
        let identity = identity(&self.manifest.store, self.shard, base.sequence);
        let mut encoder = Encoder::new(identity);
        let mut chunks = Vec::new();
        for (index, chunk) in (0u32..).zip(whole.chunks(CHUNK_BYTES_MAX)) {
            let (items, _) = decode_chunk(identity, index, chunk)
                .map_err(|malformed| bad(&name, malformed.0))?;
            for item in items {
                chunks.extend(encoder.push(&remote_only(item)));
            }
        }
        chunks.push(encoder.finish());
        Ok(chunks)
    }

    async fn write_checkpoint(&self, base: &Base, chunks: Vec<Vec<u8>>) -> Result<()> {
        let path = self.path(&checkpoint_name(base.sequence));
        let write = async {
            let file = self.driver.open(&path, OpenMode::CreateNew).await?;
            let mut offset = 0;
            for chunk in chunks {
                let mut buf = self.driver.pool().take(chunk.len());
                buf.copy_from_slice(&chunk);
                file.write(offset, buf.freeze(), Durability::Visible)
                    .await?;
                offset += chunk.len() as u64;
            }
            file.sync().await
        };
        write.await.map_err(failed)
    }

    /// The pages of a segment of the tail, each checked.
    async fn fetch(&self, object: &Object) -> Result<Bytes> {
        let name = name_of(self.shard, object.segment, object.epoch);
        let pages = object.pages;
        let length = objects::page_offset(pages, pages);
        if u64::from(pages) * PAGE as u64 > self.manifest.segment_bytes {
            return Err(bad(&name, "it is longer than a segment"));
        }
        let whole = self.get_all(&name, length).await?;
        let identity = Identity::new(
            &self.manifest.store,
            self.shard,
            object.segment,
            object.epoch,
        );
        let mut data = whole;
        let table = data.split_to(objects::page_offset(pages, 0) as usize);
        let sums = objects::parse_table(identity, pages, &table)
            .ok_or_else(|| bad(&name, "its table fails its checksum"))?;
        for (page, index) in data.chunks_exact(PAGE).zip(0..) {
            if !is_good_page(identity, index, page, &sums) {
                return Err(bad(&name, "it fails its checksum"));
            }
        }
        Ok(data)
    }

    async fn segment(&self, number: u64, object: &Object) -> Result<()> {
        let _held = self.held.take(u64::from(object.pages) * PAGE as u64).await;
        let data = again(async || self.fetch(object).await).await?;
        let path = self.path(&segment_name(number));
        let write = async {
            let file = self.driver.open(&path, OpenMode::CreateNew).await?;
            file.allocate(self.manifest.segment_bytes).await?;
            for (index, piece) in data.chunks(1 << 20).enumerate() {
                let mut buf = self.driver.pool().take(piece.len());
                buf.copy_from_slice(piece);
                let offset = (index << 20) as u64;
                file.write(offset, buf.freeze(), Durability::Visible)
                    .await?;
            }
            file.sync().await
        };
        write.await.map_err(failed)
    }

    /// An object, in pieces that are fetched side by side: what is large takes hardly longer than
    /// what is small, as long as the link has room.
    async fn get_all(&self, name: &str, length: u64) -> Result<Bytes> {
        let pieces = (0..length).step_by(GET_BYTES as usize);
        let pieces = pieces.map(|offset| self.get(name, offset, (length - offset).min(GET_BYTES)));
        let mut pieces: FuturesOrdered<_> = pieces.collect();
        let mut whole = Vec::new();
        while let Some(piece) = pieces.try_next().await? {
            whole.extend_from_slice(&piece);
        }
        Ok(whole.into())
    }

    async fn get(&self, name: &str, offset: u64, len: u64) -> Result<Bytes> {
        let _in_use = self.under_way.take(len).await;
        let mut tries = 1;
        loop {
            match self.client.get(name.to_owned(), offset, len).await {
                Ok(piece) if piece.len() as u64 == len => return Ok(piece),
                Ok(_) => return Err(bad(name, "it is cut short")),
                Err(error) if error.kind() == ErrorKind::Unavailable && tries < GET_TRIES => {
                    mark("asked again for what a rebuild needs");
                    tries += 1;
                    self.driver.sleep(GET_PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// An item of a checkpoint, for a directory that has no segments.
fn remote_only(item: Item) -> Item {
    match item {
        Item::Segment {
            segment,
            epoch,
            pages,
            lsns,
            ..
        } => Item::Segment {
            segment,
            epoch,
            file: None,
            pages,
            lsns,
            uploaded: true,
        },
        item => item,
    }
}

fn bad(name: &str, why: &str) -> Error {
    Error::corrupt(format!(
        "an object of the remote is bad, {why}: name={name}"
    ))
}

fn failed(error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::StorageFull => ErrorKind::Full,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            ErrorKind::InvalidInput
        }
        _ => ErrorKind::Poisoned,
    };
    let message = format!("the directory cannot be restored: cause={error}");
    Error::with_source(kind, message, error)
}
