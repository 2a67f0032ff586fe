//! The simulator as a place for stores: where [`crate::world::World`] meets the seeded universe.
//!
//! Invariants:
//! 1. A store's directory is a simulated disk of that name; its lock is the disk's lock, held until
//!    the last shard of the store has ended.
//! 2. A shard's tasks end with its main, as a thread's would.
//!
//! Deliberately not here: what goes wrong, and when.

use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::io::clock::Clock;
use crate::io::launch::ShardMain;
use crate::io::sim::{Disk, LockGuard, Process, Universe};
use crate::store::Store;
use crate::types::ShardId;
use crate::world::{FILES_OPEN_MAX, Resident, World};
use std::rc::Rc;

/// A process of a universe, with the disk that is a store's directory.
pub(super) struct SimWorld {
    universe: Universe,
    process: Process,
    disk: Disk,
    lock: Rc<LockGuard>,
}

impl SimWorld {
    /// Takes the directory for this process alone.
    pub(super) fn take(universe: &Universe, process: &Process, disk: &Disk) -> Result<SimWorld> {
        let lock = process.try_lock(disk).map_err(|holder| {
            Error::new(
                ErrorKind::InvalidInput,
                format!("the store is in use by another engine: process={holder}"),
            )
        })?;
        Ok(SimWorld {
            universe: universe.clone(),
            process: process.clone(),
            disk: disk.clone(),
            lock: Rc::new(lock),
        })
    }
}

impl World for SimWorld {
    fn clock(&self) -> Clock {
        Clock::Virtual(self.universe.clock())
    }

    fn files_open_max(&self, _shards: usize) -> Result<usize> {
        Ok(FILES_OPEN_MAX)
    }

    fn start<M: ShardMain>(&self, shard: ShardId, _: &Config, main: M) -> Result<Resident> {
        let driver = self.process.driver(&self.disk, shard);
        let lock = Rc::clone(&self.lock);
        drop(self.process.spawn(async move {
            main.run(driver.clone()).await;
            driver.end();
            drop(lock);
        }));
        Ok(Resident::Simulated)
    }
}

/// Opens the store on a disk, as a process.
pub(super) async fn open(
    universe: &Universe,
    process: &Process,
    disk: &Disk,
    config: Config,
) -> Result<Store> {
    config.check()?;
    let world = SimWorld::take(universe, process, disk)?;
    Store::open_in(&world, config, 1).await
}
