//! The handle: checks arguments, asks the shard that owns the payload, awaits its answer.
//!
//! Invariants:
//! 1. Nothing is sent to a shard before its arguments are known to be good.
//! 2. What is sent is done whole or not at all, whether or not anybody still waits for the answer.
//! 3. No lock is held across an await, and no memory of the caller is ever handed to the kernel.

mod figures;
mod keep;
mod opening;
mod read;
mod remote;
mod write;

use crate::cache::table::Table;
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::io::clock::Clock;
use crate::payload_id::PayloadId;
use crate::shard::request::{Answers, Request, Work};
use crate::shard::{Answer, Control, Outcome, Routes};
use crate::stats::Extent;
use crate::sync::mailbox::Sender;
use crate::sync::slot::{Reply, slot};
use crate::sync::{self, Mutex};
use crate::types::PAYLOAD_BYTES_MAX;
use crate::world::Resident;
use std::collections::BTreeSet;
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
        opening::open(config).await
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
        opening::rebuild(config).await
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
