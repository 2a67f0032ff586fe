//! A run: a plan carried out in a universe of its own, with a referee.
//!
//! Invariants:
//! 1. The same plan gives the same run: the hash of everything that happened is the proof.
//! 2. After every crash everything is compared: each payload's existence, size and bytes, and the
//!    list.
//! 3. A run ends healed: faults off, everything flushed, every operation answered within bounded
//!    virtual time, everything deleted, and nothing left behind.
//!
//! Deliberately not here: how an answer is judged; see `client`.

use super::bucket::{Bucket, BucketFaults};
use super::client::{Allowed, Client, Passing, Shared};
use super::content::State;
use super::damage::{Injuries, inflict};
use super::history::Histories;
use super::loss::LATE;
use super::observe::{Observation, observe};
use super::plan::{KINDS, Op, Plan, Settings, Step};
use super::world;
use crate::config::{Config, RemoteConfig};
use crate::error::{Error, ErrorKind, Result};
use crate::io::sim::{Disk, DiskFaults, JoinHandle, Process, Stop, Universe};
use crate::payload_id::PayloadId;
use crate::store::Store;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

/// Blocks of the stores under test: small, so that counts of blocks differ.
pub(super) const BLOCK_BYTES: u64 = 64 << 10;

/// Virtual time in which everything must have an answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(600);

/// I/Os in which everything must have an answer: a hundred times what the largest step takes. A
/// store that turns in circles would use up hours before its virtual time is over.
const IOS_MAX: u64 = 100_000;

/// Virtual time in which a store that was full must serve again, once there is space.
const SERVICE_RESUMES: Duration = Duration::from_secs(30);

/// Name of the disk.
const DISK: &str = "disk";

/// What came of a run.
#[derive(Clone, Debug, Default)]
pub(super) struct Outcome {
    pub(super) failure: Option<String>,
    pub(super) hash: u64,
    pub(super) operations: u64,
    pub(super) successes: [u64; KINDS.len()],
    pub(super) dropped: u64,
    /// Crashes and kills, each with a recovery and a comparison of everything.
    pub(super) crashes: u64,
    pub(super) reopens: u64,
    pub(super) given_up: u64,
    pub(super) marks: BTreeMap<&'static str, u64>,
}

/// Carries a plan out.
pub(super) fn run(plan: &Plan) -> Outcome {
    drop(crate::marks::armed::take_hits());
    let mut run = Run::new(&plan.settings, plan.may_damage());
    let failure = run.carry_out(&plan.steps).err().filter(|end| {
        run.outcome.given_up += u64::from(matches!(end, End::GivenUp));
        matches!(end, End::Failed(_))
    });
    run.end(match failure {
        Some(End::Failed(what)) => Some(what),
        _ => None,
    })
}

impl Run {
    /// Ends it and adds up what came of it.
    pub(super) fn end(mut self, failure: Option<String>) -> Outcome {
        let run = &mut self;
        run.store = None;
        let mut outcome = std::mem::take(&mut run.outcome);
        outcome.failure = failure;
        outcome.hash = run.universe.trace_hash();
        outcome.successes = *run.shared.successes.borrow();
        outcome.operations = outcome.successes.iter().sum();
        outcome.dropped = run.shared.dropped.get();
        outcome.marks = crate::marks::armed::take_hits();
        outcome
    }
}

/// Why a run ends before its plan does.
pub(super) enum End {
    Failed(String),
    /// The disk is so damaged that nothing more can be learnt.
    GivenUp,
}

pub(super) type Flow<T> = std::result::Result<T, End>;

pub(super) struct Run {
    pub(super) shared: Rc<Shared>,
    pub(super) disk: Disk,
    pub(super) process: Process,
    pub(super) store: Option<Store>,
    pub(super) bucket: Option<Bucket>,
    /// What the plan wants to go wrong with it.
    pub(super) bucket_faults: BucketFaults,
    /// Machines so far, the lost ones too.
    pub(super) machines: u64,
    /// The faults that the plan wants, for when they are suspended.
    faults: DiskFaults,
    injuries: Injuries,
    /// Payloads whose damaged past the model has forgotten, and the disk perhaps not.
    anew: BTreeSet<usize>,
    pub(super) outcome: Outcome,
    pub(super) universe: Universe,
}

