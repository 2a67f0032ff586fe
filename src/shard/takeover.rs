//! Taking a segment of the tail over: its bytes are read, and made durable for good.
//!
//! Invariants:
//! 1. What a process before us wrote is not durable because it can be read, nor because a sync of
//!    ours succeeds: one of theirs may have failed. Unless something proves it, it is written
//!    again.
//! 2. Nothing that may have been promised is overwritten: it is written again elsewhere, and
//!    counts there only when all of it is durable.
//!
//! Deliberately not here: which batches are good, and where the log ends; see `replay`.

use super::files::segment_name;
use super::recover::{Recovered, Recovery};
use crate::buf::AlignedBuf;
use crate::error::Result;
use crate::io::{Driver, DriverFile, Durability, OpenMode};
use crate::marks::mark;
use crate::types::PAGE;
use bytes::Bytes;
use std::io;

/// Bytes of a segment that are read at once.
const READ_BYTES: usize = 1 << 20;

impl<D: Driver> Recovery<'_, D> {
    /// Makes a segment durable where it is, with a footer if it has none yet.
    pub(super) async fn persist(
        &self,
        file: u64,
        offset: u64,
        footer: Option<Bytes>,
    ) -> Result<()> {
        let path = self.params.path(&segment_name(file));
        let persist = async {
            let file = self.driver.open(&path, OpenMode::Existing).await?;
            if let Some(footer) = footer {
                file.write(offset, footer, Durability::Visible).await?;
            }
            file.sync().await
        };
        persist.await.map_err(|error| self.failed("sealed", error))
    }

    /// Writes a segment that ends in batches that nothing proves to be durable to a new file.
    ///
    /// A sync would not do: an earlier process may have had one fail, and then a later one that
    /// succeeds says nothing about these bytes. Nor would writing them where they are: some may
    /// have
    /// been promised, and a crash can destroy what is being written. `None`: there is no space.
    pub(super) async fn copy_out(
        &self,
        from: u64,
        pages: u32,
        footer: &Bytes,
        recovered: &mut Recovered,
    ) -> Result<Option<u64>> {
        let bytes = self.read_segment(from).await?.freeze();
        let number = recovered.segments.new_file();
        let path = self.params.path(&segment_name(number));
        let end = pages as usize * PAGE;
        let copy = async {
            let file = self.driver.open(&path, OpenMode::CreateNew).await?;
            file.allocate(self.params.segment_bytes()).await?;
            for offset in (PAGE..end).step_by(READ_BYTES) {
                let piece = bytes.slice(offset..end.min(offset + READ_BYTES));
                file.write(offset as u64, piece, Durability::Visible)
                    .await?;
            }
            file.write(end as u64, footer.clone(), Durability::Visible)
                .await?;
            file.sync().await?;
            self.driver.sync_dir(&self.params.dir()).await?;
            // The head comes last: until it is there, the file counts for nothing.
            let head = bytes.slice(..PAGE);
            file.write(0, head, Durability::Synced).await
        };
        match copy.await {
            Ok(()) => {
                mark("unproven batches written again");
                Ok(Some(number))
            }
            Err(error) => {
                // The next opening calls it free if it cannot be removed.
                let _ = self.driver.unlink(&path).await;
                match error.kind() {
                    io::ErrorKind::StorageFull => Ok(None),
                    _ => Err(self.failed("sealed", error)),
                }
            }
        }
    }

    pub(super) async fn read_segment(&self, file: u64) -> Result<AlignedBuf> {
        let gone = || self.failed("read", io::ErrorKind::NotFound.into());
        let open = self.open_existing(&segment_name(file)).await?;
        let handle = open.ok_or_else(gone)?;
        let bytes = self.params.segment_bytes() as usize;
        let mut whole = self.driver.pool().take(bytes);
        let mut offset = 0;
        while offset < bytes {
            let len = (bytes - offset).min(READ_BYTES);
            let buf = self.driver.pool().take(len);
            match handle.read(offset as u64, buf).await {
                Ok(buf) => whole[offset..offset + len].copy_from_slice(&buf),
                // Unreadable sectors are judged like wrong ones: by whether they were committed.
                Err(_) => {
                    self.read_pages(&handle, offset, &mut whole[offset..offset + len])
                        .await
                }
            }
            offset += len;
        }
        Ok(whole)
    }

    async fn read_pages(&self, handle: &D::File, offset: usize, out: &mut [u8]) {
        for (index, page) in out.chunks_exact_mut(PAGE).enumerate() {
            let at = (offset + index * PAGE) as u64;
            match self.read_at(handle, at, PAGE).await {
                Ok(buf) => page.copy_from_slice(&buf),
                Err(_) => page.fill(0),
            }
        }
    }
}
