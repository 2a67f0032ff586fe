//! Where a store lives: on this machine, or in the simulator. It starts shards and tells the time.

use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::io::clock::Clock;
use crate::io::launch::{Launch, ShardMain, ShardThread, launch};
use crate::io::lock::DirLock;
use crate::types::ShardId;
use std::os::unix::fs::DirBuilderExt;
use std::sync::Arc;

/// Memory for reads in the arena, beside that for dirty bytes: 64 reads of 128 KiB in flight.
const READ_ARENA_BYTES: usize = 8 << 20;

/// Largest arena of a shard; what is beyond comes from the heap.
const ARENA_BYTES_MAX: usize = 64 << 20;

/// Starts the shards of one store.
pub(crate) trait World {
    /// The time that its drivers tell.
    fn clock(&self) -> Clock;

    /// Starts a shard, or what runs before the shards.
    fn start<M: ShardMain>(&self, shard: ShardId, config: &Config, main: M) -> Result<Resident>;
}

/// Something that was started; joined when the store is closed.
pub(crate) enum Resident {
    Thread(ShardThread),
    /// It lives in the simulator, which ends it.
    #[cfg(feature = "sim")]
    Simulated,
}

impl Resident {
    /// Waits until it has ended; it must have been told to.
    pub(crate) fn join(self) -> Result<()> {
        match self {
            Resident::Thread(thread) => thread.join(),
            #[cfg(feature = "sim")]
            Resident::Simulated => Ok(()),
        }
    }
}

/// This machine.
pub(crate) struct Machine {
    lock: Arc<DirLock>,
}

impl Machine {
    /// Takes the store's directory, which is made if it is missing, for this process alone.
    pub(crate) fn take(config: &Config) -> Result<Machine> {
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
        })
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

    fn start<M: ShardMain>(&self, shard: ShardId, config: &Config, main: M) -> Result<Resident> {
        let core = config
            .pin_threads
            .then(|| usize::from(shard.0) % Machine::cores());
        let share = config.dirty_bytes_max as usize / config.shards.unwrap_or(1);
        let options = Launch {
            kind: config.driver,
            root: config.dir.clone(),
            shard,
            core,
            idle_spin: config.idle_spin,
            arena_bytes: (share + READ_ARENA_BYTES).min(ARENA_BYTES_MAX),
            lock: Some(self.lock.clone()),
        };
        launch(options, main).map(Resident::Thread)
    }
}