impl Run {
    pub(super) fn new(settings: &Settings, may_damage: bool) -> Run {
        let universe = Universe::new(settings.seed);
        let payloads = settings.payloads.clamp(1, 64) as usize;
        // Ids of different lengths, so that records have different sizes.
        let name = |payload: usize| format!("payload/{payload}{}", "-".repeat(payload * 7));
        let ids = (0..payloads).map(|payload| PayloadId::new(name(payload)).expect("valid"));
        let shared = Shared {
            universe: universe.clone(),
            settings: settings.clone(),
            ids: ids.collect(),
            model: RefCell::new(Histories::new(payloads, may_damage, settings.remote > 0)),
            is_bucket_bad: Cell::new(false),
            failure: RefCell::new(None),
            successes: RefCell::new([0; KINDS.len()]),
            allowed: Cell::new(Allowed {
                full: settings.local_bytes > 0 || settings.stall_us < 1_000_000,
                ..Allowed::default()
            }),
            is_harmed: Cell::new(false),
            writes: RefCell::default(),
            dropped: Cell::new(0),
        };
        Run {
            shared: Rc::new(shared),
            disk: universe.disk(DISK),
            process: universe.process(),
            bucket: (settings.remote > 0).then(|| Bucket::new(&universe, settings.seed)),
            bucket_faults: BucketFaults::default(),
            machines: 1,
            store: None,
            faults: DiskFaults::default(),
            injuries: Injuries::default(),
            anew: BTreeSet::new(),
            outcome: Outcome::default(),
            universe,
        }
    }

    pub(super) fn config(&self) -> Config {
        let settings = &self.shared.settings;
        let mut config = Config::new(DISK);
        config.shards = Some(settings.shards.clamp(1, 16) as usize);
        (config.block_bytes, config.segment_bytes) = (BLOCK_BYTES, settings.segment_bytes);
        config.local_bytes_max = (settings.local_bytes > 0).then_some(settings.local_bytes);
        config.dirty_bytes_max = settings.dirty_bytes;
        config.read_buffer_bytes = settings.read_buffer_bytes;
        config.prefetch_bytes_max = settings.prefetch_bytes;
        config.flush_after = Duration::from_micros(settings.flush_after_us);
        config.stall_timeout = Duration::from_micros(settings.stall_us);
        config.seal_after = Duration::from_micros(settings.seal_after_us);
        if settings.remote > 0 {
            config.remote = Some(RemoteConfig::Memory("bucket".to_owned()));
        }
        config
    }

    fn carry_out(&mut self, steps: &[Step]) -> Flow<()> {
        self.open()?;
        let mut at = 0;
        while at < steps.len() {
            let begin = at;
            while at < steps.len() && matches!(steps[at], Step::Client { .. }) {
                at += 1;
            }
            let control = steps.get(at);
            let stop_after = match control {
                Some(Step::Cut { ios } | Step::CutKeeping { ios, .. } | Step::Kill { ios }) => {
                    Some((*ios).max(1))
                }
                _ => None,
            };
            self.run_clients(begin, &steps[begin..at], stop_after)?;
            if let Some(control) = control {
                self.control(control).map_err(|end| located(at, end))?;
                at += 1;
            }
        }
        self.finish()
    }

    /// Lets clients do their steps concurrently, until all are done or so many I/Os have completed.
    fn run_clients(&mut self, first: usize, steps: &[Step], ios: Option<u64>) -> Flow<()> {
        let running = self.start_clients(first, steps);
        let limit = ios.unwrap_or(u64::MAX).min(IOS_MAX);
        self.universe.stop_at_io(Some(self.universe.ios() + limit));
        let result = self.universe.run_until_within(PATIENCE, all(running));
        self.universe.stop_at_io(None);
        match self.judge(result)? {
            Ok(()) => Ok(()),
            Err(Stop::AtIo) if limit < IOS_MAX => Ok(()),
            Err(stop) => {
                let last = first + steps.len().saturating_sub(1);
                Err(failed(format!(
                    "steps {first}..={last}: operations have no answer after {PATIENCE:?}: {stop:?}"
                )))
            }
        }
    }

