//! Files for segments: made and zeroed ahead of need, used again, kept in reserve, removed.
//!
//! Invariants:
//! 1. A file is given to a segment only when it is durably there, with all its room.
//! 2. One file is made at a time, in the background; whoever needs one waits for it in `space`.

use super::checkpoint::checkpoint_name;
use super::space::Purpose;
use super::{Shard, State};
use crate::io::retry::is_exhausted;
use crate::io::{Driver, DriverFile, Durability, OpenMode};
use crate::marks::{mark, planted};
use std::io;

/// Bytes of zeros that are written ahead at once.
const ZERO_BYTES: usize = 1 << 20;

impl<D: Driver> Shard<D> {
    /// Makes the next segment's file ready before it is needed, where the limit allows one.
    pub(super) fn make_ahead(&self) {
        let state = self.0.state.borrow();
        let allowed = state.segments.local() < self.segments_max(&state, Purpose::Data);
        drop(state);
        if allowed {
            self.start_making(Purpose::Data);
        }
    }

    /// Makes the next segment's file ready in the background, if that is not under way.
    pub(super) fn start_making(&self, purpose: Purpose) {
        {
            let mut state = self.state();
            if state.space.making {
                return;
            }
            if state.segments.local() >= self.segments_max(&state, purpose) {
                let why = "the limit of local bytes is reached".to_owned();
                state.space.refuse(why, self.now());
                self.0.upkeep_due.notify();
                return;
            }
            if state.space.spare.is_some() && !state.lacks_reserve(purpose) {
                return;
            }
            state.space.making = true;
        }
        let shard = self.clone();
        self.0.driver.spawn(async move {
            let result = shard.make_files(purpose).await;
            let mut state = shard.state();
            state.space.making = false;
            match result {
                Ok(()) => state.space.note_progress(),
                Err(error) => {
                    state.space.disk_full |= error.kind() == io::ErrorKind::StorageFull;
                    let why = match error.kind() {
                        io::ErrorKind::StorageFull => "the file system is full".to_owned(),
                        _ => format!("a segment file could not be made: {error}"),
                    };
                    tracing::warn!(shard = shard.0.params.shard.0, %error, "no new segment file");
                    state.space.refuse(why, shard.now());
                }
            }
            drop(state);
            shard.0.room.notify();
            shard.0.upkeep_due.notify();
        });
    }

    /// Makes a file for the next segment: one that is free, or a new one. Free files are left as a
    /// reserve, and are made if there are none: on a full file system, deletes, the cleaner and
    /// checkpoints live on them.
    async fn make_files(&self, purpose: Purpose) -> io::Result<()> {
        let reserve = purpose.reserve();
        loop {
            let (free, recycled, new) = {
                let mut state = self.state();
                let state = &mut *state;
                let (free, ready) = (state.segments.files_free(), state.space.has_spare());
                if ready && free >= reserve {
                    return Ok(());
                }
                let recycled = match free > reserve && !ready {
                    true => state.segments.take_free(),
                    false => None,
                };
                (free, recycled, state.segments.new_file())
            };
            match recycled {
                Some(recycled) if self.is_whole(recycled).await => {
                    mark("recycled file reused");
                    self.state().space.spare = Some(recycled);
                }
                Some(harmed) => {
                    mark("harmed file not reused");
                    self.remove(harmed).await;
                }
                None => {
                    self.make_file(new).await?;
                    let mut state = self.state();
                    state.space.disk_full = false;
                    match state.space.has_spare() || free < reserve {
                        true => state.segments.add_free(new),
                        false => state.space.spare = Some(new),
                    }
                }
            }
        }
    }

    /// Whether a free file is there, with all its room: others may have had their hands on it.
    async fn is_whole(&self, number: u64) -> bool {
        match self.0.files.open(number).await {
            Ok(file) => {
                let bytes = self.0.params.segment_bytes();
                file.len() >= bytes || file.allocate(bytes).await.is_ok()
            }
            Err(_) => false,
        }
    }

