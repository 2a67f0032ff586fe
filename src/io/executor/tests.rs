//! The executor alone, with a condition variable for a driver.

use super::*;
use std::sync::Condvar;
use std::sync::atomic::AtomicUsize;

/// Parks on a condition variable and counts what it is told.
#[derive(Clone, Default)]
struct Bench(Arc<BenchState>);

#[derive(Default)]
struct BenchState {
    kicked: Mutex<bool>,
    /// Held by a test that keeps the executor from going on.
    gate: Mutex<()>,
    changed: Condvar,
    kicks: AtomicUsize,
    parks: AtomicUsize,
}

impl Park for Bench {
    fn turn(&self, _more_to_run: bool) {}

    fn park(&self, timeout: Option<Duration>) {
        self.0.parks.fetch_add(1, Ordering::Relaxed);
        let kicked = self.0.kicked.lock().unwrap();
        let timeout = timeout.unwrap_or(Duration::from_secs(3600));
        let waited = self
            .0
            .changed
            .wait_timeout_while(kicked, timeout, |it| !*it);
        *waited.unwrap().0 = false;
        drop(self.0.gate.lock().unwrap());
    }
}

impl Kick for Bench {
    fn kick(&self) {
        self.0.kicks.fetch_add(1, Ordering::Relaxed);
        *self.0.kicked.lock().unwrap() = true;
        self.0.changed.notify_one();
    }
}

fn bench() -> (Bench, Executor) {
    let bench = Bench::default();
    let executor = Executor::new(Clock::Real, bench.clone());
    (bench, executor)
}