    /// What clients have found wrong by now comes before how they stopped.
    pub(super) fn judge<T>(&self, stopped: T) -> Flow<T> {
        match self.shared.failure.take() {
            Some(failure) => Err(End::Failed(failure)),
            None => Ok(stopped),
        }
    }

    /// Starts the clients on their steps, of which the first has number `first`.
    pub(super) fn start_clients(&self, first: usize, steps: &[Step]) -> Vec<JoinHandle<()>> {
        let mut queues: BTreeMap<u64, Vec<(usize, Op, Option<u64>)>> = BTreeMap::new();
        for (index, step) in (first..).zip(steps) {
            if let Step::Client {
                client,
                op,
                drop_after,
            } = step
            {
                let queue = queues.entry(*client).or_default();
                queue.push((index, *op, *drop_after));
            }
        }
        let start = |queue: Vec<(usize, Op, Option<u64>)>| {
            let client = Client {
                shared: self.shared.clone(),
                store: self.opened(),
                began: Cell::new(self.shared.passing()),
            };
            self.process.spawn(async move {
                for (index, op, drop_after) in queue {
                    if client.shared.has_failed() {
                        return;
                    }
                    client.perform(index, op, drop_after).await;
                }
            })
        };
        queues.into_values().map(start).collect()
    }

    pub(super) fn opened(&self) -> Store {
        self.store.clone().expect("a store is open between steps")
    }

    /// Runs something to its end, in bounded virtual time.
    pub(super) fn within<F: Future>(&self, what: &str, future: F) -> Flow<F::Output> {
        let stop = self.universe.ios() + IOS_MAX;
        self.universe.stop_at_io(Some(stop));
        let result = self.universe.run_until_within(PATIENCE, future);
        self.universe.stop_at_io(None);
        result.map_err(|stop| failed(format!("{what} has no answer after {PATIENCE:?}: {stop:?}")))
    }

    fn control(&mut self, step: &Step) -> Flow<()> {
        match step {
            Step::Cut { .. } => {
                self.store = None;
                self.disk.power_cut();
                self.come_back()
            }
            Step::CutKeeping { mask, .. } => {
                self.store = None;
                super::exhaustive::cut_keeping(&self.disk, *mask);
                self.come_back()
            }
            Step::Kill { .. } => {
                self.store = None;
                self.process.kill();
                self.come_back()
            }
            Step::Reopen => self.reopen(),
            Step::Check => self.compare("check", false),
            Step::Faults(faults) => {
                let slow = faults.slow > 0;
                self.faults = faults.clone();
                self.disk.set_faults(faults.clone());
                let allowed = self.shared.allowed.get();
                self.shared.allowed.set(Allowed {
                    full: allowed.full || slow,
                    ..allowed
                });
                Ok(())
            }
            Step::Harm { harm, file, place } => {
                self.store = None;
                self.disk.power_cut();
                if let Some(name) = inflict(&self.disk, *harm, *file, *place) {
                    self.injuries.note_harm(*harm, &name);
                    self.shared.is_harmed.set(true);
                }
                self.come_back()
            }
            Step::BucketFaults(faults) => {
                self.bucket_faults = faults.clone();
                self.trouble_bucket();
                Ok(())
            }
            Step::Away { away } => {
                if let Some(bucket) = &self.bucket {
                    bucket.set_away(*away);
                    self.shared.is_bucket_bad.set(true);
                }
                Ok(())
            }
            Step::Wipe { zombie } => self.lose_machine(*zombie),
            Step::Capacity { bytes } => {
                let bytes = if *bytes == 0 { u64::MAX } else { *bytes };
                self.disk.set_capacity(bytes);
                Ok(())
            }
            Step::Client { .. } => unreachable!("clients are run together"),
        }
    }

