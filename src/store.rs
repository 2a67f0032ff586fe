//! The handle: checks arguments, asks the shard that owns the payload, awaits its answer.
//!
//! Invariants:
//! 1. Nothing is sent to a shard before its arguments are known to be good.
//! 2. What is sent is done whole or not at all, whether or not anybody still waits for the answer.
//! 3. No lock is held across an await, and no memory of the caller is ever handed to the kernel.

mod figures;
mod keep;
mod read;
mod remote;
mod write;

use crate::cache::table::Table;
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::io::Driver;
use crate::io::clock::Clock;
use crate::io::launch::ShardMain;
use crate::payload_id::PayloadId;
use crate::shard::request::{Answers, Request, Work};
use crate::shard::{Answer, Claim, Control, Outcome, Params, REQUESTS_MAX, Routes, Shard};
use crate::stats::Extent;
use crate::superblock::{Superblock, begin_epoch};
use crate::sync::mailbox::{Receiver, Sender, mailbox};
use crate::sync::slot::{Pending, Reply, slot};
use crate::sync::{self, Mutex};
use crate::types::{PAYLOAD_BYTES_MAX, ShardId};
use crate::upload::Client;
use crate::world::{Machine, Resident, World};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

/// An open store. Clones share it; the last one to go without `close` leaves it as a crash would.
///
/// Every future is `Send`, can be polled by any executor, and may be dropped at any point.
///
/// # Example
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let runtime = tokio::runtime::Builder::new_current_thread().build()?;
/// # let dir = tempfile::tempdir()?;
/// # runtime.block_on(async {
/// use ringstore::{Config, PayloadId, Store};
/// let store = Store::open(Config::new(dir.path())).await?;
/// let id = PayloadId::new("disk-7")?;
/// store.write_at(&id, 4096, "hello".into()).await?;
/// store.flush(&id).await?;
/// assert_eq!(store.read_at(&id, 4096, 5).await?.into_bytes(), "hello");
/// store.close().await?;
/// # Ok::<(), ringstore::Error>(()) })?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Store(Arc<Shared>);

/// How to ask one shard.
struct Mailboxes {
    /// Writes, which may be held back.
    writes: Sender<Request>,
    /// Everything else.
    others: Sender<Request>,
    /// What must not wait behind either.
    control: Sender<Control>,
}

struct Shared {
    config: Config,
    clock: Clock,
    routes: Arc<Routes>,
    shards: Vec<Mailboxes>,
    /// What is in each shard's read buffer.
    tables: Vec<sync::Arc<Table>>,
    outcomes: Vec<Outcome>,
    residents: Mutex<Vec<Resident>>,
}

impl Store {
    /// Creates an empty store, or recovers the one in the directory.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for a configuration that cannot work, a directory that is not a store, is of
    /// another format, or is used by another engine; `Corrupt` when what names the store is damaged
    /// in every copy; `Full` when there is no space for a new epoch; `Poisoned` when the disk
    /// fails.
    ///
    /// # Cancellation
    ///
    /// Dropped, the store is as after a crash: whatever was durable still is.
    pub async fn open(config: Config) -> Result<Store> {
        config.check()?;
        let machine = Machine::take(&config)?;
        Store::open_in(&machine, config, Machine::cores()).await
    }

    /// Brings a store up from its remote alone, in an empty directory.
    ///
    /// # Errors
    ///
    /// `InvalidInput` without a remote.
    ///
    /// # Cancellation
    ///
    /// Dropped, it may go on to its end, and the directory be a store like any other then. If it is
    /// none, the next call begins anew.
    pub async fn rebuild(config: Config) -> Result<Store> {
        config.check()?;
        let machine = Machine::take(&config)?;
        let dir = config.dir.clone();
        let rebuilt = Store::rebuild_in(&machine, config, Machine::cores()).await;
        if rebuilt.is_err() {
            machine.give_back(&dir);
        }
        rebuilt
    }

    pub(crate) async fn open_in<W: World>(
        world: &W,
        mut config: Config,
        cores: usize,
    ) -> Result<Store> {
        let (reply, pending) = slot();
        let boot = Boot {
            config: config.clone(),
            cores,
            reply,
        };
        let booting = world.start(ShardId(0), &config, boot)?;
        let superblock = pending.await.unwrap_or_else(|| Err(gone()));
        // Also when it failed: it holds the directory's lock until it has ended.
        booting.join()?;
        let superblock = superblock?;
        config.segment_bytes = superblock.segment_bytes;
        config.shards = Some(superblock.shards as usize);
        let remote = remote::start(world, &config, &superblock)?;
        let (store, ready) = Store::start(world, config, &superblock, remote)?;
        let mut claims = Vec::new();
        for pending in ready {
            claims.push(pending.await.unwrap_or_else(|| Err(gone())));
        }
        let claims: Result<Vec<Vec<Claim>>> = claims.into_iter().collect();
        let settled = match claims {
            Ok(claims) => store.settle(claims).await,
            Err(error) => Err(error),
        };
        if let Err(error) = settled {
            store.give_up();
            return Err(error);
        }
        Ok(store.opened)
    }

