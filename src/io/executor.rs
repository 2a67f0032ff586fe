//! The executor of one shard's thread: its tasks, its timers, and how they are woken.
//!
//! Invariants:
//! 1. A task is in at most one queue at a time (`Handle::queued`), so the queues are no longer than
//!    there are tasks.
//! 2. No wake-up is lost: a thread that posts looks at `parked` after its post, and the executor
//!    looks at the inbox after it has set `parked`; the inbox's lock orders the two.
//! 3. No borrow is held while a future is polled or dropped, so that both may spawn, sleep and
//!    wake.
//! 4. After `shutdown` nothing runs any more: tasks are dropped, new ones too, wake-ups are
//!    ignored.
//!
//! Deliberately not here: I/O. A driver plugs in as [`Park`], and is kicked through [`Kick`]; a
//! driver whose runtime will not be called but calls has itself visited instead (`visit`).

#[cfg(any(feature = "glommio", feature = "tokio-uring"))]
mod visit;

#[cfg(any(feature = "glommio", feature = "tokio-uring"))]
pub(crate) use visit::Visit;

use crate::io::clock::Clock;
use crate::io::pulse::{Load, Pulse};
use crate::types::Nanos;
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

/// What a driver does between two rounds of tasks.
pub(crate) trait Park {
    /// Hands over what is due and collects what has completed, without waiting.
    ///
    /// With `more_to_run`, what is to be submitted may wait a little for company.
    fn turn(&self, more_to_run: bool);

    /// Submits everything, then waits for a completion, a kick, or the end of `timeout`.
    fn park(&self, timeout: Option<Duration>);
}

/// Ends a [`Park::park`] from any thread; kicked before it begins, it must not wait.
pub(crate) trait Kick: Send + Sync + 'static {
    fn kick(&self);
}

type LocalFuture = Pin<Box<dyn Future<Output = ()>>>;

/// A single-threaded executor; clones are handles to the same one.
#[derive(Clone)]
pub(crate) struct Executor(Rc<Core>);

struct Core {
    clock: Clock,
    pulse: Cell<Pulse>,
    shared: Arc<Shared>,
    tasks: RefCell<Slab<Task>>,
    timers: RefCell<Timers>,
    closed: Cell<bool>,
}

struct Task {
    handle: Arc<Handle>,
    /// Absent while it is being polled.
    future: Option<LocalFuture>,
}

/// Timers by deadline, then by age. An ordered map, since a dropped sleep takes its timer out.
#[derive(Default)]
struct Timers {
    next: u64,
    by_deadline: BTreeMap<(Nanos, u64), Waker>,
}

/// What other threads may touch.
struct Shared {
    /// Tells executors apart that take turns on one thread.
    id: u64,
    inbox: Mutex<Inbox>,
    /// Whether the inbox has something: lets a spinning executor look without the lock.
    posted: AtomicBool,
    /// Whether the thread waits, or is about to, and so needs a kick.
    parked: AtomicBool,
    kick: Box<dyn Kick>,
}

#[derive(Default)]
struct Inbox {
    closed: bool,
    queue: VecDeque<Arc<Handle>>,
}

impl Shared {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a task from outside of the executor's thread.
    fn post(&self, handle: Arc<Handle>) {
        {
            let mut inbox = self.inbox();
            if inbox.closed {
                return;
            }
            inbox.queue.push_back(handle);
            self.posted.store(true, Ordering::Release);
        }
        // The first one to find it parked kicks it; the others' posts are found with the first.
        if self.parked.swap(false, Ordering::SeqCst) {
            self.kick.kick();
        }
    }
}

/// What a waker points to.
struct Handle {
    key: usize,
    queued: AtomicBool,
    shared: Arc<Shared>,
}

impl Wake for Handle {
    fn wake(self: Arc<Self>) {
        if self.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut handle = Some(self);
        // The thread's locals are gone only when the thread ends, and then the inbox is closed.
        let _ = SEAT.try_with(|seat| seat.push(&mut handle));
        if let Some(handle) = handle {
            let shared = Arc::clone(&handle.shared);
            shared.post(handle);
        }
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.load(Ordering::Acquire) {
            Arc::clone(self).wake();
        }
    }
}

/// The executor that runs on this thread, and what is ready there.
struct Seat {
    id: Cell<u64>,
    ready: RefCell<VecDeque<Arc<Handle>>>,
}

thread_local! {
    static SEAT: Seat = const {
        Seat { id: Cell::new(0), ready: RefCell::new(VecDeque::new()) }
    };
}