    /// After a crash: opens the store again and compares everything.
    pub(super) fn come_back(&mut self) -> Flow<()> {
        self.outcome.crashes += 1;
        self.process = self.universe.process();
        self.open()?;
        self.compare("recovery", true)
    }

    /// Opens the store; faults may keep it from opening, but not for ever.
    pub(super) fn open(&mut self) -> Flow<()> {
        for attempt in 0.. {
            let began = self.shared.passing();
            let config = self.config();
            let (process, disk) = (self.process.clone(), self.disk.clone());
            let universe = self.universe.clone();
            let opening = world::open(&universe, &process, &disk, self.bucket.as_ref(), config);
            match self.within("opening the store", opening)? {
                Ok(store) => {
                    self.store = Some(store);
                    break;
                }
                Err(error) => self.refused(attempt, &error, began)?,
            }
        }
        self.disk.set_faults(self.faults.clone());
        Ok(())
    }

    /// The disk of a new machine, as the plan wants it.
    pub(super) fn exchange_disk(&mut self, disk: Disk) {
        disk.set_faults(self.faults.clone());
        self.disk = disk;
    }

    /// The store could not be opened: that must have a reason, and must heal with it.
    fn refused(&mut self, attempt: u32, error: &Error, began: Passing) -> Flow<()> {
        let explained = self.shared.explains(error.kind(), began);
        if !explained {
            return Err(failed(format!("the store does not open: {error:?}")));
        }
        if attempt > 0 {
            // Faults are off: only what they left behind can be the reason.
            self.note_damage();
            let lasting = matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Poisoned)
                && self.injuries.may_refuse();
            return Err(match lasting {
                true => End::GivenUp,
                false => failed(format!(
                    "the store does not open though all is well: {error:?}"
                )),
            });
        }
        self.process.kill();
        self.process = self.universe.process();
        let faults = DiskFaults {
            torn: self.faults.torn,
            tear: self.faults.tear,
            ..DiskFaults::default()
        };
        self.disk.set_faults(faults);
        self.disk.set_capacity(u64::MAX);
        Ok(())
    }

    fn reopen(&mut self) -> Flow<()> {
        let store = self.store.take().expect("a store is open between steps");
        let since = self.shared.model.borrow().now();
        let began = self.shared.passing();
        let closed = self.within("closing the store", store.close())?;
        self.outcome.reopens += 1;
        match closed {
            Ok(()) => {
                let mut model = self.shared.model.borrow_mut();
                let remote = self.bucket.is_some();
                (0..model.len()).for_each(|payload| {
                    model.flushed(payload, since);
                    if remote {
                        model.published(payload, since);
                    }
                });
            }
            Err(error) if self.shared.explains(error.kind(), began) => {}
            Err(error) => return Err(failed(format!("the store does not close: {error:?}"))),
        }
        self.process.kill();
        self.process = self.universe.process();
        self.open()?;
        self.compare("reopening", true)
    }

    /// Compares everything with the model. After a crash the model learns what was kept.
    pub(super) fn compare(&mut self, when: &str, crashed: bool) -> Flow<()> {
        self.calm_bucket()?;
        let compared = self.compare_calmly(when, crashed);
        self.trouble_bucket();
        compared
    }

    fn compare_calmly(&mut self, when: &str, crashed: bool) -> Flow<()> {
        self.note_damage();
        let stats = self.within(when, self.opened().stats())?;
        let stats = stats.map_err(|error| failed(format!("{when}: stats fails: {error}")))?;
        let lost_batches = crashed && stats.batches_lost > 0 && self.shared.is_damaged();
        for payload in 0..self.shared.ids.len() {
            let states = {
                let model = self.shared.model.borrow();
                match crashed {
                    true => model.after_crash(payload, self.injuries.commits()),
                    false => model.current(payload),
                }
            };
            let seen = self.observe(when, payload, &states)?;
            // Where changes were lost, what cannot be read may be mixed.
            let may_be_mixed = lost_batches && !seen.corrupt.is_empty();
            if !may_be_mixed && self.fits(payload, &states, &seen, crashed) {
                continue;
            }
            // What the model has forgotten may come back with a log that lost its end.
            let cut = crashed && self.injuries.commits() > 0;
            let forgotten = cut && self.anew.contains(&payload);
            let moved = cut && self.shared.settings.shards > 1 && seen.size.is_none();
            let excused = lost_batches || forgotten || moved;
            if !(excused && seen.is_of_known_bytes(&self.shared)) {
                let id = &self.shared.ids[payload];
                let why = seen.explain(&self.shared, &states);
                let lost = stats.batches_lost;
                return Err(failed(format!(
                    "{when}: {id} is in no possible state, batches_lost={lost}: {why}"
                )));
            }
            self.begin_anew(payload)?;
        }
        if crashed {
            self.injuries.compared();
        }
        self.compare_list(when)
    }

    fn note_damage(&mut self) {
        let failed = self.universe.counters().dir_sync_errors;
        self.injuries.note(&self.disk.take_damage(), failed);
    }

    /// Looks at a payload; what cannot be read must have a reason.
    pub(super) fn observe(
        &self,
        when: &str,
        payload: usize,
        states: &[Rc<State>],
    ) -> Flow<Observation> {
        let (store, id) = (self.opened(), &self.shared.ids[payload]);
        let began = self.shared.passing();
        let seen = match self.within(when, observe(&store, id, states))? {
            Ok(seen) => seen,
            Err(error) => return Err(failed(format!("{when}: {id} has an error: {error:?}"))),
        };
        if !seen.corrupt.is_empty() && !self.shared.explains(ErrorKind::Corrupt, began) {
            let ranges = &seen.corrupt;
            return Err(failed(format!("{when}: {id} is corrupt in {ranges:?}")));
        }
        Ok(seen)
    }

    /// Whether a payload is as it may be. After a crash the model learns what it is.
    fn fits(
        &self,
        payload: usize,
        states: &[Rc<State>],
        seen: &Observation,
        crashed: bool,
    ) -> bool {
        if !crashed {
            return states.iter().any(|state| seen.fits(state));
        }
        let commits = self.injuries.commits();
        let mut model = self.shared.model.borrow_mut();
        let fits = |state: &Rc<State>| seen.fits(state);
        let is_intact = commits == 0 || model.after_crash(payload, 0).iter().any(fits);
        // Reads do not show everything that a state is, so that one from before what damage may
        // have taken can fit as well as the last one: all that fit stay possible.
        let found = model.recovered(payload, commits, |state| seen.fits(state));
        if found && !is_intact {
            crate::marks::mark("commit taken by damage");
        }
        found
    }

    /// Records of a payload's changes were destroyed: it is deleted, and the model forgets it.
    fn begin_anew(&mut self, payload: usize) -> Flow<()> {
        crate::marks::mark("payload with destroyed records");
        self.anew.insert(payload);
        let began = self.shared.passing();
        let store = self.opened();
        let id = self.shared.ids[payload].clone();
        let deleting = async {
            store.delete(&id).await?;
            store.flush_all().await
        };
        match self.within("deleting what was damaged", deleting)? {
            Ok(()) => {
                self.shared.model.borrow_mut().reset(payload, None);
                Ok(())
            }
            Err(error) if self.shared.explains(error.kind(), began) => Err(End::GivenUp),
            Err(error) => Err(failed(format!("{id} cannot be deleted: {error}"))),
        }
    }

    pub(super) fn compare_list(&self, when: &str) -> Flow<()> {
        let store = self.opened();
        let listing = store.list(None, usize::MAX);
        let names = self
            .within(when, listing)?
            .map_err(|error| failed(format!("{when}: the list has an error: {error:?}")))?;
        let model = self.shared.model.borrow();
        for (payload, id) in self.shared.ids.iter().enumerate() {
            let states = model.current(payload);
            let listed = names.contains(id);
            if !states.iter().any(|state| state.is_some() == listed) {
                return Err(failed(format!(
                    "{when}: the list is wrong about {id}: {names:?}"
                )));
            }
        }
        match names.iter().all(|name| self.shared.ids.contains(name)) {
            true => Ok(()),
            false => Err(failed(format!("{when}: the list has strangers: {names:?}"))),
        }
    }

    /// Heals everything, and sees that the store does, too.
    fn finish(&mut self) -> Flow<()> {
        self.faults = DiskFaults::default();
        self.disk.set_faults(DiskFaults::default());
        self.disk.set_capacity(u64::MAX);
        self.bucket_faults = BucketFaults::default();
        self.calm_bucket()?;
        self.reopen()?;
        if self.bucket.is_some() {
            // What was late has come, so that it can be found to be of no use.
            self.within("waiting", self.universe.sleep(LATE))?;
            self.lose_machine(false)?;
        }
        let (store, ids) = (self.opened(), self.shared.ids.clone());
        let patience = self.universe.now().after(SERVICE_RESUMES);
        let deleting = async {
            for id in &ids {
                // A full store takes a moment to find out that there is room again.
                while let Err(error) = store.delete(id).await {
                    let waits = error.kind() == ErrorKind::Full;
                    if !waits || self.universe.now() > patience {
                        return Err(error);
                    }
                }
            }
            store.flush_all().await
        };
        self.within("deleting everything", deleting)?
            .map_err(|error| failed(format!("not everything could be deleted: {error:?}")))?;
        self.wait_for_nothing()?;
        let closed = self.within("closing the store", self.opened().close())?;
        closed.map_err(|error| failed(format!("the empty store does not close: {error:?}")))
    }

    /// Waits until nothing is left of what was deleted.
    fn wait_for_nothing(&self) -> Flow<()> {
        let mut left = String::new();
        for wait_s in (0..20).map(|tries| 1 + tries * 2) {
            match self.within("looking at what is left", self.left_over())? {
                Ok(None) => return Ok(()),
                Ok(Some(what)) => left = what,
                Err(error) => return Err(failed(format!("stats fails: {error}"))),
            }
            self.within("waiting", self.universe.sleep(Duration::from_secs(wait_s)))?;
        }
        Err(failed(format!(
            "six minutes after everything was deleted: {left}"
        )))
    }

    /// What an empty store should not have.
    async fn left_over(&self) -> Result<Option<String>> {
        let stats = self.opened().stats().await?;
        let settings = &self.shared.settings;
        let is_segment = |name: &str| name.contains("seg");
        let files = self.disk.files();
        let segments = files.iter().filter(|file| is_segment(&file.0));
        let bytes: u64 = segments.map(|file| file.1).sum();
        let bytes_max = 2 * settings.segment_bytes * settings.shards;
        // An object begins with a table, a thousandth of it but a page at least.
        let remote_max = bytes_max + 2 * (settings.segment_bytes / 512 + 4096) * settings.shards;
        let wrong = [
            (stats.live_bytes, 0, "live bytes"),
            (stats.local_mem_used, 0, "bytes of dirty memory"),
            (stats.content_count, 0, "payloads"),
            (self.bytes_in_bucket(), remote_max, "bytes in the remote"),
            (bytes, bytes_max, "bytes of segments"),
        ];
        let wrong = wrong.into_iter().find(|(is, max, _)| is > max);
        let report = |(is, max, what)| {
            let (held, free) = (stats.segments, stats.segments_free);
            format!(
                "{is} {what}, at most {max} are right: segments={held} free={free} files={files:?}"
            )
        };
        Ok(wrong.map(report))
    }
}

/// Waits for all of them.
pub(super) async fn all(running: Vec<JoinHandle<()>>) {
    for handle in running {
        handle.await;
    }
}

pub(super) fn failed(what: String) -> End {
    End::Failed(what)
}

fn located(step: usize, end: End) -> End {
    match end {
        End::Failed(what) => End::Failed(format!("step {step}: {what}")),
        End::GivenUp => End::GivenUp,
    }
}
