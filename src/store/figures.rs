//! What the handle tells of the store: figures, health, what is bad, and the log's segments.
//!
//! Invariant: nothing here changes anything.

use super::Store;
use crate::error::{Error, ErrorKind, Result};
use crate::shard::request::{Control, Work};
use crate::stats::{
    Health, HealthStatus, LatencySnapshot, Segment, SegmentDump, Stats, VerifyReport,
};
use crate::sync::slot::slot;

impl Store {
    /// Reads and checks every live byte in every tier that has it, past all caches, and makes anew
    /// what is bad in one of them and good in the other: pages of the local files, or, of objects
    /// in the remote, all that is live in them, under another name. What is in the remote is
    /// fetched for that.
    ///
    /// # Errors
    ///
    /// `Closed`; `Unavailable` where bytes are in the remote only, or bad here, and it is away.
    /// Bad bytes are in the report.
    ///
    /// # Cancellation
    ///
    /// Dropped, the shards may go on reading to the end of it, and repair what they find bad.
    pub async fn verify(&self) -> Result<VerifyReport> {
        let mut report = VerifyReport::default();
        for shard in self.ask_all(Work::Verify).await? {
            report.payloads += shard.payloads;
            report.bytes_checked += shard.bytes_checked;
            report.remote_bytes_checked += shard.remote_bytes_checked;
            report.remote_bytes_unreachable += shard.remote_bytes_unreachable;
            report.bytes_repaired += shard.bytes_repaired;
            report.corrupt.extend(shard.corrupt);
        }
        Ok(report)
    }

    /// The store's figures.
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
    /// let id = ringstore::PayloadId::new("disk")?;
    /// store.truncate(&id, 10).await?;
    /// let stats = store.stats().await?;
    /// assert_eq!((stats.file_count, stats.used_size), (1, 10));
    /// # store.close().await?;
    /// # Ok(()) }) }
    /// ```
    pub async fn stats(&self) -> Result<Stats> {
        let mut stats = Stats::default();
        let shards = self.ask_all(Work::Stats).await?;
        for shard in &shards {
            stats.merge(shard);
        }
        stats.per_shard = shards;
        // What was divided among the shards is given whole.
        let config = &self.0.config;
        stats.local_disk_max = config.local_bytes_max.unwrap_or(0);
        stats.local_mem_max = config.dirty_bytes_max;
        stats.read_buffer_max = config.read_buffer_bytes;
        if config.local_bytes_max.is_none()
            && let Ok(below) = nix::sys::statvfs::statvfs(&config.dir)
        {
            let unit = below.fragment_size();
            stats.total_size = below.blocks() * unit;
            stats.available_size = below.blocks_available() * unit;
        }
        Ok(stats)
    }

    /// How long operations took since the store was opened.
    ///
    /// # Errors
    ///
    /// `Closed`.
    ///
    /// # Cancellation
    ///
    /// Dropped, it has changed nothing.
    pub async fn latency(&self) -> Result<LatencySnapshot> {
        let mut latency = LatencySnapshot::empty();
        for shard in self.ask_all(Work::Latency).await? {
            latency.merge(&shard);
        }
        Ok(latency)
    }

    /// How well the store can do its work; never fails.
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
    /// assert_eq!(store.health().await.status, ringstore::HealthStatus::Healthy);
    /// # store.close().await?;
    /// # Ok(()) }) }
    /// ```
    pub async fn health(&self) -> Health {
        let unknown = || Health {
            status: HealthStatus::Unknown,
            local: HealthStatus::Unknown,
            remote: None,
            reasons: vec!["the store is closed".to_owned()],
        };
        let mut answers = Vec::new();
        for shard in &self.0.shards {
            let (reply, answer) = slot();
            // Not behind the operations of a full or slow store: by the way that shards talk.
            let sent = shard.control.send(Control::Health(reply)).await;
            answers.push(sent.is_ok().then_some(answer));
        }
        let mut shards = Vec::new();
        for answer in answers {
            match answer {
                Some(answer) => shards.extend(answer.await),
                None => continue,
            }
        }
        if shards.is_empty() {
            return unknown();
        }
        if shards.len() < self.0.shards.len() {
            shards.push(Health {
                status: HealthStatus::Unhealthy,
                local: HealthStatus::Unhealthy,
                remote: None,
                reasons: vec!["a shard has ended".to_owned()],
            });
        }
        let local = worst(shards.iter().map(|shard| shard.local));
        let local = local.unwrap_or(HealthStatus::Unknown);
        // All shards share one remote: what one of them says of it, all do.
        let remote = worst(shards.iter().filter_map(|shard| shard.remote));
        let mut reasons: Vec<String> = Vec::new();
        for reason in shards.into_iter().flat_map(|shard| shard.reasons) {
            if !reasons.contains(&reason) {
                reasons.push(reason);
            }
        }
        Health {
            status: worst([local].into_iter().chain(remote)).unwrap_or(local),
            local,
            remote,
            reasons,
        }
    }

    /// The segment files of every shard, oldest first, then the free ones.
    ///
    /// # Errors
    ///
    /// `Closed`.
    ///
    /// # Cancellation
    ///
    /// Dropped, it has changed nothing.
    pub async fn segments(&self) -> Result<Vec<Segment>> {
        let shards = self.ask_all(Work::Segments).await?;
        Ok(shards.into_iter().flatten().collect())
    }

    /// Reads a segment's batches and their records from its file.
    ///
    /// What of an open segment is still on its way to the file is not there.
    ///
    /// # Errors
    ///
    /// `NotFound` if the shard holds no segment of this number, `InvalidInput` if there is no such
    /// shard, `Corrupt` if the file cannot be read.
    ///
    /// # Cancellation
    ///
    /// Dropped, it has changed nothing.
    pub async fn dump_segment(&self, shard: u64, number: u64) -> Result<SegmentDump> {
        let index = usize::try_from(shard).unwrap_or(usize::MAX);
        let Some(mailboxes) = self.0.shards.get(index) else {
            let shards = self.0.shards.len();
            let message = format!("no such shard: shard={shard} shards={shards}");
            return Err(Error::new(ErrorKind::InvalidInput, message));
        };
        let (reply, answer) = slot();
        let request = self.request(Work::DumpSegment { number, reply });
        let sent = mailboxes.others.send(request).await;
        sent.map_err(|_| Error::closed())?;
        answer.await.unwrap_or_else(|| Err(Error::closed()))
    }
}

/// The worst of several states.
fn worst(all: impl IntoIterator<Item = HealthStatus>) -> Option<HealthStatus> {
    let rank = |status: &HealthStatus| match status {
        HealthStatus::Unhealthy => 3,
        HealthStatus::Unknown => 2,
        HealthStatus::Degraded => 1,
        HealthStatus::Healthy => 0,
    };
    all.into_iter().max_by_key(rank)
}
