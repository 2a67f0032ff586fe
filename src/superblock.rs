//! The superblock: what a directory must say to be a store, and the count of its openings.
//!
//! Two copies stand in the directory, made by rename. Opening for writing raises the epoch in both,
//! durably, before anything else is written, so that no checksum of one opening passes in another.
//! They are rewritten in place, which takes no space: a store on a full file system can be opened.
//!
//! Invariants:
//! 1. An epoch is used only after both copies that carry it are durable.
//! 2. A directory with anything in it that is not ours is never made a store.
//! 3. One good copy is enough to open; two bad ones are `Corrupt`, never a new store.
//! 4. At every moment one copy is good: the one that was opened from is written when the other is.
//! 5. No two directories begin the same epoch, also if one is a copy of the other: behind the first
//!    one, each is a random step ahead. So an epoch tells whose past something belongs to, as long
//!    as it is among a directory's last `ANCESTORS_MAX`.

use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::io::retry::retried;
use crate::io::{Driver, DriverFile, Durability, OpenMode};
use crate::log::checksum::{StoreId, crc32c};
use crate::log::segment::FORMAT_VERSION;
use crate::types::{ANCESTORS_MAX, Ancestors, Epoch, NUMBER_MAX, NodeId, PAGE, SEGMENT_BYTES_MAX};
use bytes::Bytes;
use nix::libc::EIO;
use std::io;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: [u8; 8] = *b"RINGSTOR";

/// The copies, in the order in which they are made.
const NAMES: [&str; 2] = ["STORE.copy", "STORE"];

/// Where a copy is written before it takes its name.
const TEMPORARY: &str = "STORE.new";

/// Name of the file that is locked while an engine uses the directory.
const LOCK: &str = "LOCK";

/// Says that the directory is being restored from the remote, and not a store yet.
pub(crate) const RESTORE: &str = "RESTORE";

/// What a store is made with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Superblock {
    pub(crate) store: StoreId,
    /// Random, made with the directory: tells it from another that was rebuilt from the remote.
    pub(crate) node: NodeId,
    pub(crate) epoch: Epoch,
    pub(crate) ancestors: Ancestors,
    pub(crate) shards: u32,
    pub(crate) segment_bytes: u64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct Raw {
    magic: [u8; 8],
    version: U32,
    sum: U32,
    store: StoreId,
    epoch: U64,
    segment_bytes: U64,
    shards: U32,
    reserved: U32,
    node: NodeId,
}

/// Behind that. All of it is zero in a directory that was made when there was none of it yet.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawAncestors {
    sum: U32,
    reserved: U32,
    epochs: [U64; ANCESTORS_MAX],
}

/// Opens the store in the driver's directory, or makes one there, and begins a new epoch.
pub(crate) async fn begin_epoch<D: Driver>(
    driver: &D,
    config: &Config,
    cores: usize,
) -> Result<Superblock> {
    let (mut superblock, good) = match load(driver).await? {
        Some((superblock, name)) => (superblock, name),
        None => (fresh(driver, config, cores), NAMES[1]),
    };
    if let Some(shards) = config.shards
        && shards != superblock.shards as usize
    {
        return Err(Error::invalid(format!(
            "the store was made with another number of shards, leave it out or give that: \
             made_with={} shards={shards}",
            superblock.shards
        )));
    }
    // Nobody has a copy of a directory that was never opened.
    let step = match superblock.epoch {
        Epoch(0) => 0,
        epoch => {
            superblock.ancestors.push(epoch);
            driver.random() >> 32
        }
    };
    superblock.epoch = Epoch(superblock.epoch.0 + 1 + step);
    write(driver, &superblock, good)
        .await
        .map_err(|error| refusal(error, "written"))?;
    Ok(superblock)
}

/// Sixteen random bytes.
pub(crate) fn random_id<D: Driver>(driver: &D) -> [u8; 16] {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&driver.random().to_le_bytes());
    id[8..].copy_from_slice(&driver.random().to_le_bytes());
    id
}

