//! The scheduler and its clock: which task runs next, and when time moves.
//!
//! Invariants:
//! 1. Everything runs on the thread that calls `run`; wakers alone may be carried elsewhere,
//!    because the code under test uses channels that ask it of them.
//! 2. The next task is drawn at random among those that are ready. A poll costs a little virtual
//!    time, so that a task that spins cannot stop the clock; when none is ready, the clock jumps to
//!    the next timer.
//! 3. Nothing foreign (a poll, a waker, the drop of a future) runs while a cell of the runtime is
//!    borrowed.
//! 4. What happened goes into one rolling hash: two runs with equal hashes did the same things, at
//!    the same times, in the same order.
//!
//! Deliberately not here: what an I/O is. The runtime only knows that one is due.

use super::faults::mix;
use crate::types::Nanos;
use fastrand::Rng;
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

/// Where the clock starts: not at zero, so that a subtraction that underflows shows.
const START_NS: u64 = 1_000_000_000;

/// Virtual time of one poll, at least and at most that much more: an empty poll and a busy one.
const POLL_NS_MIN: u64 = 20;
const POLL_NS_SPREAD: u64 = 256;

/// Why a run ended before its future did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stop {
    /// Nothing is ready, and no timer or I/O is under way.
    Deadlock,
    /// The I/O that `stop_at_io` named is about to complete; it has not.
    AtIo,
    /// The time that was allowed has passed.
    Deadline,
}

/// A set of tasks that die together.
pub(super) struct Group {
    pub(super) id: u64,
    alive: Cell<bool>,
    paused: Cell<bool>,
    /// Tasks that were ready while it was paused.
    parked: RefCell<Vec<TaskId>>,
}

impl Group {
    pub(super) fn new(id: u64) -> Rc<Group> {
        Rc::new(Group {
            id,
            alive: Cell::new(true),
            paused: Cell::new(false),
            parked: RefCell::default(),
        })
    }

    pub(super) fn is_alive(&self) -> bool {
        self.alive.get()
    }

    pub(super) fn die(&self) {
        self.alive.set(false);
    }

    pub(super) fn pause(&self) {
        self.paused.set(true);
    }
}

/// Something whose I/Os complete at a given time.
pub(super) trait Completes {
    fn complete(self: Rc<Self>, op: u64);
}

enum Event {
    Wake(Waker),
    Io(Rc<dyn Completes>, u64),
}

/// When a timer is due, and a number that tells it from others due then.
pub(super) type TimerKey = (u64, u64);

/// A task: where it is kept, and a serial number that is never used again.
#[derive(Clone, Copy, PartialEq, Eq)]
struct TaskId {
    slot: usize,
    serial: u64,
}

type BoxedTask = Pin<Box<dyn Future<Output = ()>>>;

struct Task {
    serial: u64,
    group: Rc<Group>,
    /// The driver that started it, or 0: its tasks go when its last handle does.
    driver: u64,
    alarm: Arc<Alarm>,
    /// Absent while it is polled, and for the future that `run` itself holds.
    body: Option<(BoxedTask, Waker)>,
}

type Ready = Arc<Mutex<Vec<TaskId>>>;

fn push_ready(ready: &Ready, id: TaskId) {
    let mut list = ready.lock().unwrap_or_else(PoisonError::into_inner);
    list.push(id);
}

/// What a waker points to: puts its task on the ready list, once until it is polled.
struct Alarm {
    id: TaskId,
    queued: AtomicBool,
    ready: Ready,
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            push_ready(&self.ready, self.id);
        }
    }
}

