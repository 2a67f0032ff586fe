//! Machines that are lost with their disks, and what is rebuilt from the remote.
//!
//! Invariants:
//! 1. A rebuild finds each payload at one point of its own order, at or after what was known to be
//!    in the remote.
//! 2. A machine that was taken for dead and is not can make nobody believe anything.

use super::bucket::{Bucket, BucketFaults};
use super::run::{End, Flow, Run, failed};
use super::world;
use crate::error::ErrorKind;
use crate::marks::mark;
use crate::stats::HealthStatus;
use bytes::Bytes;
use std::time::Duration;

/// Virtual time after which everything that was late has come.
pub(super) const LATE: Duration = Duration::from_secs(30);

/// Virtual seconds in which a remote that is back is noticed.
const BACK_S: u64 = 120;

/// Tries of a rebuild that has no reason to fail any more.
const TRIES: u32 = 3;

impl Run {
    /// Lets go wrong with the remote what the plan wants.
    pub(super) fn trouble_bucket(&self) {
        if let Some(bucket) = &self.bucket {
            bucket.set_faults(self.bucket_faults.clone());
            if self.bucket_faults != BucketFaults::default() {
                self.shared.is_bucket_bad.set(true);
            }
        }
    }

    /// Makes the remote well, and waits until the store knows.
    pub(super) fn calm_bucket(&self) -> Flow<()> {
        let Some(bucket) = &self.bucket else {
            return Ok(());
        };
        bucket.set_faults(BucketFaults::default());
        bucket.set_away(false);
        let Some(store) = self.store.clone() else {
            return Ok(());
        };
        for _ in 0..BACK_S {
            let failing = bucket.is_failing();
            let health = self.within("asking for health", store.health())?;
            if !failing && health.remote != Some(HealthStatus::Degraded) {
                return Ok(());
            }
            let second = self.universe.sleep(Duration::from_secs(1));
            self.within("waiting for the remote", second)?;
        }
        Err(failed(
            "the remote is back, and the store does not know".to_owned(),
        ))
    }

    /// Bytes of the objects that hold payloads' bytes.
    pub(super) fn bytes_in_bucket(&self) -> u64 {
        self.bucket.as_ref().map_or(0, Bucket::data_bytes)
    }

    /// The machine is lost with its disk, and another takes its place.
    pub(super) fn lose_machine(&mut self, zombie: bool) -> Flow<()> {
        if self.bucket.is_none() {
            return Ok(());
        }
        mark("machine lost");
        self.outcome.crashes += 1;
        let old = self.store.take();
        if !zombie {
            self.process.kill();
        }
        self.process = self.universe.process();
        self.machines += 1;
        let disk = self.universe.disk(&format!("disk-{}", self.machines));
        self.exchange_disk(disk);
        let rebuilt = self.rebuild()?;
        if let (true, true, Some(old)) = (zombie, rebuilt, old) {
            self.tempt(&old)?;
        }
        self.compare_rebuilt()
    }

    /// False: there was nothing to rebuild from, and a new store has begun.
    fn rebuild(&mut self) -> Flow<bool> {
        let mut tries = 0;
        loop {
            let (universe, process) = (self.universe.clone(), self.process.clone());
            let (disk, bucket) = (self.disk.clone(), self.bucket.clone());
            let config = self.config();
            let rebuilding = world::rebuild(&universe, &process, &disk, bucket.as_ref(), config);
            let error = match self.within("rebuilding the store", rebuilding)? {
                Ok(store) => {
                    self.store = Some(store);
                    return Ok(true);
                }
                Err(error) => error,
            };
            if error.kind() == ErrorKind::InvalidInput && tries >= TRIES {
                // Nothing ever came to count: a new store begins, with a remote of its own.
                mark("nothing to rebuild from");
                self.bucket = Some(Bucket::new(&self.universe, u64::from(tries)));
                self.trouble_bucket();
                return self.open().map(|()| false);
            }
            if tries >= 2 * TRIES {
                return Err(failed(format!("the store is not rebuilt: {error:?}")));
            }
            tries += 1;
            self.process.kill();
            self.process = self.universe.process();
            self.disk.set_faults(Default::default());
            if let Some(bucket) = &self.bucket {
                bucket.set_faults(BucketFaults::default());
                bucket.set_away(false);
            }
            self.within("waiting", self.universe.sleep(LATE))?;
        }
    }

    /// Lets a machine that was given up write, and tell whether it believes that this counts.
    fn tempt(&self, old: &crate::store::Store) -> Flow<()> {
        let id = self.shared.ids[0].clone();
        let tempting = async {
            // Whether the old machine still can write is its own affair.
            old.write_at(&id, 0, Bytes::from_static(b"zombie")).await?;
            old.wait_remote(&id).await
        };
        match self.within("tempting the old machine", tempting)? {
            Ok(()) => Err(failed(
                "a machine that lost the remote believes that its write is in it".to_owned(),
            )),
            Err(error) if error.kind() == ErrorKind::Poisoned => {
                mark("zombie fenced");
                Ok(())
            }
            Err(_) => Ok(()),
        }
    }

    fn compare_rebuilt(&mut self) -> Flow<()> {
        self.calm_bucket()?;
        for payload in 0..self.shared.ids.len() {
            let states = self.shared.model.borrow().after_loss(payload);
            let seen = self.observe("rebuild", payload, &states)?;
            let mut model = self.shared.model.borrow_mut();
            if !model.rebuilt(payload, |state| seen.fits(state)) {
                let id = &self.shared.ids[payload];
                let why = seen.explain(&self.shared, &states);
                return Err(End::Failed(format!(
                    "rebuild: {id} is in no state that the remote may have: {why}"
                )));
            }
        }
        self.compare_list("rebuild")?;
        self.trouble_bucket();
        Ok(())
    }
}