fn fresh<D: Driver>(driver: &D, config: &Config, cores: usize) -> Superblock {
    let store = random_id(driver);
    let shards = config.shards.unwrap_or(cores).max(1) as u32;
    Superblock {
        store,
        node: random_id(driver),
        epoch: Epoch(0),
        ancestors: Ancestors::NONE,
        shards,
        segment_bytes: config.segment_bytes,
    }
}

/// The newer good copy and its name; `None` if the directory is empty.
async fn load<D: Driver>(driver: &D) -> Result<Option<(Superblock, &'static str)>> {
    let entries = retried(driver, || driver.list(""));
    let entries = entries.await.map_err(|error| refusal(error, "read"))?;
    let is_store = entries.iter().any(|entry| entry.name.starts_with("shard-"));
    let mut newest: Option<(Superblock, &'static str)> = None;
    let mut failure = None;
    for name in NAMES {
        if entries.iter().any(|entry| entry.name == name) {
            match read(driver, name, is_store).await {
                Ok(copy) => {
                    newest = newest
                        .filter(|(other, _)| other.epoch >= copy.epoch)
                        .or(Some((copy, name)));
                }
                Err(error) => failure = Some(error),
            }
        }
    }
    if entries.iter().any(|entry| entry.name == RESTORE) {
        return Err(Error::invalid(
            "the directory was not restored to its end, rebuild it from the remote again",
        ));
    }
    if newest.is_some() {
        return Ok(newest);
    }
    if let Some(error) = failure {
        return Err(error);
    }
    let ours = |name: &str| name == LOCK || name == TEMPORARY || name == "lost+found";
    match entries.iter().find(|entry| !ours(&entry.name)) {
        None => Ok(None),
        Some(other) => Err(Error::invalid(format!(
            "the directory is neither empty nor a store, give another one: found={:?}",
            other.name
        ))),
    }
}

/// Reads a copy. Where there are shards, one without the magic is damaged, not another's.
async fn read<D: Driver>(driver: &D, name: &str, is_store: bool) -> Result<Superblock> {
    let page = retried(driver, async || {
        let file = driver.open(name, OpenMode::Existing).await?;
        file.read(0, driver.pool().take(PAGE)).await
    });
    let page = page.await.map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => corrupt(name, "the superblock is cut short"),
        _ if error.raw_os_error() == Some(EIO) => corrupt(name, "the superblock is unreadable"),
        _ => refusal(error, "read"),
    })?;
    match is_store && !page.starts_with(&MAGIC) {
        true => Err(corrupt(name, "the superblock is overwritten")),
        false => Superblock::parse(name, &page),
    }
}

fn corrupt(name: &str, why: &str) -> Error {
    Error::corrupt(format!("{why}, restore it: file={name}"))
}

impl Superblock {
    /// Reads and checks the copy of this name, which may hold anything.
    pub(crate) fn parse(name: &str, page: &[u8]) -> Result<Superblock> {
        let cut = || corrupt(name, "the superblock is cut short");
        let (mut raw, rest) = Raw::read_from_prefix(page).map_err(|_| cut())?;
        let (mut past, _) = RawAncestors::read_from_prefix(rest).map_err(|_| cut())?;
        if raw.magic != MAGIC {
            return Err(Error::invalid(format!(
                "not a ringstore store: file={name}"
            )));
        }
        let sum = raw.sum.get();
        raw.sum = 0.into();
        if crc32c(raw.as_bytes()) != sum {
            return Err(corrupt(name, "the superblock fails its checksum"));
        }
        if raw.version.get() != FORMAT_VERSION {
            return Err(Error::invalid(format!(
                "the store has another format, use the version of ringstore that made it: \
                 format={} this={FORMAT_VERSION}",
                raw.version.get()
            )));
        }
        let sum = past.sum.get();
        past.sum = 0.into();
        let is_blank = sum == 0 && past.as_bytes().iter().all(|byte| *byte == 0);
        if crc32c(past.as_bytes()) != sum && !is_blank {
            return Err(corrupt(name, "the superblock's past fails its checksum"));
        }
        let superblock = Superblock {
            store: raw.store,
            node: raw.node,
            epoch: Epoch(raw.epoch.get()),
            ancestors: Ancestors(past.epochs.map(U64::get)),
            shards: raw.shards.get(),
            segment_bytes: raw.segment_bytes.get(),
        };
        let sane = (1..=1024).contains(&superblock.shards)
            && superblock.epoch.0 < NUMBER_MAX
            && superblock.segment_bytes <= SEGMENT_BYTES_MAX
            && superblock.segment_bytes >= 4 * PAGE as u64
            && superblock.segment_bytes.is_multiple_of(PAGE as u64);
        if sane {
            Ok(superblock)
        } else {
            Err(corrupt(name, "the superblock has impossible values"))
        }
    }

