//! Opening a shard: checkpoint, then the log's tail, then a new segment behind it.
//!
//! The newest good checkpoint gives the map; `replay` applies what was logged since. Then
//! relocations are settled, and what large writes had gathered without finishing is dropped.
//!
//! Invariants:
//! 1. Opening reads the checkpoint and the tail, whatever the store holds besides.
//! 2. Nothing is appended behind a tear: the log goes on in a new segment.
//! 3. Whatever the files hold, opening ends in a shard or an error: no panic, no unbounded
//!    allocation.

use super::ahead::Ahead;
use super::checkpoint::{Upkeep, checkpoint_name, parse_checkpoint_name};
use super::evict::Retention;
use super::files::Files;
use super::kept::Kept;
use super::loading::Loading;
use super::request::Control;
use super::tail::Tail;
use super::tier::Tier;
use super::{Inner, Params, Shard, State};
use crate::buf::AlignedBuf;
use crate::cache::read_buffer::ReadBuffer;
use crate::error::{Error, ErrorKind, Result};
use crate::io::retry::{is_exhausted, retried};
use crate::io::{DirEntry, Driver, DriverFile, OpenMode};
use crate::log::checkpoint::{CHUNK_BYTES_MAX, decode_chunk, identity};
use crate::log::writer::{Log, LogEnd, LogParams};
use crate::map::Map;
use crate::marks::mark;
use crate::payload_id::PayloadId;
use crate::residency::{Held, Segments};
use crate::stats::{Latencies, Stats};
use crate::sync::mailbox::Sender;
use crate::sync::signal::Signal;
use crate::types::{Epoch, Generation, Lsn, PAGE, SegmentId};
use foldhash::fast::FixedState;
use hashbrown::HashMap;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::rc::Rc;

/// Largest batch in pages: 1 MiB of data and a head. Larger ones gain no speed, and make small
/// flushes wait longer behind them.
const BATCH_PAGES_MAX: u32 = 257;

/// A payload that lives on another shard than its name's home.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    pub(crate) id: PayloadId,
    pub(crate) generation: Generation,
}

/// What a shard knows after its files have been read.
pub(super) struct Recovered {
    pub(super) map: Map,
    pub(super) segments: Segments,
    pub(super) end: LogEnd,
    pub(super) upkeep: Upkeep,
    pub(super) stats: Stats,
    pub(super) next_generation: u64,
    pub(super) kept: Kept,
}

impl Recovered {
    /// The log goes on with this batch.
    pub(super) fn go_on(&mut self, next: Lsn, chain: u32) {
        (self.end.next_lsn, self.end.chain) = (next, chain);
    }
}

impl<D: Driver> Shard<D> {
    /// Opens the shard in its directory, which is made if it is not there.
    pub(crate) async fn open(
        driver: D,
        params: Params,
        peers: Vec<Sender<Control>>,
    ) -> Result<Shard<D>> {
        let recovery = Recovery {
            driver: &driver,
            params: &params,
            unread: Cell::new(false),
        };
        let recovered = recovery.run().await?;
        let unread = recovery.unread.get();
        params.routes.reserve_generations(recovered.next_generation);
        let segment_pages = (params.segment_bytes() / PAGE as u64) as u32;
        // A quarter of the budget at most, so that one batch can fill while others are written.
        let budget_pages = (params.dirty_bytes_max() / 4 / PAGE as u64) as u32;
        let batch_pages_max = BATCH_PAGES_MAX
            .min(segment_pages - 4)
            .min(budget_pages)
            .max(2);
        let log_params = LogParams {
            store: params.store,
            shard: params.shard,
            epoch: params.epoch,
            segment_pages,
            batch_pages_max,
        };
        let state = State {
            map: recovered.map,
            tail: Tail::new(Lsn(recovered.end.next_lsn.0 - 1)),
            log: Log::new(log_params, recovered.end),
            segments: recovered.segments,
            buffer: ReadBuffer::new(params.table.clone(), params.read_buffer_bytes()),
            ahead: Ahead::new(&params),
            commit: Default::default(),
            space: Default::default(),
            upkeep: recovered.upkeep,
            stats: recovered.stats,
            latencies: Latencies::new(),
            moving: BTreeSet::new(),
            changing: HashMap::with_hasher(FixedState::with_seed(0)),
            deleted: BTreeMap::new(),
            tier: params.remote.clone().map(|it| Tier::new(params.shard, it)),
            fetches: BTreeMap::new(),
            kept: recovered.kept,
            retention: Retention::new(params.config.retention),
            closing: false,
        };
        let files = Files::new(driver.clone(), params.clone());
        let shard = Shard(Rc::new(Inner {
            driver,
            params,
            state: RefCell::new(state),
            files,
            committed: Signal::default(),
            room: Signal::default(),
            commit_due: Signal::default(),
            upkeep_due: Signal::default(),
            fetched: Signal::default(),
            finished: Signal::default(),
            tier_changed: Signal::default(),
            peers,
            writing: Cell::new(0),
            working: Cell::new(0),
            ending: Cell::new(false),
            spent: Cell::default(),
            persisted: Cell::new(false),
            used_at: Cell::default(),
        }));
        if unread || shard.0.state.borrow().has_lost_records() {
            // Should the lost ones be readable again, they must not meet what was logged without
            // them: the numbers that they use are given out anew.
            shard.checkpoint_anyway().await?;
        }
        Ok(shard)
    }

