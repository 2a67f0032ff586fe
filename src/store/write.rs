//! What changes payloads: each a request to the shard that owns it.
//!
//! Invariant: a change happens whole or not at all, whether or not anybody waits for its answer.

use super::{Store, check_range};
use crate::error::{Error, Result};
use crate::payload_id::PayloadId;
use crate::shard::request::Work;
use crate::types::PAYLOAD_BYTES_MAX;
use bytes::Bytes;

impl Store {
    /// Writes `data` at `offset`; every read that begins after it returned sees it.
    ///
    /// Creates the payload. Durable after the next [`Store::flush`]. A full store holds the writer
    /// back.
    ///
    /// # Errors
    ///
    /// `InvalidInput` past 2^62, `Full` after `Config::stall_timeout` without room, `Poisoned`.
    ///
    /// # Cancellation
    ///
    /// Dropped after its first poll, the write happens whole or not at all.
    ///
    /// # Example
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # tokio::runtime::Runtime::new()?.block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// # let store = ringstore::Store::open(ringstore::Config::new(dir.path())).await?;
    /// let id = ringstore::PayloadId::new("disk")?;
    /// store.write_at(&id, 1 << 40, "far out".into()).await?;
    /// assert_eq!(store.size(&id).await?, (1 << 40) + 7);
    /// # store.close().await?;
    /// # Ok(()) }) }
    /// ```
    pub async fn write_at(&self, id: &PayloadId, offset: u64, data: Bytes) -> Result<()> {
        check_range(offset, data.len() as u64)?;
        if data.is_empty() {
            return self.check_open();
        }
        self.ask(id, |reply| Work::Write {
            id: id.clone(),
            offset,
            data: data.clone(),
            reply,
        })
        .await
    }

    /// Makes `[offset, offset + len)` read zero and frees its pages; the size stays.
    ///
    /// # Errors
    ///
    /// `NotFound`, `InvalidInput` past 2^62, `Poisoned`.
    ///
    /// # Cancellation
    ///
    /// Dropped after its first poll, it happens whole or not at all.
    ///
    /// # Example
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # tokio::runtime::Runtime::new()?.block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// # let store = ringstore::Store::open(ringstore::Config::new(dir.path())).await?;
    /// let id = ringstore::PayloadId::new("disk")?;
    /// store.write_at(&id, 0, vec![7; 8192].into()).await?;
    /// store.punch_hole(&id, 0, 4096).await?;
    /// assert_eq!(store.read_at(&id, 4095, 2).await?.into_bytes(), [0, 7].as_slice());
    /// # store.close().await?;
    /// # Ok(()) }) }
    /// ```
    pub async fn punch_hole(&self, id: &PayloadId, offset: u64, len: u64) -> Result<()> {
        check_range(offset, len)?;
        if len == 0 {
            return self.check_open();
        }
        self.ask(id, |reply| Work::Punch {
            id: id.clone(),
            offset,
            len,
            reply,
        })
        .await
    }

    /// Sets the size; what is cut off is gone for good, what is added reads zero.
    ///
    /// Creates a payload that is missing.
    ///
    /// # Errors
    ///
    /// `InvalidInput` past 2^62, `Full`, `Poisoned`.
    ///
    /// # Cancellation
    ///
    /// Dropped after its first poll, it happens whole or not at all.
    ///
    /// # Example
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # tokio::runtime::Runtime::new()?.block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// # let store = ringstore::Store::open(ringstore::Config::new(dir.path())).await?;
    /// let id = ringstore::PayloadId::new("disk")?;
    /// store.truncate(&id, 1 << 30).await?;
    /// assert_eq!(store.read_at(&id, 1 << 20, 1).await?.into_bytes(), [0].as_slice());
    /// # store.close().await?;
    /// # Ok(()) }) }
    /// ```
    pub async fn truncate(&self, id: &PayloadId, size: u64) -> Result<()> {
        if size > PAYLOAD_BYTES_MAX {
            return Err(Error::invalid(format!(
                "a payload ends at 2^62 at the latest: size={size}"
            )));
        }
        self.ask(id, |reply| Work::Truncate {
            id: id.clone(),
            size,
            reply,
        })
        .await
    }

    /// Makes `target` what `source` is now, sharing its bytes. Returns the blocks shared.
    ///
    /// Atomic, also across a crash, and independent of how many bytes there are.
    ///
    /// # Errors
    ///
    /// `NotFound` for a missing source, with the target untouched; `Full`, `Poisoned`.
    ///
    /// # Cancellation
    ///
    /// Dropped after its first poll, it happens whole or not at all.
    ///
    /// # Example
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # tokio::runtime::Runtime::new()?.block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// # let store = ringstore::Store::open(ringstore::Config::new(dir.path())).await?;
    /// use ringstore::PayloadId;
    /// let (disk, clone) = (PayloadId::new("disk")?, PayloadId::new("clone")?);
    /// store.write_at(&disk, 0, "both have it".into()).await?;
    /// store.copy(&disk, &clone).await?;
    /// store.truncate(&disk, 0).await?;
    /// assert_eq!(store.read_at(&clone, 0, 4).await?.into_bytes(), "both");
    /// # store.close().await?;
    /// # Ok(()) }) }
    /// ```
    pub async fn copy(&self, source: &PayloadId, target: &PayloadId) -> Result<u64> {
        let work = |reply| Work::Copy {
            source: source.clone(),
            target: target.clone(),
            reply,
        };
        self.ask(source, work).await
    }

    /// Removes a payload; removing a missing one succeeds.
    ///
    /// # Errors
    ///
    /// `Full`, `Poisoned`; the payload is intact then.
    ///
    /// # Cancellation
    ///
    /// Dropped after its first poll, it happens whole or not at all.
    pub async fn delete(&self, id: &PayloadId) -> Result<()> {
        self.ask(id, |reply| Work::Delete {
            id: id.clone(),
            reply,
        })
        .await
    }
}
