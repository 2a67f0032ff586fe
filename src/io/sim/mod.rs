//! The simulated universe: virtual time, a scheduler, processes and disks, all from one seed.
//!
//! The shard's real code runs here on [`SimDriver`]. A seed replays a run bit for bit; the trace
//! hash proves it.
//!
//! Invariants:
//! 1. Nothing depends on anything but the seed and what the caller does: no real clock, no address,
//!    no hasher that differs from run to run, one thread.
//! 2. A driver belongs to a process. A killed process runs no further instruction, submits nothing,
//!    and hears of nothing; what it had completed stays.
//! 3. The first handle owns the universe: with it everything ends, so that handles which tasks hold
//!    keep nothing alive.
//!
//! Deliberately not here: workloads, models, the remote, what is right. This is the stage only.

mod disk;
mod driver;
mod faults;
mod hands;
mod image;
mod names;
mod platter;
mod runtime;
mod serve;
mod task;
#[cfg(test)]
mod tests;

#[allow(unused_imports, reason = "harnesses name what they need")]
pub(crate) use disk::{Damage, DamageKind, Disk};
#[allow(unused_imports, reason = "harnesses name what they need")]
pub(crate) use driver::{SimDriver, SimFile};
#[allow(unused_imports, reason = "harnesses name what they need")]
pub(crate) use faults::{DiskFaults, Grain, Latency, Span, Tear};
#[allow(unused_imports, reason = "harnesses name what they need")]
pub(crate) use hands::DiskImage;
#[allow(unused_imports, reason = "harnesses name what they need")]
pub(crate) use platter::CrashReport;
#[allow(unused_imports, reason = "harnesses name what they need")]
pub(crate) use runtime::{Counters, Stop};
#[allow(unused_imports, reason = "harnesses name what they need")]
pub(crate) use task::JoinHandle;

use crate::buf::BufPool;
use crate::types::{Nanos, ShardId};
use faults::{Fates, mix};
use runtime::{Group, Runtime};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

/// A seeded universe. Clones are handles to it; it ends when the first handle is dropped.
pub(crate) struct Universe {
    world: Rc<World>,
    is_owner: bool,
}

struct World {
    seed: u64,
    runtime: Rc<Runtime>,
    pool: BufPool,
    disks: RefCell<BTreeMap<String, Disk>>,
    processes: RefCell<Vec<Rc<Group>>>,
    process_last: Cell<u64>,
    driver_last: Cell<u64>,
}

impl Clone for Universe {
    fn clone(&self) -> Universe {
        Universe {
            world: Rc::clone(&self.world),
            is_owner: false,
        }
    }
}

impl Drop for Universe {
    fn drop(&mut self) {
        if self.is_owner {
            self.world.end();
        }
    }
}

impl World {
    fn end(&self) {
        for process in self.processes.take() {
            process.die();
        }
        self.runtime.close();
        for disk in self.disks.take().into_values() {
            disk.cut_ops();
        }
    }
}

impl Universe {
    pub(crate) fn new(seed: u64) -> Universe {
        let world = World {
            seed,
            runtime: Runtime::new(seed),
            pool: BufPool::new(),
            disks: RefCell::default(),
            processes: RefCell::default(),
            process_last: Cell::new(0),
            driver_last: Cell::new(0),
        };
        Universe {
            world: Rc::new(world),
            is_owner: true,
        }
    }

    pub(crate) fn seed(&self) -> u64 {
        self.world.seed
    }

    pub(crate) fn now(&self) -> Nanos {
        self.world.runtime.now()
    }

    /// The clock, in nanoseconds, for code that may leave this thread.
    pub(crate) fn clock(&self) -> Arc<AtomicU64> {
        self.world.runtime.clock()
    }

