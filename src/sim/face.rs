//! What embedders see of the universe: a machine with one disk, to run their own code on.
//!
//! Invariants:
//! 1. A machine runs one process at a time; a power cut or a kill ends it and everything it
//!    spawned, and the next opening is by a new one.
//!
//! Deliberately not here: what is right; that is the embedder's to say.

use super::world;
use crate::config::Config;
use crate::error::Result;
use crate::io::sim::{DiskFaults, Process, Stop, Universe};
use crate::store::Store;
use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::time::Duration;

/// A machine with a disk, in virtual time, decided by a seed.
///
/// # Example
///
/// ```
/// use ringstore::sim::Simulation;
/// use ringstore::{Config, PayloadId};
///
/// let machine = Simulation::new(7);
/// let mut config = Config::new("store");
/// config.shards = Some(1);
/// let id = PayloadId::new("a")?;
/// let store = machine.run(machine.open(config.clone()))??;
/// machine.run(async {
///     store.write_at(&id, 0, "kept".into()).await?;
///     store.flush(&id).await?;
///     store.write_at(&id, 0, "lost".into()).await
/// })??;
/// machine.cut_power();
///
/// let store = machine.run(machine.open(config))??;
/// let found = machine.run(store.read_at(&id, 0, 4))??.into_bytes();
/// assert!(found == "kept" || found == "lost");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Simulation {
    process: RefCell<Process>,
    universe: Universe,
}

/// Why a run ended before its future did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Stuck {
    /// Nothing is left that could ever wake it.
    Deadlock,
    /// The I/O that [`Simulation::stop_at_io`] named is about to complete.
    AtIo,
    /// The time that was allowed has passed.
    Deadline,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stuck::Deadlock => "nothing can ever wake the future",
            Stuck::AtIo => "the run was stopped at an I/O",
            Stuck::Deadline => "the time that was allowed has passed",
        })
    }
}

impl std::error::Error for Stuck {}

/// How often things go wrong, each in 1,000 I/Os that it could befall.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Faults {
    /// A read fails.
    pub read_error: u16,
    /// A write fails, having been applied wholly, in part or not at all.
    pub write_error: u16,
    /// A sync fails, and what it should have covered is lost by a power cut.
    pub sync_error: u16,
    /// Creating, renaming or removing a file fails.
    pub metadata_error: u16,
    /// A file cannot grow for want of space.
    pub no_space: u16,
    /// A write is acknowledged and never applied.
    pub lost_write: u16,
    /// A write is acknowledged and lands elsewhere.
    pub misdirected_write: u16,
    /// A bit of what is read has flipped, for good.
    pub bit_rot: u16,
    /// A page becomes unreadable until it is written again.
    pub unreadable: u16,
    /// An I/O takes three seconds longer.
    pub slow: u16,
}

impl Simulation {
    /// A machine with an empty disk.
    pub fn new(seed: u64) -> Simulation {
        let universe = Universe::new(seed);
        Simulation {
            process: RefCell::new(universe.process()),
            universe,
        }
    }

    /// Opens the store in the directory `config.dir` of this machine, or makes it there.
    ///
    /// Every directory is a disk of its own. `config.driver` is not looked at.
    ///
    /// # Errors
    ///
    /// As [`Store::open`].
    pub fn open(&self, config: Config) -> impl Future<Output = Result<Store>> + 'static {
        let universe = self.universe.clone();
        let process = self.process.borrow().clone();
        async move {
            let disk = universe.disk(&config.dir.to_string_lossy());
            world::open(&universe, &process, &disk, None, config).await
        }
    }

    /// Runs a future to its end, with everything else that is under way.
    ///
    /// # Errors
    ///
    /// Why it cannot come to its end.
    pub fn run<F: Future>(&self, future: F) -> std::result::Result<F::Output, Stuck> {
        self.universe.run_until(future).map_err(stuck)
    }

    /// The same, for no longer than `limit` of virtual time.
    ///
    /// # Errors
    ///
    /// Why it has not come to its end.
    pub fn run_within<F: Future>(
        &self,
        limit: Duration,
        future: F,
    ) -> std::result::Result<F::Output, Stuck> {
        self.universe.run_until_within(limit, future).map_err(stuck)
    }

    /// Starts a task of the machine's process; it dies with it.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        drop(self.process.borrow().spawn(task));
    }

    /// Completes when `span` of virtual time has passed.
    pub fn sleep(&self, span: Duration) -> impl Future<Output = ()> + 'static {
        self.universe.sleep(span)
    }

    /// Virtual time since the machine was made.
    pub fn now(&self) -> Duration {
        Duration::from_nanos(self.universe.now().0)
    }

    /// I/Os that have completed.
    pub fn ios(&self) -> u64 {
        self.universe.ios()
    }

    /// Stops the run that is about to complete this I/O, counted from 1; `None`: no more.
    pub fn stop_at_io(&self, io: Option<u64>) {
        self.universe.stop_at_io(io);
    }

    /// The power fails: of what was not durable, chance keeps some, and tears some.
    pub fn cut_power(&self) {
        for disk in self.universe.disks() {
            disk.power_cut();
        }
        self.restart();
    }

    /// Kill -9: completed writes stay, memory is gone.
    pub fn kill(&self) {
        self.process.borrow().kill();
        self.restart();
    }

    fn restart(&self) {
        // A process that never touched a disk survives a cut of its power; it goes here.
        self.process.borrow().kill();
        *self.process.borrow_mut() = self.universe.process();
    }

    /// Sets what goes wrong from now on, on the disk that is the directory `dir`.
    pub fn set_faults(&self, dir: &str, faults: &Faults) {
        let faults = DiskFaults {
            read_error: faults.read_error,
            write_error: faults.write_error,
            sync_error: faults.sync_error,
            metadata_error: faults.metadata_error,
            no_space: faults.no_space,
            lost_write: faults.lost_write,
            misdirected_write: faults.misdirected_write,
            bit_rot: faults.bit_rot,
            unreadable: faults.unreadable,
            slow: faults.slow,
            ..DiskFaults::default()
        };
        self.universe.disk(dir).set_faults(faults);
    }

    /// Sets how many bytes fit on the disk that is the directory `dir`; `None`: any number.
    pub fn set_capacity(&self, dir: &str, bytes: Option<u64>) {
        let bytes = bytes.unwrap_or(u64::MAX);
        self.universe.disk(dir).set_capacity(bytes);
    }

    /// A hash of everything that has happened; the same for the same seed and the same calls.
    pub fn trace_hash(&self) -> u64 {
        self.universe.trace_hash()
    }
}

impl fmt::Debug for Simulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Simulation")
            .field("seed", &self.universe.seed())
            .field("now", &self.now())
            .finish_non_exhaustive()
    }
}

fn stuck(stop: Stop) -> Stuck {
    match stop {
        Stop::Deadlock => Stuck::Deadlock,
        Stop::AtIo => Stuck::AtIo,
        Stop::Deadline => Stuck::Deadline,
    }
}
