//! Taking a segment of the tail over: its bytes are read, and made durable for good.
//!
//! Invariants:
//! 1. What a process before us wrote is not durable because it can be read, nor because a sync of
//!    ours succeeds: one of theirs may have failed. Unless something proves it, it is written
//!    again.
//! 2. Nothing that may have been promised is overwritten while there is room: it is written again
//!    elsewhere, and counts there only when all of it is durable. On a full file system it is
//!    overwritten with the same bytes, so that a crash finds either.
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
    /// Makes a segment durable where it is, after writing some pieces of it.
    pub(super) async fn persist(&self, file: u64, pieces: Vec<(u64, Bytes)>) -> Result<()> {
        let path = self.params.path(&segment_name(file));
        let persist = async {
            let file = self.driver.open(&path, OpenMode::Existing).await?;
            for (offset, piece) in pieces {
                file.write(offset, piece, Durability::Visible).await?;
            }
            file.sync().await
        };
        persist.await.map_err(|error| self.failed("sealed", error))
    }

    /// Writes a segment that ends in batches that nothing proves to be durable to a new file.
    ///
    /// A sync would not do: an earlier process may have had one fail, and then a later one that
    /// succeeds says nothing about these bytes. `None`: there is no space.
    pub(super) async fn copy_out(
        &self,
        bytes: &Bytes,
        footer: &(u64, Bytes),
        recovered: &mut Recovered,
    ) -> Result<Option<u64>> {
        let number = recovered.segments.new_file();
        let path = self.params.path(&segment_name(number));
        let copy = async {
            let file = self.driver.open(&path, OpenMode::CreateNew).await?;
            file.allocate(self.params.segment_bytes()).await?;
            for (offset, piece) in pieces(bytes, PAGE as u64) {
                file.write(offset, piece, Durability::Visible).await?;
            }
            file.write(footer.0, footer.1.clone(), Durability::Visible)
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
                Err(_) => {
                    self.unread.set(true);
                    page.fill(0);
                }
            }
        }
    }
}

/// The bytes of a segment from an offset on, in pieces to be written.
pub(super) fn pieces(bytes: &Bytes, from: u64) -> impl Iterator<Item = (u64, Bytes)> {
    let starts = (from as usize..bytes.len()).step_by(READ_BYTES);
    starts.map(|start| {
        let end = bytes.len().min(start + READ_BYTES);
        (start as u64, bytes.slice(start..end))
    })
}