/// What has happened so far, for floors in tests: a universe where nothing happens proves nothing.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(crate) struct Counters {
    pub(crate) polls: u64,
    pub(crate) reads: u64,
    pub(crate) writes: u64,
    pub(crate) syncs: u64,
    /// Opens, lists, allocations, and changes and syncs of directories.
    pub(crate) metadata: u64,
    pub(crate) read_bytes: u64,
    pub(crate) written_bytes: u64,
    /// I/Os that were answered with an error, whatever its cause.
    pub(crate) failed: u64,
    pub(crate) kills: u64,
    pub(crate) crashes: u64,
    /// Fates of unsynced and in-flight writes at crashes, and of in-flight ones at kills.
    pub(crate) writes_kept: u64,
    pub(crate) writes_dropped: u64,
    pub(crate) writes_torn: u64,
    pub(crate) writes_garbled: u64,
    /// Fates of changes to names at crashes and kills.
    pub(crate) names_kept: u64,
    pub(crate) names_undone: u64,
    /// Reads answered while a write of the same page was under way.
    pub(crate) read_races: u64,
    /// Writes submitted while another of the same page was under way: usually a bug of the caller.
    pub(crate) write_races: u64,
    pub(crate) read_errors: u64,
    pub(crate) write_errors: u64,
    pub(crate) sync_errors: u64,
    pub(crate) metadata_errors: u64,
    /// Syncs of directories among them: names that no later sync makes durable.
    pub(crate) dir_sync_errors: u64,
    pub(crate) out_of_space: u64,
    pub(crate) lost_writes: u64,
    pub(crate) misdirected_writes: u64,
    pub(crate) rotten_bits: u64,
    pub(crate) unreadable_pages: u64,
    pub(crate) slow: u64,
}

/// The executor. One per universe.
pub(super) struct Runtime {
    clock: Arc<AtomicU64>,
    ready: Ready,
    tasks: RefCell<Slab<Task>>,
    timers: RefCell<BTreeMap<TimerKey, Event>>,
    rng: RefCell<Rng>,
    serial_last: Cell<u64>,
    /// Serial number of the task that is being polled, or 0.
    current: Cell<u64>,
    /// What the polls of each driver's tasks have cost.
    busy: RefCell<BTreeMap<u64, u64>>,
    trace: Cell<u64>,
    ios: Cell<u64>,
    /// The I/O before which to stop, counted from 1; 0 for none.
    stop_at_io: Cell<u64>,
    running: Cell<bool>,
    closed: Cell<bool>,
    root: Rc<Group>,
    pub(super) counters: RefCell<Counters>,
}

impl Runtime {
    pub(super) fn new(seed: u64) -> Rc<Runtime> {
        Rc::new(Runtime {
            clock: Arc::new(AtomicU64::new(START_NS)),
            ready: Ready::default(),
            tasks: RefCell::default(),
            timers: RefCell::default(),
            rng: RefCell::new(Rng::with_seed(mix(seed))),
            serial_last: Cell::new(0),
            current: Cell::new(0),
            busy: RefCell::default(),
            trace: Cell::new(0),
            ios: Cell::new(0),
            stop_at_io: Cell::new(0),
            running: Cell::new(false),
            closed: Cell::new(false),
            root: Group::new(0),
            counters: RefCell::default(),
        })
    }