    /// Completes exactly when `span` has passed since its first poll.
    pub(crate) fn sleep(&self, span: Duration) -> impl Future<Output = ()> + 'static {
        task::sleep(&self.world.runtime, span, 0)
    }

    /// Starts a task that belongs to no process: a client, a referee.
    pub(crate) fn spawn<T: 'static>(
        &self,
        task: impl Future<Output = T> + 'static,
    ) -> JoinHandle<T> {
        let runtime = &self.world.runtime;
        task::spawn_joined(runtime, runtime.root(), task)
    }

    /// Runs until `future` is done. What is under way when it stops stays so, and a later run goes
    /// on; pass `future` by pinned reference to go on with it too.
    pub(crate) fn run_until<F: Future>(&self, future: F) -> Result<F::Output, Stop> {
        self.world.runtime.run(future, None)
    }

    /// The same, for no longer than `limit` of virtual time.
    pub(crate) fn run_until_within<F: Future>(
        &self,
        limit: Duration,
        future: F,
    ) -> Result<F::Output, Stop> {
        let deadline = self.now().after(limit);
        self.world.runtime.run(future, Some(deadline))
    }

    /// Lets `span` of virtual time pass.
    pub(crate) fn run_for(&self, span: Duration) -> Result<(), Stop> {
        self.run_until(self.sleep(span))
    }

    /// Stops the run that is about to complete the `io`-th I/O of this universe, counted from 1,
    /// before it completes. The run after that completes it. `None` disarms.
    pub(crate) fn stop_at_io(&self, io: Option<u64>) {
        self.world.runtime.stop_at_io(io);
    }

    /// How many I/Os have completed.
    pub(crate) fn ios(&self) -> u64 {
        self.world.runtime.ios()
    }

    /// A hash of everything that has happened: polls, I/Os, their times, contents and results.
    pub(crate) fn trace_hash(&self) -> u64 {
        self.world.runtime.trace_hash()
    }

    pub(crate) fn counters(&self) -> Counters {
        self.world.runtime.counters.borrow().clone()
    }

    /// The disk of this name; a new, empty one the first time.
    pub(crate) fn disk(&self, name: &str) -> Disk {
        let mut disks = self.world.disks.borrow_mut();
        if let Some(disk) = disks.get(name) {
            return disk.clone();
        }
        let disk = Disk::new(name, self.world.seed, &self.world.runtime);
        disks.insert(name.to_owned(), disk.clone());
        disk
    }

    /// Every disk that there is.
    pub(crate) fn disks(&self) -> Vec<Disk> {
        self.world.disks.borrow().values().cloned().collect()
    }

    /// A driver on the disk of this name, of a process of its own.
    pub(crate) fn driver(&self, disk: &str, shard: ShardId) -> SimDriver {
        self.process().driver(&self.disk(disk), shard)
    }

    /// Starts a process: an incarnation of the embedder.
    pub(crate) fn process(&self) -> Process {
        let id = self.world.process_last.get() + 1;
        self.world.process_last.set(id);
        let group = Group::new(id);
        let mut processes = self.world.processes.borrow_mut();
        processes.retain(|process| process.is_alive());
        processes.push(Rc::clone(&group));
        Process {
            world: Rc::clone(&self.world),
            group,
        }
    }
}

/// An incarnation of the embedder's process; clones are handles to it. Dropping them ends nothing.
#[derive(Clone)]
pub(crate) struct Process {
    world: Rc<World>,
    group: Rc<Group>,
}

impl Process {
    /// Its number, never used again in this universe.
    pub(crate) fn id(&self) -> u64 {
        self.group.id
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.group.is_alive()
    }

    /// A shard's driver, with the disk as the store's directory.
    pub(crate) fn driver(&self, disk: &Disk, shard: ShardId) -> SimDriver {
        self.attach(disk);
        let world = &self.world;
        let id = world.driver_last.get() + 1;
        world.driver_last.set(id);
        let seed = mix(world.seed ^ mix(self.group.id << 16 | u64::from(shard.0)));
        SimDriver::new(id, seed, &self.group, disk, &world.pool)
    }

    fn attach(&self, disk: &Disk) {
        let mut state = disk.0.state.borrow_mut();
        let attached = &state.attached;
        if !self.is_alive() || attached.iter().any(|group| group.id == self.group.id) {
            return;
        }
        if attached.is_empty() {
            // An image may have been restored that has operations of processes long gone.
            let chance = disk.chance(&mut state).without_garbling();
            state.platter.kill(None, &mut Fates::Chance(chance));
        }
        state.attached.push(Rc::clone(&self.group));
    }

    /// Starts a task that dies with the process.
    pub(crate) fn spawn<T: 'static>(
        &self,
        task: impl Future<Output = T> + 'static,
    ) -> JoinHandle<T> {
        task::spawn_joined(&self.world.runtime, &self.group, task)
    }

    /// Kill -9: its tasks are dropped where they stand, its locks released. Completed writes stay;
    /// each one in flight is kept, dropped or torn.
    pub(crate) fn kill(&self) {
        if !self.group.is_alive() {
            return;
        }
        self.group.die();
        let runtime = &self.world.runtime;
        runtime.drop_group(&self.group);
        let disks: Vec<Disk> = self.world.disks.borrow().values().cloned().collect();
        for disk in disks {
            disk.end_process(self.group.id);
        }
        runtime.counters.borrow_mut().kills += 1;
        runtime.trace(self.group.id);
    }

    /// Stops it in its tracks, as SIGSTOP or a stalled machine would. I/Os under way complete, and
    /// it keeps its locks: when resumed, it is a zombie that does not know what time it is.
    pub(crate) fn pause(&self) {
        self.group.pause();
    }

    pub(crate) fn resume(&self) {
        self.world.runtime.resume(&self.group);
    }

    /// Takes the exclusive lock of the store's directory, or says which process has it.
    pub(crate) fn try_lock(&self, disk: &Disk) -> Result<LockGuard, u64> {
        self.attach(disk);
        let mut state = disk.0.state.borrow_mut();
        if let Some((holder, _)) = state.lock.as_ref().filter(|(holder, _)| holder.is_alive()) {
            return Err(holder.id);
        }
        state.lock_last += 1;
        let ticket = state.lock_last;
        state.lock = Some((Rc::clone(&self.group), ticket));
        Ok(LockGuard {
            disk: disk.clone(),
            ticket,
        })
    }
}

/// The lock of a store's directory; released when dropped, or with its process.
pub(crate) struct LockGuard {
    disk: Disk,
    ticket: u64,
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        let mut state = self.disk.0.state.borrow_mut();
        state.lock.take_if(|(_, ticket)| *ticket == self.ticket);
    }
}