/// Is pending once, and woken by itself.
fn yield_now() -> impl Future<Output = ()> {
    let mut yielded = false;
    std::future::poll_fn(move |context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
}

#[test]
fn tasks_run_in_turn() {
    let (bench, executor) = bench();
    let log = Rc::new(RefCell::new(Vec::new()));
    for name in ["a", "b"] {
        let log = Rc::clone(&log);
        executor.spawn(async move {
            for round in 0..2 {
                log.borrow_mut().push((name, round));
                yield_now().await;
            }
        });
    }
    executor.run(&bench, Duration::ZERO, async {
        for _ in 0..4 {
            yield_now().await;
        }
    });
    assert_eq!(*log.borrow(), [("a", 0), ("b", 0), ("a", 1), ("b", 1)]);
    assert_eq!(bench.0.kicks.load(Ordering::Relaxed), 0);
}

#[test]
fn sleeps_end_in_order_and_dropped_ones_leave_nothing() {
    let (bench, executor) = bench();
    let log = Rc::new(RefCell::new(Vec::new()));
    let main = {
        let (executor, log) = (executor.clone(), Rc::clone(&log));
        async move {
            for ms in [30, 10, 20] {
                let (log, sleep) = (Rc::clone(&log), executor.sleep(Duration::from_millis(ms)));
                executor.spawn(async move {
                    sleep.await;
                    log.borrow_mut().push(ms);
                });
            }
            let mut dropped = Box::pin(executor.sleep(Duration::from_secs(60)));
            let polled = dropped
                .as_mut()
                .poll(&mut Context::from_waker(Waker::noop()));
            assert!(polled.is_pending());
            drop(dropped);
            executor.sleep(Duration::from_millis(40)).await;
        }
    };
    executor.run(&bench, Duration::ZERO, main);
    assert_eq!(*log.borrow(), [10, 20, 30]);
    assert!(executor.0.timers.borrow().by_deadline.is_empty());
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "the wake-up has to come from another thread"
)]
fn many_wakes_from_another_thread_are_one_kick() {
    const TASKS: usize = 100;
    let (bench, executor) = bench();
    let wakers = Arc::new(Mutex::new(Vec::<Waker>::new()));
    let go = Arc::new(AtomicBool::new(false));
    let left = Rc::new(Cell::new(TASKS));
    let (main_waker, main) = (Rc::new(RefCell::new(None::<Waker>)), Rc::clone(&left));
    for _ in 0..TASKS {
        let (wakers, go, left) = (Arc::clone(&wakers), Arc::clone(&go), Rc::clone(&left));
        let main_waker = Rc::clone(&main_waker);
        executor.spawn(async move {
            std::future::poll_fn(|context| {
                if go.load(Ordering::Acquire) {
                    return Poll::Ready(());
                }
                wakers.lock().unwrap().push(context.waker().clone());
                Poll::Pending
            })
            .await;
            left.set(left.get() - 1);
            if left.get() > 0 {
                return;
            }
            if let Some(waker) = main_waker.take() {
                waker.wake();
            }
        });
    }
    let (parked, waking) = (bench.clone(), Arc::clone(&wakers));
    let thread = std::thread::spawn(move || {
        while parked.0.parks.load(Ordering::Relaxed) == 0 {
            std::thread::yield_now();
        }
        // It is parked by now, or about to; while the gate is held it does not go on.
        let gate = parked.0.gate.lock().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        go.store(true, Ordering::Release);
        let wakers = std::mem::take(&mut *waking.lock().unwrap());
        assert_eq!(wakers.len(), TASKS);
        wakers.into_iter().for_each(Waker::wake);
        drop(gate);
    });
    executor.run(
        &bench,
        Duration::ZERO,
        std::future::poll_fn(move |context| {
            *main_waker.borrow_mut() = Some(context.waker().clone());
            if main.get() == 0 {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        }),
    );
    thread.join().unwrap();
    assert_eq!(bench.0.kicks.load(Ordering::Relaxed), 1);
}

#[test]
fn shutdown_drops_tasks_and_those_they_start() {
    struct Spawner(Executor, Rc<Cell<u32>>);
    impl Drop for Spawner {
        fn drop(&mut self) {
            self.1.set(self.1.get() + 1);
            let counter = Rc::clone(&self.1);
            self.0.spawn(async move { counter.set(1000) });
        }
    }
    let (bench, executor) = bench();
    let drops = Rc::new(Cell::new(0));
    for _ in 0..3 {
        let spawner = Spawner(executor.clone(), Rc::clone(&drops));
        executor.spawn(async move {
            let _spawner = spawner;
            std::future::pending::<()>().await;
        });
    }
    executor.run(&bench, Duration::ZERO, yield_now());
    executor.shutdown();
    assert_eq!(drops.get(), 3);
    assert!(executor.0.tasks.borrow().is_empty());
}

#[test]
fn late_wakes_are_harmless() {
    let (bench, executor) = bench();
    let kept = Rc::new(RefCell::new(None::<Waker>));
    let keep = Rc::clone(&kept);
    executor.run(
        &bench,
        Duration::ZERO,
        std::future::poll_fn(move |context| {
            *keep.borrow_mut() = Some(context.waker().clone());
            Poll::Ready(())
        }),
    );
    let waker = kept.take().unwrap();
    waker.wake_by_ref();
    executor.run(&bench, Duration::ZERO, yield_now());
    waker.wake_by_ref();
    executor.shutdown();
    waker.wake();
}

/// Time passes by nothing but what the executor does: a millisecond for a turn, and all of it that
/// a wait may take.
struct Hands {
    nanos: Arc<AtomicU64>,
    turns: Cell<u64>,
    parks: RefCell<Vec<Option<Duration>>>,
}

impl Hands {
    fn pass(&self, span: Duration) {
        let nanos = u64::try_from(span.as_nanos()).unwrap();
        self.nanos.fetch_add(nanos, Ordering::Release);
    }
}

impl Park for Hands {
    fn turn(&self, _more_to_run: bool) {
        self.turns.set(self.turns.get() + 1);
        self.pass(Duration::from_millis(1));
    }

    fn park(&self, timeout: Option<Duration>) {
        self.parks.borrow_mut().push(timeout);
        self.pass(timeout.unwrap());
    }
}

#[test]
fn spinning_sees_timers_and_parks_in_the_end() {
    let hands = Hands {
        nanos: Arc::default(),
        turns: Cell::default(),
        parks: RefCell::default(),
    };
    let executor = Executor::new(Clock::Virtual(hands.nanos.clone()), Bench::default());
    let main = {
        let executor = executor.clone();
        async move {
            executor.sleep(Duration::from_millis(2)).await;
            executor.sleep(Duration::from_millis(30)).await;
        }
    };
    executor.run(&hands, Duration::from_millis(10), main);
    // The first timer is due while it spins; of the second, what is left after spinning is slept.
    assert_eq!(hands.turns.get(), 2 + 10);
    assert_eq!(*hands.parks.borrow(), [Some(Duration::from_millis(20))]);
    assert_eq!(executor.now(), Nanos(32_000_000));
}

/// A driver of virtual time: each turn takes a microsecond, a park as long as it may.
struct Clockwork(Arc<AtomicU64>);

impl Clockwork {
    fn wind(&self, span: Duration) {
        self.0.fetch_add(span.as_nanos() as u64, Ordering::AcqRel);
    }
}

impl Park for Clockwork {
    fn turn(&self, _more_to_run: bool) {
        self.wind(Duration::from_micros(1));
    }

    fn park(&self, timeout: Option<Duration>) {
        self.wind(timeout.expect("there is a timer"));
    }
}

impl Kick for Clockwork {
    fn kick(&self) {}
}

#[test]
fn neither_parking_nor_spinning_is_being_busy() {
    for idle_spin in [Duration::ZERO, Duration::from_millis(2)] {
        let nanos = Arc::new(AtomicU64::new(77));
        let work = |us: u64| {
            let work = Clockwork(Arc::clone(&nanos));
            move || work.wind(Duration::from_micros(us))
        };
        let executor = Executor::new(
            Clock::Virtual(Arc::clone(&nanos)),
            Clockwork(Arc::clone(&nanos)),
        );
        let (first, second, third) = (work(5000), work(300), work(400));
        let inner = executor.clone();
        executor.run(&Clockwork(Arc::clone(&nanos)), idle_spin, async move {
            first();
            inner.sleep(Duration::from_millis(7)).await;
            assert_eq!(inner.pass(), inner.now());
            second();
            // Ready again at once: a turn of the driver is between, which is work.
            yield_now().await;
            third();
        });
        let load = executor.load();
        assert_eq!(load.busy, Duration::from_micros(5701), "{idle_spin:?}");
        assert_eq!(load.stalls, 1, "{idle_spin:?}");
    }
}
