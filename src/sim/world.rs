//! The simulator as a place for stores: where [`crate::world::World`] meets the seeded universe.
//!
//! Invariants:
//! 1. A store's directory is a simulated disk of that name; its lock is the disk's lock, held until
//!    the last shard of the store has ended.
//! 2. A shard's tasks end with its main, as a thread's would.
//!
//! Deliberately not here: what goes wrong, and when.

use super::bucket::Bucket;
use crate::config::{Config, RemoteConfig};
use crate::error::{Error, ErrorKind, Result};
use crate::io::clock::Clock;
use crate::io::launch::ShardMain;
use crate::io::sim::{Disk, LockGuard, Process, Universe};
use crate::store::Store;
use crate::types::ShardId;
use crate::upload::Uploader;
use crate::world::{FILES_OPEN_MAX, Resident, World};
use std::rc::Rc;

/// A process of a universe, with the disk that is a store's directory.
pub(super) struct SimWorld {
    universe: Universe,
    process: Process,
    disk: Disk,
    /// What every remote that a store is opened with is.
    bucket: Option<Bucket>,
    lock: Rc<LockGuard>,
}

impl SimWorld {
    /// Takes the directory for this process alone.
    pub(super) fn take(
        universe: &Universe,
        process: &Process,
        disk: &Disk,
        bucket: Option<&Bucket>,
    ) -> Result<SimWorld> {
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
            bucket: bucket.cloned(),
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

    fn start_uploader(&self, _: &RemoteConfig, uploader: Uploader) -> Result<Resident> {
        let Some(bucket) = self.bucket.clone() else {
            return Err(Error::invalid("this machine has no remote"));
        };
        let driver = self.process.driver(&self.disk, UPLOADER);
        drop(self.process.spawn(async move {
            uploader.run(driver.clone(), Rc::new(bucket)).await;
            driver.end();
        }));
        Ok(Resident::Simulated)
    }
}

/// The driver that gives the uploader time and tasks, and no file to touch.
const UPLOADER: ShardId = ShardId(u16::MAX);

/// Opens the store on a disk, as a process.
pub(super) async fn open(
    universe: &Universe,
    process: &Process,
    disk: &Disk,
    bucket: Option<&Bucket>,
    config: Config,
) -> Result<Store> {
    config.check()?;
    let world = SimWorld::take(universe, process, disk, bucket)?;
    Store::open_in(&world, config, 1).await
}

/// Brings the store of a bucket up on an empty disk, as a process.
pub(super) async fn rebuild(
    universe: &Universe,
    process: &Process,
    disk: &Disk,
    bucket: Option<&Bucket>,
    config: Config,
) -> Result<Store> {
    config.check()?;
    let world = SimWorld::take(universe, process, disk, bucket)?;
    Store::rebuild_in(&world, config, 1).await
}