    /// Fills a page with it.
    pub(crate) fn write(&self, page: &mut [u8]) {
        let mut raw = Raw {
            magic: MAGIC,
            version: FORMAT_VERSION.into(),
            sum: 0.into(),
            store: self.store,
            epoch: self.epoch.0.into(),
            segment_bytes: self.segment_bytes.into(),
            shards: self.shards.into(),
            reserved: 0.into(),
            node: self.node,
        };
        raw.sum = crc32c(raw.as_bytes()).into();
        let mut past = RawAncestors {
            sum: 0.into(),
            reserved: 0.into(),
            epochs: self.ancestors.0.map(U64::new),
        };
        past.sum = crc32c(past.as_bytes()).into();
        page.fill(0);
        let (head, rest) = page.split_at_mut(size_of::<Raw>());
        head.copy_from_slice(raw.as_bytes());
        rest[..size_of::<RawAncestors>()].copy_from_slice(past.as_bytes());
    }
}

/// Makes a directory the store that a superblock describes, which was not opened here yet.
pub(crate) async fn make<D: Driver>(driver: &D, superblock: &Superblock) -> Result<()> {
    write(driver, superblock, NAMES[1])
        .await
        .map_err(|error| refusal(error, "written"))
}

/// Writes both copies, the good one last.
async fn write<D: Driver>(driver: &D, superblock: &Superblock, good: &str) -> io::Result<()> {
    let mut page = driver.pool().take(PAGE);
    superblock.write(&mut page);
    let page = page.freeze();
    // A process that was killed may have written the good copy and not synced it.
    match driver.open(good, OpenMode::Existing).await {
        Ok(file) => file.sync().await?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let others = NAMES.into_iter().filter(|name| *name != good);
    for name in others.chain([good]) {
        let there = match driver.open(name, OpenMode::Existing).await {
            Ok(file) => Some(file).filter(|file| file.len() >= PAGE as u64),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        match there {
            Some(file) => {
                file.write(0, page.clone(), Durability::Visible).await?;
                file.sync().await?;
            }
            None => make_copy(driver, name, page.clone()).await?,
        }
    }
    Ok(())
}

/// Makes a copy that is missing or cut short, whole or not at all.
async fn make_copy<D: Driver>(driver: &D, name: &str, page: Bytes) -> io::Result<()> {
    if let Err(error) = driver.unlink(TEMPORARY).await
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let file = driver.open(TEMPORARY, OpenMode::CreateNew).await?;
    file.write(0, page, Durability::Visible).await?;
    file.sync().await?;
    driver.rename(TEMPORARY, name).await?;
    driver.sync_dir("").await
}

/// What an I/O error means to somebody who opens a store.
fn refusal(error: io::Error, what: &str) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::StorageFull => ErrorKind::Full,
        io::ErrorKind::PermissionDenied
        | io::ErrorKind::ReadOnlyFilesystem
        | io::ErrorKind::NotADirectory
        | io::ErrorKind::NotFound => ErrorKind::InvalidInput,
        _ => ErrorKind::Poisoned,
    };
    let message = format!("the store's directory cannot be {what}: cause={error}");
    Error::with_source(kind, message, error)
}

#[cfg(test)]
mod tests;