/// Ids of executors; 0 is nobody.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl Seat {
    /// Takes the handle if its executor runs on this thread.
    fn push(&self, handle: &mut Option<Arc<Handle>>) {
        if handle
            .as_ref()
            .is_some_and(|it| it.shared.id == self.id.get())
        {
            self.ready.borrow_mut().extend(handle.take());
        }
    }
}

/// Holds this thread's seat for one executor.
struct Seated;

impl Seated {
    fn new(id: u64) -> Seated {
        SEAT.with(|seat| {
            assert_eq!(seat.id.get(), 0, "an executor runs inside another");
            seat.id.set(id);
        });
        Seated
    }
}

impl Drop for Seated {
    fn drop(&mut self) {
        let left = SEAT.with(|seat| {
            seat.id.set(0);
            seat.ready.take()
        });
        drop(left);
    }
}

impl Executor {
    pub(crate) fn new(clock: Clock, kick: impl Kick) -> Executor {
        Executor(Rc::new(Core {
            clock,
            pulse: Cell::default(),
            shared: Arc::new(Shared {
                id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
                inbox: Mutex::default(),
                posted: AtomicBool::new(false),
                parked: AtomicBool::new(false),
                kick: Box::new(kick),
            }),
            tasks: RefCell::default(),
            timers: RefCell::default(),
            closed: Cell::new(false),
        }))
    }

    /// The time that its sleeps go by.
    pub(crate) fn now(&self) -> Nanos {
        self.0.clock.now()
    }

    /// When the pass began that runs now.
    pub(crate) fn pass(&self) -> Nanos {
        self.0.pulse.get().pass()
    }

    /// What it has done so far.
    pub(crate) fn load(&self) -> Load {
        self.0.pulse.get().load(self.now())
    }

    fn begin_pass(&self) {
        let mut pulse = self.0.pulse.get();
        pulse.begin_pass(self.now());
        self.0.pulse.set(pulse);
    }

    fn begin_rest(&self) {
        let mut pulse = self.0.pulse.get();
        pulse.begin_rest(self.now());
        self.0.pulse.set(pulse);
    }

