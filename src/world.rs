//! Where a store lives: on this machine, or in the simulator. It starts shards and tells the time.

use crate::config::{Config, RemoteConfig};
use crate::error::{Error, ErrorKind, Result};
use crate::io::clock::Clock;
use crate::io::launch::{Launch, ShardMain, ShardThread, launch};
use crate::io::lock::DirLock;
use crate::types::ShardId;
use crate::upload::thread::UploaderThread;
use crate::upload::{self, Uploader};
use nix::sys::resource::{Resource, getrlimit};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

/// Memory for reads in the arena, beside that for dirty bytes: 64 reads of 128 KiB in flight.
const READ_ARENA_BYTES: usize = 8 << 20;

/// Largest arena of a shard; what is beyond comes from the heap.
const ARENA_BYTES_MAX: usize = 64 << 20;

/// Files that a shard keeps open at most: what a few GiB lie in, and far below the usual limit of
/// 1,024 descriptors.
pub(crate) const FILES_OPEN_MAX: usize = 128;

/// Descriptors without which a shard cannot work: its ring, its bell, the directory; the open
/// segment, one that is read, and one that is made.
const SHARD_DESCRIPTORS: usize = 6;

/// Descriptors that are left alone: for the directories that are synced, and for the process.
const SPARE_DESCRIPTORS: usize = 4;

/// Starts the shards of one store.
pub(crate) trait World {
    /// The time that its drivers tell.
    fn clock(&self) -> Clock;

    /// Files that each of so many shards may keep open; fails where there are too few descriptors.
    fn files_open_max(&self, shards: usize) -> Result<usize>;

    /// Starts a shard, or what runs before the shards.
    fn start<M: ShardMain>(&self, shard: ShardId, config: &Config, main: M) -> Result<Resident>;

    /// Starts the uploader of a store that has a remote.
    fn start_uploader(&self, config: &RemoteConfig, uploader: Uploader) -> Result<Resident>;
}

/// Something that was started; joined when the store is closed.
pub(crate) enum Resident {
    Thread(ShardThread),
    Uploader(UploaderThread),
    /// It lives in the simulator, which ends it.
    #[cfg(feature = "sim")]
    Simulated,
}

impl Resident {
    /// Waits until it has ended; it must have been told to.
    pub(crate) fn join(self) -> Result<()> {
        match self {
            Resident::Thread(thread) => thread.join(),
            Resident::Uploader(thread) => thread.join(),
            #[cfg(feature = "sim")]
            Resident::Simulated => Ok(()),
        }
    }
}

/// This machine.
pub(crate) struct Machine {
    lock: Arc<DirLock>,
    /// Whether the store's directory was not there before.
    made: bool,
}

impl Machine {
    /// Takes the store's directory, which is made if it is missing, for this process alone.
    pub(crate) fn take(config: &Config) -> Result<Machine> {
        // Before anything is opened, for the lock and for the shard that reads the directory first.
        descriptors_left(config.shards.unwrap_or(1))?;
        let made = !config.dir.exists();
        let mut builder = std::fs::DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o700)
            .create(&config.dir)
            .map_err(|error| {
                let dir = config.dir.display();
                let message =
                    format!("the store's directory cannot be made: dir={dir} cause={error}");
                Error::with_source(ErrorKind::InvalidInput, message, error)
            })?;
        Ok(Machine {
            lock: Arc::new(DirLock::acquire(&config.dir)?),
            made,
        })
    }

    /// Gives the directory back as it was, if nothing has come into it.
    pub(crate) fn give_back(self, dir: &Path) {
        if self.lock.remove_alone(dir) && self.made {
            // Somebody may have put something there since.
            let _ = std::fs::remove_dir(dir);
        }
    }

    /// Cores that this process may use.
    pub(crate) fn cores() -> usize {
        std::thread::available_parallelism().map_or(1, usize::from)
    }
}

impl World for Machine {
    fn clock(&self) -> Clock {
        Clock::Real
    }

    fn files_open_max(&self, shards: usize) -> Result<usize> {
        let left = descriptors_left(shards)?;
        // Half of what is left, so that reads of files that are not kept do not wait for them.
        Ok((left / 2 / shards).clamp(1, FILES_OPEN_MAX))
    }

    fn start<M: ShardMain>(&self, shard: ShardId, config: &Config, main: M) -> Result<Resident> {
        let core = config
            .pin_threads
            .then(|| usize::from(shard.0) % Machine::cores());
        let share = config.dirty_bytes_max as usize / config.shards.unwrap_or(1);
        let arena_bytes = match M::MOVES_MUCH {
            true => (share + READ_ARENA_BYTES).min(ARENA_BYTES_MAX),
            false => 0,
        };
        let options = Launch {
            kind: config.driver,
            root: config.dir.clone(),
            shard,
            core,
            idle_spin: config.idle_spin,
            arena_bytes,
            lock: Some(self.lock.clone()),
        };
        launch(options, main).map(Resident::Thread)
    }

    fn start_uploader(&self, config: &RemoteConfig, uploader: Uploader) -> Result<Resident> {
        upload::thread::start(config.clone(), uploader).map(Resident::Uploader)
    }
}

/// Descriptors that are left when so many shards have what they cannot work without.
fn descriptors_left(shards: usize) -> Result<usize> {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let used = match std::fs::read_dir("/proc/self/fd") {
        // The directory that is being read is one of them.
        Ok(open) => open.count().saturating_sub(1),
        Err(error) if error.raw_os_error() == Some(nix::libc::EMFILE) => limit,
        // Without /proc none is known.
        Err(_) => 0,
    };
    let needed = used + SPARE_DESCRIPTORS + shards * SHARD_DESCRIPTORS;
    limit.checked_sub(needed).ok_or_else(|| {
        let message = format!(
            "too few file descriptors, raise `ulimit -n`: limit={limit} in_use={used} \
             needed={needed}"
        );
        Error::new(ErrorKind::Full, message)
    })
}
