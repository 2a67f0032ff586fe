//! Reads: from the read buffer on the caller's own thread, or by asking the shard.
//!
//! Invariant: a hit waits for nobody; see `cache::table` for why it is never wrong.

use super::{Store, check_range};
use crate::chunks::Chunks;
use crate::error::{Error, ErrorKind, Result};
use crate::marks::mark;
use crate::payload_id::PayloadId;
use crate::shard::request::{LayerPart, Work, zeros};
use bytes::Buf;

impl Store {
    /// Reads `[offset, offset + len)` without copying; fewer bytes only at the payload's end.
    ///
    /// # Errors
    ///
    /// `NotFound`, `InvalidInput` past 2^62, `Corrupt` for bytes that fail their checksum.
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
    /// store.write_at(&id, 0, "hello".into()).await?;
    /// let chunks = store.read_at(&id, 1, 100).await?; // up to the end
    /// assert_eq!(chunks.into_bytes(), "ello");
    /// # store.close().await?;
    /// # Ok(()) }) }
    /// ```
    pub async fn read_at(&self, id: &PayloadId, offset: u64, len: usize) -> Result<Chunks> {
        check_range(offset, len as u64)?;
        if len == 0 {
            return self.check_open().map(|()| Chunks::new());
        }
        if let Some(chunks) = self.hit(id, offset, len) {
            return Ok(chunks);
        }
        self.ask(id, |reply| Work::Read {
            id: id.clone(),
            offset,
            len,
            reply,
        })
        .await
    }

    /// Reads into `target`, with one copy; returns how many bytes there were.
    ///
    /// Nothing behind the returned count is touched.
    ///
    /// # Errors
    ///
    /// As [`Store::read_at`].
    ///
    /// # Cancellation
    ///
    /// Dropped, `target` is as it was.
    ///
    /// # Example
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # tokio::runtime::Runtime::new()?.block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// # let store = ringstore::Store::open(ringstore::Config::new(dir.path())).await?;
    /// let id = ringstore::PayloadId::new("disk")?;
    /// store.write_at(&id, 0, "hello".into()).await?;
    /// let mut target = [0; 8];
    /// assert_eq!(store.read_into(&id, 0, &mut target).await?, 5);
    /// assert_eq!(&target, b"hello\0\0\0");
    /// # store.close().await?;
    /// # Ok(()) }) }
    /// ```
    pub async fn read_into(&self, id: &PayloadId, offset: u64, target: &mut [u8]) -> Result<usize> {
        let mut chunks = self.read_at(id, offset, target.len()).await?;
        let len = chunks.remaining();
        chunks.copy_to_slice(&mut target[..len]);
        Ok(len)
    }

    /// Reads `id`, with `source` showing through where `id` was never written.
    ///
    /// Up to the larger of the two sizes; the source shows only below the smallest size that `id`
    /// was ever truncated to. Changes neither. Either may be missing, not both.
    ///
    /// # Errors
    ///
    /// As [`Store::read_at`].
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
    /// let (disk, layer) = (PayloadId::new("disk")?, PayloadId::new("layer")?);
    /// store.write_at(&disk, 0, "below".into()).await?;
    /// store.write_at(&layer, 0, "B".into()).await?;
    /// let chunks = store.read_with_cow_source(&layer, &disk, 0, 5).await?;
    /// assert_eq!(chunks.into_bytes(), "Below");
    /// # store.close().await?;
    /// # Ok(()) }) }
    /// ```
    pub async fn read_with_cow_source(
        &self,
        id: &PayloadId,
        source: &PayloadId,
        offset: u64,
        len: usize,
    ) -> Result<Chunks> {
        check_range(offset, len as u64)?;
        if len == 0 {
            return self.check_open().map(|()| Chunks::new());
        }
        let len = len as u64;
        let upper = |reply| Work::ReadLayer {
            id: id.clone(),
            offset,
            len,
            reply,
        };
        let upper = self.ask(id, upper).await?;
        let lower = match self.size(source).await {
            Ok(size) => Some(size),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let Some(size) = upper.size.max(lower) else {
            return Err(Error::not_found());
        };
        let end = (offset + len).min(size);
        let shows = upper.cut.min(lower.unwrap_or(0));
        let mut chunks = Chunks::new();
        let mut at = offset;
        for part in upper.parts {
            match part {
                LayerPart::Bytes(bytes) => {
                    let keep = end.saturating_sub(at).min(bytes.len() as u64) as usize;
                    at += bytes.len() as u64;
                    chunks.push(bytes.slice(..keep));
                }
                LayerPart::Absent(from, len) => {
                    let until = (from + len).min(end);
                    self.show_through(source, from, until, shows, &mut chunks)
                        .await?;
                    at = from + len;
                }
            }
        }
        Ok(chunks)
    }

    /// Appends `[from, until)` as the source has it below `shows`, zeros where it has nothing.
    async fn show_through(
        &self,
        source: &PayloadId,
        from: u64,
        until: u64,
        shows: u64,
        chunks: &mut Chunks,
    ) -> Result<()> {
        let mut at = from;
        if at < until.min(shows) {
            let len = (until.min(shows) - at) as usize;
            match self.read_at(source, at, len).await {
                Ok(bytes) => {
                    at += bytes.len() as u64;
                    bytes.into_iter().for_each(|bytes| chunks.push(bytes));
                }
                // Deleted since it was asked for its size: it counts as empty.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        zeros(until.saturating_sub(at)).for_each(|zeros| chunks.push(zeros));
        Ok(())
    }

    /// What the read buffers have, if that is all of a read.
    fn hit(&self, id: &PayloadId, offset: u64, len: usize) -> Option<Chunks> {
        let began = self.0.clock.now();
        let read = |shard: usize| {
            let table = &self.0.tables[shard];
            let hit = table.read(id, offset, len)?;
            mark("hit served");
            table.hits.note(hit.chunks.len(), began, self.0.clock.now());
            if hit.at_edge {
                self.tell_edge(shard, id, offset, len as u64);
            }
            Some(hit.chunks)
        };
        let (home, other) = self.0.routes.guesses(id);
        read(home).or_else(|| read(other?))
    }

    /// Lets the shard know that a reader will soon need more than was read ahead: once a window,
    /// and only if its mailbox has room.
    fn tell_edge(&self, shard: usize, id: &PayloadId, offset: u64, len: u64) {
        let id = id.clone();
        let work = Work::AtEdge { id, offset, len };
        self.0.shards[shard].others.offer(self.request(work));
    }
}