    /// The payloads that live here although their home is another shard.
    pub(crate) fn claims(&self) -> Vec<Claim> {
        let state = self.0.state.borrow();
        let (routes, shard) = (&self.0.params.routes, self.0.params.shard);
        let foreign = state
            .map
            .names_after(None)
            .filter(|id| routes.home(id) != shard);
        foreign
            .filter_map(|id| {
                let generation = state.map.find(id)?.generation;
                Some(Claim {
                    id: id.clone(),
                    generation,
                })
            })
            .collect()
    }
}

pub(super) struct Recovery<'a, D: Driver> {
    pub(super) driver: &'a D,
    pub(super) params: &'a Params,
    /// Something could not be read. Where the log ends was judged without it.
    pub(super) unread: Cell<bool>,
}

impl<D: Driver> Recovery<'_, D> {
    async fn run(&self) -> Result<Recovered> {
        let dir = self.params.dir();
        let made = self.driver.create_dir(&dir).await;
        made.map_err(|error| self.failed("made", error))?;
        let synced = self.driver.sync_dir("").await;
        synced.map_err(|error| self.failed("made durable", error))?;
        let entries = self
            .driver
            .list(&dir)
            .await
            .map_err(|error| self.failed("read", error))?;
        // Names that a killed process left behind can be seen, and yet be lost with the power.
        self.driver
            .sync_dir(&dir)
            .await
            .map_err(|error| self.failed("made durable", error))?;
        self.remove_leftovers(&entries).await;
        let mut recovered = self.load_newest_checkpoint(&entries).await?;
        let is_away = |held: &Rc<Held>| held.file().is_none();
        if self.params.remote.is_none() && recovered.segments.iter().any(is_away) {
            return Err(Error::invalid(
                "some bytes of this store are only in its remote: set Config::remote (--remote \
                 URL)",
            ));
        }
        let candidates = self.find_candidates(&entries, &mut recovered).await?;
        let newest = candidates.last_key_value().map(|(id, _)| *id);
        self.replay(candidates, &mut recovered).await?;
        if self.unread.get() {
            mark("tail judged without what cannot be read");
            // Should it be readable another time, it must not come back: the checkpoint that is
            // written now begins behind every segment that may be in a file here.
            let end = &mut recovered.end;
            let newest = newest.unwrap_or(end.segment).max(end.segment);
            (end.segment, end.pages) = (SegmentId(newest.0 + entries.len() as u64), 1);
        }
        let no_checkpoint = recovered.upkeep.newest().is_none();
        // A store that was killed before it had anything looks the same as one that has lost all.
        let nothing = self.params.epoch > Epoch(1) && recovered.end.next_lsn == Lsn(1);
        let lost = recovered.stats.batches_lost > 0;
        if no_checkpoint && (lost || nothing) {
            mark("past lost with its checkpoints");
            recovered.upkeep.past_lost = true;
        }
        if self.params.remote.is_some() && no_checkpoint && lost {
            // What only the checkpoints knew of the bucket must not be taken for garbage there.
            return Err(Error::corrupt(
                "all checkpoints of a shard are lost, and with them what is in the remote only: \
                 rebuild the store from its remote; what was not uploaded yet is here alone",
            ));
        }
        recovered.map.finish_replay();
        recovered.kept = self.find_kept(&entries, &recovered.segments).await;
        // A checkpoint refers to what the cleaner had moved while it was written. Should that
        // segment be lost, its number must not be used again: others' bytes would be read in its
        // place.
        let end = &mut recovered.end;
        if let Some(newest) = recovered.map.live.newest()
            && newest > end.segment
        {
            mark("number of a lost segment left out");
            (end.segment, end.pages) = (newest, 1);
        }
        Ok(recovered)
    }

    pub(super) fn failed(&self, what: &str, error: io::Error) -> Error {
        let message = format!(
            "a shard's directory cannot be {what}: shard={}",
            self.params.shard.0
        );
        let kind = match error.kind() {
            io::ErrorKind::StorageFull => ErrorKind::Full,
            _ if is_exhausted(&error) => {
                let message = "too few file descriptors to open a store, raise `ulimit -n`";
                return Error::with_source(ErrorKind::InvalidInput, message, error);
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                ErrorKind::InvalidInput
            }
            _ => ErrorKind::Poisoned,
        };
        Error::with_source(kind, message, error)
    }

    /// Opens a file of the shard; `None` if there is none. What is no file, or a link, is none.
    pub(super) async fn open_existing(&self, name: &str) -> Result<Option<D::File>> {
        let path = self.params.path(name);
        let open = || self.driver.open(&path, OpenMode::Existing);
        match retried(self.driver, open).await {
            Ok(file) => Ok(Some(file)),
            Err(error) if is_no_file(&error) => Ok(None),
            Err(error) => Err(self.failed("read", error)),
        }
    }

    /// Reads whole pages.
    pub(super) async fn read_at(
        &self,
        file: &D::File,
        offset: u64,
        len: usize,
    ) -> io::Result<AlignedBuf> {
        let read = || file.read(offset, self.driver.pool().take(len));
        retried(self.driver, read).await
    }

    /// The newest checkpoint that is good, or an empty shard if there is none.
    async fn load_newest_checkpoint(&self, entries: &[DirEntry]) -> Result<Recovered> {
        let mut found: Vec<(u64, u64)> = entries
            .iter()
            .filter_map(|entry| Some((parse_checkpoint_name(&entry.name)?, entry.len)))
            .collect();
        found.sort_unstable();
        let mut bad = 0;
        while let Some(&(sequence, len)) = found.last() {
            match self.load_checkpoint(sequence, len).await {
                Ok(mut recovered) => {
                    let end = recovered.end;
                    let newest = (end.next_lsn, end.segment);
                    let past_lost = recovered.upkeep.past_lost;
                    recovered.upkeep = Upkeep::found(found, Some(newest), bad == 0);
                    recovered.upkeep.past_lost = past_lost;
                    recovered.stats.checksum_failures += bad;
                    return Ok(recovered);
                }
                Err(error) if error.kind() != ErrorKind::Corrupt => return Err(error),
                Err(error) => {
                    mark("bad checkpoint passed over");
                    tracing::warn!(shard = self.params.shard.0, %error, "a checkpoint is bad");
                    self.set_aside(sequence).await?;
                    found.pop();
                    bad += 1;
                }
            }
        }
        let mut recovered = Recovered {
            map: Map::new(),
            segments: Segments::default(),
            end: LogEnd {
                next_lsn: Lsn(1),
                chain: 0,
                segment: SegmentId(0),
                pages: 0,
            },
            upkeep: Upkeep::found(found, None, false),
            stats: Stats::default(),
            next_generation: 1,
            kept: Default::default(),
        };
        recovered.stats.checksum_failures += bad;
        Ok(recovered)
    }

    /// Takes a bad checkpoint out of the way, durably. Should it turn out to be readable later, it
    /// must not meet what was logged without it.
    async fn set_aside(&self, sequence: u64) -> Result<()> {
        let name = checkpoint_name(sequence);
        let aside = self.params.path(&format!("bad-{name}"));
        let renamed = self.driver.rename(&self.params.path(&name), &aside).await;
        renamed.map_err(|error| self.failed("mended", error))?;
        let synced = self.driver.sync_dir(&self.params.dir()).await;
        synced.map_err(|error| self.failed("mended", error))
    }

    async fn load_checkpoint(&self, sequence: u64, len: u64) -> Result<Recovered> {
        let unreadable =
            |error| Error::with_source(ErrorKind::Corrupt, "a checkpoint cannot be read", error);
        let open = self.open_existing(&checkpoint_name(sequence)).await?;
        let file = open.ok_or_else(|| Error::corrupt("a checkpoint is gone"))?;
        let identity = identity(&self.params.store, self.params.shard, sequence);
        let mut loading = Loading::new();
        let (mut offset, mut index) = (0, 0);
        loop {
            let left = len.saturating_sub(offset).min(CHUNK_BYTES_MAX as u64) as usize;
            if left < PAGE {
                loading.give_up();
                return Err(Error::corrupt("a checkpoint is cut short"));
            }
            let chunk = match self.read_at(&file, offset, left / PAGE * PAGE).await {
                Ok(chunk) => chunk,
                Err(error) => {
                    loading.give_up();
                    return Err(unreadable(error));
                }
            };
            let decoded = decode_chunk(identity, index, &chunk)
                .map_err(|malformed| malformed.0)
                .and_then(|(items, last)| {
                    for item in items {
                        loading.take(item, self.params)?;
                    }
                    Ok(last)
                });
            match decoded {
                Ok(true) => return loading.finish().map_err(Error::corrupt),
                Ok(false) => (offset, index) = (offset + CHUNK_BYTES_MAX as u64, index + 1),
                Err(why) => {
                    loading.give_up();
                    return Err(Error::corrupt(why));
                }
            }
        }
    }
}

fn is_no_file(error: &io::Error) -> bool {
    use nix::libc::{EISDIR, ELOOP, ENOENT};
    matches!(error.raw_os_error(), Some(ENOENT | ELOOP | EISDIR))
        || error.kind() == io::ErrorKind::NotFound
}