    /// Removes a file that nothing needs. One that stays behind is found at the next opening.
    pub(super) async fn remove(&self, file: u64) -> bool {
        self.0.files.remove(file).await.is_ok()
    }

    /// Gives a full file system room for a checkpoint: the older one of two goes, or else a free
    /// file. False if there is neither.
    pub(super) async fn make_room_for_checkpoint(&self) -> bool {
        let older = self.state().upkeep.take_older();
        if let Some(older) = older {
            mark("older checkpoint given up for a checkpoint");
            let path = self.0.params.path(&checkpoint_name(older.sequence));
            return self.0.driver.unlink(&path).await.is_ok();
        }
        let file = self.state().segments.take_free();
        let Some(file) = file else { return false };
        mark("reserve given up for a checkpoint");
        self.remove(file).await
    }

    /// Makes a segment file, durably there. Nothing is left of one that could not be made.
    async fn make_file(&self, number: u64) -> io::Result<()> {
        let path = self.0.files.path(number);
        let result = self.try_make_file(number, &path).await;
        if result.is_err() {
            // If it cannot be removed either, the next opening finds it and calls it free.
            let _ = self.0.files.remove(number).await;
        }
        result
    }

    async fn try_make_file(&self, number: u64, path: &str) -> io::Result<()> {
        let file = self.0.files.open_path(path, OpenMode::CreateNew).await?;
        let bytes = self.0.params.segment_bytes();
        file.allocate(bytes).await?;
        let commits = {
            let space = &self.0.state.borrow().space;
            space.synced_bytes > space.other_bytes
        };
        if commits {
            // A durable write into a fallocated extent changes the file's metadata, too: about
            // twenty times the cost of one into a written extent. Commits pay that once, here.
            self.zero(&file, bytes).await?;
        }
        file.sync().await?;
        if !planted("directory_not_synced") {
            self.sync_dir().await?;
        }
        self.0.files.keep(number, file);
        Ok(())
    }

    /// Makes the names in the shard's directory durable. A failure concerns every name that was
    /// made meanwhile, whoever made it, and no later success takes that back.
    pub(super) async fn sync_dir(&self) -> io::Result<()> {
        let result = self.0.driver.sync_dir(&self.0.params.dir()).await;
        if let Err(error) = &result
            && !is_exhausted(error)
        {
            let error = match error.raw_os_error() {
                Some(code) => io::Error::from_raw_os_error(code),
                None => error.kind().into(),
            };
            self.poison("a sync of the shard's directory", error);
        }
        result
    }

    async fn zero(&self, file: &D::File, bytes: u64) -> io::Result<()> {
        let mut zeros = self.0.driver.pool().take(ZERO_BYTES.min(bytes as usize));
        zeros.fill(0);
        let zeros = zeros.freeze();
        let mut offset = 0;
        while offset < bytes {
            let len = (bytes - offset).min(zeros.len() as u64);
            let chunk = zeros.slice(..len as usize);
            file.write(offset, chunk, Durability::Visible).await?;
            self.state().stats.device_written_bytes += len;
            offset += len;
        }
        Ok(())
    }

    /// Whether there are files that nothing needs while the shard is at rest. Where they are made
    /// slowly, those that are ready wait for the others, and whoever needs them for all.
    pub(super) fn trimming_due(&self, state: &State) -> bool {
        state.commit.at_rest
            && !state.space.is_wanted()
            && !state.space.disk_full
            && (state.segments.files_free() > 0 || state.space.has_spare())
    }

    /// Removes free files, so that a store at rest is as small as it may be.
    pub(super) async fn trim(&self) {
        loop {
            let file = {
                let mut state = self.state();
                if !self.trimming_due(&state) {
                    return;
                }
                let spare = state.space.take_spare();
                spare
                    .into_iter()
                    .for_each(|file| state.segments.add_free(file));
                state.segments.take_free()
            };
            let Some(file) = file else { return };
            self.remove(file).await;
        }
    }
}