    /// Starts a task. After [`Executor::shutdown`] it is dropped at once.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        if self.0.closed.get() {
            return;
        }
        let future: LocalFuture = Box::pin(task);
        let mut tasks = self.0.tasks.borrow_mut();
        let entry = tasks.vacant_entry();
        let handle = Arc::new(Handle {
            key: entry.key(),
            queued: AtomicBool::new(false),
            shared: Arc::clone(&self.0.shared),
        });
        entry.insert(Task {
            handle: Arc::clone(&handle),
            future: Some(future),
        });
        drop(tasks);
        handle.wake();
    }

    /// Completes no earlier than `span` from its first poll.
    pub(crate) fn sleep(&self, span: Duration) -> Sleep {
        Sleep {
            executor: self.clone(),
            span,
            timer: None,
        }
    }

    /// Runs `main` to its end, and meanwhile every task.
    ///
    /// It spins for `idle_spin` at most, each time, before it parks.
    pub(crate) fn run(
        &self,
        park: &impl Park,
        idle_spin: Duration,
        main: impl Future<Output = ()> + 'static,
    ) {
        let _seated = Seated::new(self.0.shared.id);
        let done = self.spawn_main(main);
        while !done.get() {
            self.begin_pass();
            self.fire_timers();
            self.run_ready();
            if done.get() {
                break;
            }
            match self.take_mail() {
                true => park.turn(true),
                false => self.idle(park, idle_spin),
            }
        }
    }

    /// Starts `main` as a task; says when it is over.
    #[must_use]
    pub(crate) fn spawn_main(&self, main: impl Future<Output = ()> + 'static) -> Rc<Cell<bool>> {
        let done = Rc::new(Cell::new(false));
        let main_done = Rc::clone(&done);
        self.spawn(async move {
            main.await;
            main_done.set(true);
        });
        done
    }

    /// Drops every task, and whatever those start as they go.
    pub(crate) fn shutdown(&self) {
        self.0.closed.set(true);
        let left = {
            let mut inbox = self.0.shared.inbox();
            inbox.closed = true;
            std::mem::take(&mut inbox.queue)
        };
        drop(left);
        let tasks = std::mem::take(&mut *self.0.tasks.borrow_mut());
        drop(tasks);
        let timers = std::mem::take(&mut self.0.timers.borrow_mut().by_deadline);
        drop(timers);
    }

    /// Fetches what other threads have queued; whether anything is ready.
    fn take_mail(&self) -> bool {
        SEAT.with(|seat| {
            let mut ready = seat.ready.borrow_mut();
            if self.0.shared.posted.swap(false, Ordering::Acquire) {
                ready.append(&mut self.0.shared.inbox().queue);
            }
            !ready.is_empty()
        })
    }

    /// Polls what is ready now; what becomes ready meanwhile waits for the next round.
    fn run_ready(&self) {
        self.take_mail();
        let count = SEAT.with(|seat| seat.ready.borrow().len());
        for _ in 0..count {
            let next = SEAT.with(|seat| seat.ready.borrow_mut().pop_front());
            if let Some(handle) = next {
                self.poll(handle);
            }
        }
    }

    fn poll(&self, handle: Arc<Handle>) {
        let key = handle.key;
        let future = match self.0.tasks.borrow_mut().get_mut(key) {
            // A late wake-up of a task that is gone may find another in its place.
            Some(task) if Arc::ptr_eq(&task.handle, &handle) => task.future.take(),
            _ => None,
        };
        let Some(mut future) = future else { return };
        // From here on a wake-up queues it again. Acquire, to see what the waker's thread did
        // before.
        handle.queued.swap(false, Ordering::AcqRel);
        let waker = Waker::from(handle);
        let mut context = Context::from_waker(&waker);
        if future.as_mut().poll(&mut context).is_pending() {
            // It is gone when the task shut the executor down.
            if let Some(task) = self.0.tasks.borrow_mut().get_mut(key) {
                task.future = Some(future);
            }
            return;
        }
        drop(future);
        let task = self.0.tasks.borrow_mut().try_remove(key);
        if let Some(task) = task {
            // Nothing ever queues it again.
            task.handle.queued.store(true, Ordering::Release);
        }
    }

    fn fire_timers(&self) {
        if self.0.timers.borrow().by_deadline.is_empty() {
            return;
        }
        let now = self.pass();
        loop {
            let due = self.0.timers.borrow_mut().pop_due(now);
            let Some(waker) = due else { return };
            waker.wake();
        }
    }

    fn until_timer(&self) -> Option<Duration> {
        let timers = self.0.timers.borrow();
        let ((deadline, _), _) = timers.by_deadline.first_key_value()?;
        Some(deadline.since(self.now()))
    }

    /// Nothing is ready: spins, if it may, then parks.
    fn idle(&self, park: &impl Park, idle_spin: Duration) {
        self.begin_rest();
        if !idle_spin.is_zero() && self.spin(park, idle_spin) {
            return;
        }
        let shared = &self.0.shared;
        shared.parked.store(true, Ordering::SeqCst);
        // The flag `posted` is not enough here: only the lock orders this look after the store
        // above.
        if shared.inbox().queue.is_empty() {
            park.park(self.until_timer());
        }
        shared.parked.store(false, Ordering::SeqCst);
    }

    /// Looks for work over and over, for `span`; whether it found some.
    fn spin(&self, park: &impl Park, span: Duration) -> bool {
        let until = self.now().after(span);
        loop {
            park.turn(false);
            if self.take_mail() || self.until_timer().is_some_and(|left| left.is_zero()) {
                return true;
            }
            if self.now() >= until {
                return false;
            }
            std::hint::spin_loop();
        }
    }
}

impl Timers {
    fn pop_due(&mut self, now: Nanos) -> Option<Waker> {
        let entry = self.by_deadline.first_entry()?;
        match entry.key().0 <= now {
            true => Some(entry.remove()),
            false => None,
        }
    }
}

/// See [`Executor::sleep`].
pub(crate) struct Sleep {
    executor: Executor,
    span: Duration,
    timer: Option<(Nanos, u64)>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let now = self.executor.now();
        let this = &mut *self;
        let mut timers = this.executor.0.timers.borrow_mut();
        let key = *this.timer.get_or_insert_with(|| {
            timers.next += 1;
            (now.after(this.span), timers.next)
        });
        if key.0 <= now {
            let old = timers.by_deadline.remove(&key);
            drop(timers);
            drop(old);
            return Poll::Ready(());
        }
        let old = timers.by_deadline.insert(key, context.waker().clone());
        drop(timers);
        drop(old);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.timer {
            let old = self.executor.0.timers.borrow_mut().by_deadline.remove(&key);
            drop(old);
        }
    }
}

#[cfg(test)]
mod tests;