    fn start<W: World>(
        world: &W,
        config: Config,
        superblock: &Superblock,
        remote: Option<(Client, Resident)>,
    ) -> Result<(Opening, Vec<Ready>)> {
        let (client, uploader) = remote.unzip();
        let count = superblock.shards as usize;
        let files_open_max = world.files_open_max(count)?;
        let routes = Arc::new(Routes::new(count));
        let mut shards = Vec::new();
        let (peers, controls): (Vec<_>, Vec<_>) = (0..count).map(|_| mailbox(REQUESTS_MAX)).unzip();
        let outcomes: Vec<Outcome> = (0..count).map(|_| Outcome::default()).collect();
        let share = config.read_buffer_bytes / count as u64;
        let tables: Vec<_> = (0..count)
            .map(|_| sync::Arc::new(Table::new(share)))
            .collect();
        let mut residents = Vec::new();
        let mut ready = Vec::new();
        for (index, control) in controls.into_iter().enumerate() {
            let (writes, write_requests) = mailbox(REQUESTS_MAX);
            let (others, requests) = mailbox(REQUESTS_MAX);
            shards.push(Mailboxes {
                writes,
                others,
                control: peers[index].clone(),
            });
            let shard = ShardId(index as u16);
            let params = Params {
                store: superblock.store,
                shard,
                shards: count,
                epoch: superblock.epoch,
                config: config.clone(),
                routes: routes.clone(),
                remote: client.clone(),
                table: tables[index].clone(),
                files_open_max,
            };
            let (reply, pending) = slot();
            let life = Life {
                params,
                requests,
                writes: write_requests,
                control,
                peers: peers.clone(),
                outcome: outcomes[index].clone(),
                ready: reply,
            };
            residents.push(world.start(shard, &config, life)?);
            ready.push(pending);
        }
        // It ends when the shards have, and is joined behind them.
        residents.extend(uploader);
        let shared = Shared {
            config,
            clock: world.clock(),
            routes,
            shards,
            tables,
            outcomes,
            residents: Mutex::new(residents),
        };
        Ok((
            Opening {
                opened: Store(Arc::new(shared)),
                peers,
            },
            ready,
        ))
    }

    /// Flushes everything and ends the store, within `Config::close_timeout`.
    ///
    /// Operations that other clones have under way are finished first. Closing again gives the same
    /// answer.
    ///
    /// # Errors
    ///
    /// What could not be persisted and why: the first error, with the messages of all others.
    ///
    /// # Cancellation
    ///
    /// Dropped, the shards that were asked by then close all the same, within the same time; the
    /// others are left as a crash would leave them.
    pub async fn close(self) -> Result<()> {
        let mut pending = Vec::new();
        for shard in &self.0.shards {
            let (reply, answer) = slot();
            let sent = shard.others.send(self.request(Work::Close(reply))).await;
            pending.push(sent.is_ok().then_some(answer));
        }
        let mut errors = Vec::new();
        for (answer, outcome) in pending.into_iter().zip(&self.0.outcomes) {
            let answer = match answer {
                Some(answer) => answer.await,
                None => None,
            };
            let closed = answer.or_else(|| outcome.get().cloned());
            errors.extend(closed.unwrap_or_else(|| Err(gone())).err());
        }
        let residents = std::mem::take(&mut *self.0.residents.lock());
        let joined = residents.into_iter().map(|resident| resident.join());
        errors.extend(joined.filter_map(Result::err));
        let first = errors.first().cloned();
        first.map_or(Ok(()), |first| Err(first.with_others(&errors[1..])))
    }

    /// Size in bytes, holes included.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    ///
    /// # Cancellation
    ///
    /// Dropped, it has changed nothing.
    pub async fn size(&self, id: &PayloadId) -> Result<u64> {
        self.ask(id, |reply| Work::Size {
            id: id.clone(),
            reply,
        })
        .await
    }