    pub(super) fn clock(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.clock)
    }

    pub(super) fn now(&self) -> Nanos {
        Nanos(self.clock.load(Ordering::Relaxed))
    }

    /// The group of tasks that belong to no process.
    pub(super) fn root(&self) -> &Rc<Group> {
        &self.root
    }

    /// Serial number of the task that is being polled, or 0.
    pub(super) fn current(&self) -> u64 {
        self.current.get()
    }

    pub(super) fn trace_hash(&self) -> u64 {
        self.trace.get()
    }

    /// Folds one number into the trace.
    pub(super) fn trace(&self, word: u64) {
        let folded = (self.trace.get().rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
        self.trace.set(folded);
    }

    /// A number of at most `max`.
    pub(super) fn random(&self, max: u64) -> u64 {
        self.rng.borrow_mut().u64(..=max)
    }

    pub(super) fn ios(&self) -> u64 {
        self.ios.get()
    }

    pub(super) fn stop_at_io(&self, io: Option<u64>) {
        assert!(
            io.is_none_or(|io| io > self.ios.get()),
            "that I/O has completed"
        );
        self.stop_at_io.set(io.unwrap_or(0));
    }

    /// Starts a task; one of a dead group is dropped at once.
    pub(super) fn spawn(
        &self,
        group: &Rc<Group>,
        driver: u64,
        task: impl Future<Output = ()> + 'static,
    ) {
        if self.closed.get() || !group.is_alive() {
            return;
        }
        let alarm = self.insert(group, driver);
        let body = (Box::pin(task) as BoxedTask, Waker::from(Arc::clone(&alarm)));
        self.tasks.borrow_mut()[alarm.id.slot].body = Some(body);
        alarm.wake();
    }

    fn insert(&self, group: &Rc<Group>, driver: u64) -> Arc<Alarm> {
        let serial = self.next_serial();
        let mut tasks = self.tasks.borrow_mut();
        let entry = tasks.vacant_entry();
        let alarm = Arc::new(Alarm {
            id: TaskId {
                slot: entry.key(),
                serial,
            },
            queued: AtomicBool::new(false),
            ready: Arc::clone(&self.ready),
        });
        entry.insert(Task {
            serial,
            group: Rc::clone(group),
            driver,
            alarm: Arc::clone(&alarm),
            body: None,
        });
        alarm
    }

    fn next_serial(&self) -> u64 {
        let serial = self.serial_last.get() + 1;
        self.serial_last.set(serial);
        serial
    }

    /// Lets `waker` be woken at `at`.
    pub(super) fn wake_at(&self, at: Nanos, waker: Waker) -> TimerKey {
        self.schedule(at, Event::Wake(waker))
    }

    /// Lets I/O number `op` of `target` complete at `at`.
    pub(super) fn complete_at(&self, at: Nanos, target: Rc<dyn Completes>, op: u64) -> TimerKey {
        self.schedule(at, Event::Io(target, op))
    }

    fn schedule(&self, at: Nanos, event: Event) -> TimerKey {
        let key = (at.0, self.next_serial());
        self.timers.borrow_mut().insert(key, event);
        key
    }

    pub(super) fn cancel(&self, key: TimerKey) {
        let event = self.timers.borrow_mut().remove(&key);
        drop(event);
    }

    /// Runs until `future` is done.
    pub(super) fn run<F: Future>(
        &self,
        future: F,
        deadline: Option<Nanos>,
    ) -> Result<F::Output, Stop> {
        assert!(!self.running.replace(true), "a run within a run");
        let mut future = pin!(future);
        let alarm = self.insert(&self.root, 0);
        let _guard = RunGuard(self, alarm.id.slot);
        let waker = Waker::from(Arc::clone(&alarm));
        waker.wake_by_ref();
        loop {
            let id = self.next(deadline)?;
            if id != alarm.id {
                self.poll_task(id);
                continue;
            }
            alarm.queued.store(false, Ordering::Release);
            self.current.set(id.serial);
            let polled = future.as_mut().poll(&mut Context::from_waker(&waker));
            self.charge(0, id.serial);
            if let Poll::Ready(output) = polled {
                return Ok(output);
            }
        }
    }

    /// The task to poll next, once the clock stands where one is ready.
    fn next(&self, deadline: Option<Nanos>) -> Result<TaskId, Stop> {
        loop {
            self.fire_due()?;
            if deadline.is_some_and(|deadline| self.now() >= deadline) {
                return Err(Stop::Deadline);
            }
            if let Some(id) = self.pick() {
                return Ok(id);
            }
            let due = self.timers.borrow().first_key_value().map(|(key, _)| key.0);
            let due = due.ok_or(Stop::Deadlock)?;
            let due = deadline.map_or(due, |deadline| due.min(deadline.0));
            self.clock.store(due, Ordering::Relaxed);
        }
    }

    /// Fires every timer that is due.
    fn fire_due(&self) -> Result<(), Stop> {
        loop {
            let mut timers = self.timers.borrow_mut();
            let Some(first) = timers.first_entry() else {
                return Ok(());
            };
            if first.key().0 > self.clock.load(Ordering::Relaxed) {
                return Ok(());
            }
            if matches!(first.get(), Event::Io(..)) {
                if self.ios.get() + 1 == self.stop_at_io.get() {
                    self.stop_at_io.set(0);
                    return Err(Stop::AtIo);
                }
                self.ios.set(self.ios.get() + 1);
            }
            let event = first.remove();
            drop(timers);
            match event {
                Event::Wake(waker) => waker.wake(),
                Event::Io(target, op) => target.complete(op),
            }
        }
    }

    /// Draws one of the ready tasks; those of a paused group are put aside.
    fn pick(&self) -> Option<TaskId> {
        loop {
            let id = {
                let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
                if ready.is_empty() {
                    return None;
                }
                let chosen = match ready.len() {
                    1 => 0,
                    len => self.rng.borrow_mut().usize(..len),
                };
                ready.swap_remove(chosen)
            };
            let tasks = self.tasks.borrow();
            let Some(task) = tasks.get(id.slot) else {
                continue;
            };
            if task.serial != id.serial {
                continue;
            }
            if task.group.paused.get() {
                task.group.parked.borrow_mut().push(id);
                continue;
            }
            return Some(id);
        }
    }

    fn poll_task(&self, id: TaskId) {
        let (body, driver) = {
            let mut tasks = self.tasks.borrow_mut();
            let task = &mut tasks[id.slot];
            task.alarm.queued.store(false, Ordering::Release);
            (task.body.take(), task.driver)
        };
        let Some((mut future, waker)) = body else {
            return;
        };
        self.current.set(id.serial);
        let polled = future.as_mut().poll(&mut Context::from_waker(&waker));
        self.charge(driver, id.serial);
        if polled.is_pending() {
            let mut tasks = self.tasks.borrow_mut();
            let task = tasks.get_mut(id.slot);
            if let Some(task) = task.filter(|task| task.serial == id.serial) {
                task.body = Some((future, waker));
                return;
            }
        }
        // It is done, or it was killed while it ran. Drop it before its slot is free, so that what
        // the drop starts is not mistaken for it.
        drop(future);
        let mut tasks = self.tasks.borrow_mut();
        if tasks
            .get(id.slot)
            .is_some_and(|task| task.serial == id.serial)
        {
            let task = tasks.remove(id.slot);
            drop(tasks);
            drop(task);
        }
    }

    /// Accounts for one poll: time, trace, counter.
    fn charge(&self, driver: u64, serial: u64) {
        self.current.set(0);
        let spent = POLL_NS_MIN + self.rng.borrow_mut().u64(..POLL_NS_SPREAD);
        let now = self.now().0 + spent;
        self.clock.store(now, Ordering::Relaxed);
        self.trace(now ^ serial.rotate_left(40));
        *self.busy.borrow_mut().entry(driver).or_default() += spent;
        self.counters.borrow_mut().polls += 1;
    }

    /// Virtual time that the tasks of a driver have taken.
    pub(super) fn busy(&self, driver: u64) -> Duration {
        let busy = self.busy.borrow();
        Duration::from_nanos(busy.get(&driver).copied().unwrap_or(0))
    }

    pub(super) fn resume(&self, group: &Group) {
        group.paused.set(false);
        for id in group.parked.take() {
            push_ready(&self.ready, id);
        }
    }

    /// Drops every task of a process; the one that is being polled goes when its poll returns.
    pub(super) fn drop_group(&self, group: &Rc<Group>) {
        self.drop_tasks(|task| Rc::ptr_eq(&task.group, group));
    }

    /// Drops every task that a driver started.
    pub(super) fn drop_driver(&self, driver: u64) {
        self.busy.borrow_mut().remove(&driver);
        self.drop_tasks(|task| task.driver == driver);
    }

    fn drop_tasks(&self, doomed: impl Fn(&Task) -> bool) {
        let dropped: Vec<Task> = {
            let mut tasks = self.tasks.borrow_mut();
            let chosen = tasks.iter().filter(|(_, task)| doomed(task));
            let slots: Vec<usize> = chosen.map(|(slot, _)| slot).collect();
            slots.into_iter().map(|slot| tasks.remove(slot)).collect()
        };
        drop(dropped);
    }

    /// Ends everything, so that the tasks' handles to this runtime do not keep it for ever.
    pub(super) fn close(&self) {
        self.closed.set(true);
        self.drop_tasks(|_| true);
        let timers = self.timers.take();
        drop(timers);
    }
}

/// Frees the place of the future that `run` holds, however the run ends.
struct RunGuard<'a>(&'a Runtime, usize);

impl Drop for RunGuard<'_> {
    fn drop(&mut self) {
        let task = self.0.tasks.borrow_mut().try_remove(self.1);
        drop(task);
        self.0.running.set(false);
    }
}
