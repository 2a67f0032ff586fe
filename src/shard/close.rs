//! Closing a shard: what was acknowledged is persisted, what is to be kept goes to the remote, and
//! what nothing needs is taken out of it.
//!
//! Invariants:
//! 1. All of it takes no longer than `close_timeout`.
//! 2. Closing fails for what could not be persisted or uploaded; what stays behind to be deleted is
//!    no failure, and the next opening sweeps it.

use super::Shard;
use crate::error::{Error, ErrorKind, Result};
use crate::io::Driver;
use crate::marks::mark;
use crate::upload::within;

impl<D: Driver> Shard<D> {
    /// Waits for what is under way, and closes.
    pub(super) async fn end(&self) -> Result<()> {
        let (began, timeout) = (self.now(), self.0.params.config.close_timeout);
        let ending = within(&self.0.driver, timeout, async {
            let idle = || {
                let moving = !self.0.state.borrow().moving.is_empty();
                (!moving && self.0.working.get() + self.0.writing.get() == 0).then_some(())
            };
            self.0.finished.until(idle).await;
            self.close().await
        });
        let result = ending.await.unwrap_or_else(|| Err(self.close_timed_out()));
        if result.is_ok() {
            let left = timeout.saturating_sub(self.now().since(began));
            let cleared = within(&self.0.driver, left, self.clear_remote()).await;
            if cleared.is_none() {
                let shard = self.0.params.shard.0;
                tracing::warn!(
                    shard,
                    "objects that nothing needs are left to the next opening"
                );
            }
        }
        result
    }

    /// Persists everything, so that the next opening replays nothing.
    async fn close(&self) -> Result<()> {
        self.state().closing = true;
        // What is dead is to be known as dead, by the bucket, too.
        self.lose_discarded().await;
        self.flush_all().await?;
        // A sealed segment has its checksums twice, and is not read at the next opening.
        self.seal_open().await?;
        let result = match self.checkpoint().await {
            // Everything is durable without it: the next opening reads the log's tail instead.
            Err(error) if error.kind() == ErrorKind::Full => {
                mark("closed without a checkpoint");
                let shard = self.0.params.shard.0;
                tracing::warn!(shard, %error, "closed without a checkpoint");
                self.flush_all().await
            }
            result => result,
        };
        result?;
        self.0.persisted.set(true);
        // The last checkpoint goes along, so that a node is rebuilt from it alone.
        self.published(self.last_lsn()).await?;
        let has_remote = self.0.state.borrow().tier.is_some();
        match has_remote {
            true => self.leave_checkpoint().await,
            false => Ok(()),
        }
    }

    fn close_timed_out(&self) -> Error {
        let timeout = self.0.params.config.close_timeout;
        if self.0.persisted.get() {
            let message = format!(
                "everything is on this machine, and not all in the remote after {timeout:?}: it \
                 goes on at the next opening"
            );
            return Error::new(ErrorKind::Unavailable, message);
        }
        let message =
            format!("not everything could be persisted in {timeout:?}, raise close_timeout");
        Error::new(ErrorKind::Poisoned, message)
    }
}