    /// Whether there is such a payload.
    ///
    /// # Errors
    ///
    /// `Closed`.
    ///
    /// # Cancellation
    ///
    /// Dropped, it has changed nothing.
    pub async fn exists(&self, id: &PayloadId) -> Result<bool> {
        match self.size(id).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Up to `limit` ids behind `after`, in the order of their bytes.
    ///
    /// # Errors
    ///
    /// `Closed`.
    ///
    /// # Cancellation
    ///
    /// Dropped, it has changed nothing.
    ///
    /// # Example
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # tokio::runtime::Runtime::new()?.block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// # let store = ringstore::Store::open(ringstore::Config::new(dir.path())).await?;
    /// use ringstore::PayloadId;
    /// for name in ["b", "a", "c"] {
    ///     store.truncate(&PayloadId::new(name)?, 0).await?;
    /// }
    /// let page = store.list(None, 2).await?;
    /// assert_eq!(page, [PayloadId::new("a")?, PayloadId::new("b")?]);
    /// assert_eq!(store.list(page.last(), 2).await?, [PayloadId::new("c")?]);
    /// # store.close().await?;
    /// # Ok(()) }) }
    /// ```
    pub async fn list(&self, after: Option<&PayloadId>, limit: usize) -> Result<Vec<PayloadId>> {
        let after = after.cloned();
        let work = |reply| Work::List {
            after: after.clone(),
            limit,
            reply,
        };
        let names: BTreeSet<PayloadId> = self.ask_all(work).await?.into_iter().flatten().collect();
        Ok(names.into_iter().take(limit).collect())
    }

    /// Data and holes of `[offset, offset + len)`, up to the payload's end, and where the data is.
    ///
    /// # Errors
    ///
    /// `NotFound`, `InvalidInput` past 2^62.
    ///
    /// # Cancellation
    ///
    /// Dropped, it has changed nothing.
    ///
    /// # Example
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # tokio::runtime::Runtime::new()?.block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// # let store = ringstore::Store::open(ringstore::Config::new(dir.path())).await?;
    /// let id = ringstore::PayloadId::new("disk")?;
    /// store.write_at(&id, 8192, vec![7; 4096].into()).await?;
    /// let extents = store.extents(&id, 0, u64::from(u32::MAX)).await?;
    /// assert_eq!((extents[0].kind, extents[0].len), (ringstore::ExtentKind::Hole, 8192));
    /// # store.close().await?;
    /// # Ok(()) }) }
    /// ```
    pub async fn extents(&self, id: &PayloadId, offset: u64, len: u64) -> Result<Vec<Extent>> {
        check_range(offset, len)?;
        self.ask(id, |reply| Work::Extents {
            id: id.clone(),
            offset,
            len,
            reply,
        })
        .await
    }

    /// Whether the store has a remote tier.
    pub fn has_remote(&self) -> bool {
        self.0.config.remote.is_some()
    }

    fn request(&self, work: Work) -> Request {
        Request {
            at: self.0.clock.now(),
            work,
        }
    }

    /// Asks the shard that owns a payload, and again if it has moved meanwhile.
    async fn ask<T>(&self, id: &PayloadId, work: impl Fn(Answers<T>) -> Work) -> Result<T> {
        loop {
            let shard = self.0.routes.shard_of(id);
            let (reply, answer) = slot();
            let request = self.request(work(reply));
            let mailboxes = &self.0.shards[usize::from(shard.0)];
            let sender = match &request.work {
                Work::Write { .. } => &mailboxes.writes,
                _ => &mailboxes.others,
            };
            sender.send(request).await.map_err(|_| Error::closed())?;
            match answer.await.unwrap_or_else(|| Err(Error::closed()))? {
                Answer::Done(value) => return Ok(value),
                Answer::Elsewhere => {}
            }
        }
    }

    /// Asks every shard; the first error, after all have answered.
    async fn ask_all<T>(&self, work: impl Fn(Reply<Result<T>>) -> Work) -> Result<Vec<T>> {
        let mut pending = Vec::new();
        for shard in &self.0.shards {
            let (reply, answer) = slot();
            shard
                .others
                .send(self.request(work(reply)))
                .await
                .map_err(|_| Error::closed())?;
            pending.push(answer);
        }
        let mut answers = Vec::new();
        for answer in pending {
            answers.push(answer.await.unwrap_or_else(|| Err(Error::closed())));
        }
        answers.into_iter().collect()
    }

    fn check_open(&self) -> Result<()> {
        let ended = |outcome: &Outcome| outcome.get().is_some();
        match self.0.outcomes.iter().any(ended) {
            true => Err(Error::closed()),
            false => Ok(()),
        }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("dir", &self.0.config.dir)
            .field("shards", &self.0.shards.len())
            .finish_non_exhaustive()
    }
}

/// Says which payloads of other homes a shard found, when it has been opened.
type Ready = Pending<Result<Vec<Claim>>>;

/// A store whose shards have yet to agree on who owns what.
struct Opening {
    opened: Store,
    peers: Vec<Sender<Control>>,
}

impl Opening {
    /// Ends the shards that did open, so that the directory is free when the caller hears of it.
    fn give_up(self) {
        let residents = std::mem::take(&mut *self.opened.0.residents.lock());
        drop(self);
        for resident in residents {
            // Why the opening failed is known already.
            let _ = resident.join();
        }
    }

