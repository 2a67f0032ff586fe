//! Where bytes are kept: made durable here and in the remote, given up here, and what decides it.
//!
//! Invariant: nothing here changes what a payload reads as.

use super::{Store, needs_remote};
use crate::RetentionPolicy;
use crate::error::Result;
use crate::payload_id::PayloadId;
use crate::shard::request::Work;
use crate::stats::Flushed;

impl Store {
    /// Makes everything that was done to the payload before durable on this machine.
    ///
    /// # Errors
    ///
    /// `NotFound`; `Poisoned` when a write or sync that it covers failed.
    ///
    /// # Cancellation
    ///
    /// Dropped, the flush may go on, and nobody hears how it ended.
    ///
    /// # Example
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # tokio::runtime::Runtime::new()?.block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// # let store = ringstore::Store::open(ringstore::Config::new(dir.path())).await?;
    /// let id = ringstore::PayloadId::new("disk")?;
    /// store.write_at(&id, 0, "kept".into()).await?;
    /// let flushed = store.flush(&id).await?; // it survives a power cut from here on
    /// assert!(!flushed.finalized, "there is no remote");
    /// # store.close().await?;
    /// # Ok(()) }) }
    /// ```
    pub async fn flush(&self, id: &PayloadId) -> Result<Flushed> {
        self.ask(id, |reply| Work::Flush {
            id: id.clone(),
            reply,
        })
        .await
    }

    /// Makes everything that was done before durable on this machine.
    ///
    /// # Errors
    ///
    /// `Poisoned` when a write or sync that it covers failed.
    ///
    /// # Cancellation
    ///
    /// Dropped, the flush may go on, and nobody hears how it ended.
    pub async fn flush_all(&self) -> Result<()> {
        self.ask_all(Work::FlushAll).await.map(|_| ())
    }

    /// Waits until what was flushed of the payload is durable in the remote.
    ///
    /// # Errors
    ///
    /// `InvalidInput` without a remote, `NotFound`, `Unavailable` while the remote is away (uploads
    /// go on when it is back), `Poisoned` when another engine has taken the remote.
    ///
    /// # Cancellation
    ///
    /// Dropped, only the waiting ends: uploads go on.
    pub async fn wait_remote(&self, id: &PayloadId) -> Result<()> {
        self.check_open()?;
        self.check_remote("waiting for the remote")?;
        self.ask(id, |reply| Work::WaitRemote {
            id: id.clone(),
            reply,
        })
        .await
    }

    /// Waits until everything that was done before is durable in the remote; nothing to do without
    /// one.
    ///
    /// # Errors
    ///
    /// As [`Store::wait_remote`]; what can be uploaded is, whatever fails.
    ///
    /// # Cancellation
    ///
    /// Dropped, only the waiting ends: uploads go on.
    pub async fn drain_uploads(&self) -> Result<()> {
        match self.has_remote() {
            true => self.ask_all(Work::Drain).await.map(|_| ()),
            false => self.check_open(),
        }
    }

    /// Frees the payload's local bytes, once they are in the remote. Returns the bytes freed.
    ///
    /// # Errors
    ///
    /// `InvalidInput` without a remote, `NotFound`, `Unavailable` while the remote is away or
    /// eviction is disabled.
    ///
    /// # Cancellation
    ///
    /// Dropped after its first poll, it may go on; no byte is given up before the remote has it.
    pub async fn evict(&self, id: &PayloadId) -> Result<u64> {
        self.check_open()?;
        self.check_remote("evicting")?;
        self.ask(id, |reply| Work::Evict {
            id: id.clone(),
            reply,
        })
        .await
    }

    /// Drops everything from the read buffer. Returns the entries dropped.
    ///
    /// # Errors
    ///
    /// `Closed`.
    ///
    /// # Cancellation
    ///
    /// Dropped, some shards may have done it and others not.
    pub async fn evict_read_buffer(&self) -> Result<u64> {
        let dropped = self.ask_all(Work::EvictReadBuffer).await?;
        Ok(dropped.into_iter().sum())
    }

    /// Sets what may be evicted of a payload, or of all that have no policy of their own.
    ///
    /// A payload's policy is part of it: it is made durable by `flush`, is in the remote, and goes
    /// with the payload; clones have none. The other one holds until the store is closed, and then
    /// [`Config::retention`](crate::Config::retention) does. Without a remote nothing is ever
    /// evicted.
    ///
    /// # Errors
    ///
    /// `NotFound` for a missing payload; for one that is there, as [`Store::truncate`].
    ///
    /// # Cancellation
    ///
    /// Dropped, it holds or not for a payload; without one, it may hold on some shards and not on
    /// others until it is called again.
    pub async fn set_retention(
        &self,
        id: Option<&PayloadId>,
        policy: RetentionPolicy,
    ) -> Result<()> {
        match id {
            Some(id) => {
                let work = |reply| Work::SetRetention {
                    id: id.clone(),
                    policy,
                    reply,
                };
                self.ask(id, work).await
            }
            None => {
                let work = |reply| Work::SetDefaultRetention { policy, reply };
                self.ask_all(work).await.map(|_| ())
            }
        }
    }

    /// Lets eviction happen or not; without a remote there is none.
    ///
    /// # Errors
    ///
    /// `Closed`.
    ///
    /// # Cancellation
    ///
    /// Dropped, it may hold on some shards and not on others until it is called again.
    pub async fn set_eviction_enabled(&self, enabled: bool) -> Result<()> {
        let work = |reply| Work::SetEviction { enabled, reply };
        self.ask_all(work).await.map(|_| ())
    }

    fn check_remote(&self, what: &str) -> Result<()> {
        match self.has_remote() {
            true => Ok(()),
            false => Err(needs_remote(what)),
        }
    }
}