    /// Of several shards that claim a payload, the one with the highest generation gets it.
    async fn settle(&self, claims: Vec<Vec<Claim>>) -> Result<()> {
        let routes = &self.opened.0.routes;
        let mut best: BTreeMap<PayloadId, (Claim, ShardId)> = BTreeMap::new();
        let mut losers: BTreeMap<ShardId, Vec<PayloadId>> = BTreeMap::new();
        for (index, claims) in claims.into_iter().enumerate() {
            let shard = ShardId(index as u16);
            for claim in claims {
                let id = claim.id.clone();
                match best.get(&id) {
                    Some((other, _)) if other.generation > claim.generation => {
                        losers.entry(shard).or_default().push(id);
                    }
                    _ => {
                        if let Some((old, owner)) = best.insert(id, (claim, shard)) {
                            losers.entry(owner).or_default().push(old.id);
                        }
                    }
                }
            }
        }
        let mut by_home: BTreeMap<ShardId, Vec<(Claim, ShardId)>> = BTreeMap::new();
        for (id, claim) in best {
            by_home.entry(routes.home(&id)).or_default().push(claim);
        }
        for (home, claims) in by_home {
            let asked = claims.iter().map(|(claim, _)| claim.clone()).collect();
            let won = self
                .ask(home, |reply| Control::Settle {
                    claims: asked,
                    reply,
                })
                .await?;
            for ((claim, shard), won) in claims.into_iter().zip(won) {
                match won {
                    true => routes.set(&claim.id, shard),
                    false => losers.entry(shard).or_default().push(claim.id),
                }
            }
        }
        for (shard, ids) in losers {
            self.ask(shard, |reply| Control::Disown { ids, reply })
                .await?;
        }
        Ok(())
    }

    async fn ask<T>(
        &self,
        shard: ShardId,
        control: impl FnOnce(Reply<Result<T>>) -> Control,
    ) -> Result<T> {
        let (reply, answer) = slot();
        let peer = &self.peers[usize::from(shard.0)];
        peer.send(control(reply)).await.map_err(|_| gone())?;
        answer.await.unwrap_or_else(|| Err(gone()))
    }
}

/// What runs before the shards: finds out what the directory holds.
struct Boot {
    config: Config,
    cores: usize,
    reply: Reply<Result<Superblock>>,
}

impl ShardMain for Boot {
    async fn run<D: Driver>(self, driver: D) {
        self.reply
            .send(begin_epoch(&driver, &self.config, self.cores).await);
    }

    fn refused(self, error: Error) {
        self.reply.send(Err(error));
    }
}

/// A shard's whole life.
struct Life {
    params: Params,
    requests: Receiver<Request>,
    writes: Receiver<Request>,
    control: Receiver<Control>,
    peers: Vec<Sender<Control>>,
    outcome: Outcome,
    ready: Reply<Result<Vec<Claim>>>,
}

impl ShardMain for Life {
    async fn run<D: Driver>(self, driver: D) {
        match Shard::open(driver, self.params, self.peers).await {
            Ok(shard) => {
                self.ready.send(Ok(shard.claims()));
                shard
                    .serve(self.requests, self.writes, self.control, self.outcome)
                    .await;
            }
            Err(error) => self.ready.send(Err(error)),
        }
    }

    fn refused(self, error: Error) {
        self.ready.send(Err(error));
    }
}

fn check_range(offset: u64, len: u64) -> Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= PAYLOAD_BYTES_MAX => Ok(()),
        _ if len == 0 => Ok(()),
        _ => Err(Error::invalid(format!(
            "a payload ends at 2^62 at the latest: offset={offset} len={len}"
        ))),
    }
}

fn gone() -> Error {
    Error::internal("a shard has ended unexpectedly")
}

fn needs_remote(what: &str) -> Error {
    Error::invalid(format!(
        "{what} needs a remote: set Config::remote (--remote URL)"
    ))
}
