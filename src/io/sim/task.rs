//! What tasks hold of the runtime: timers and the handles of other tasks.
//!
//! Invariants:
//! 1. A timer whose future is dropped is cancelled, so that it neither moves the clock nor hides a
//!    deadlock.
//! 2. A handle hears of its task's end also when the task is dropped before it is done.
//!
//! Deliberately not here: when any of them runs.

use super::runtime::{Group, Runtime, TimerKey};
use crate::types::Nanos;
use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// Completes no earlier than `span` after its first poll, and up to `late_ns_max` later.
pub(super) fn sleep(
    runtime: &Rc<Runtime>,
    span: Duration,
    late_ns_max: u64,
) -> impl Future<Output = ()> + 'static {
    let runtime = Rc::clone(runtime);
    async move {
        let late = runtime.random(late_ns_max);
        let due = Nanos(runtime.now().after(span).0.saturating_add(late));
        let mut timer = Timer { runtime, key: None };
        poll_fn(|context| {
            timer.disarm();
            if timer.runtime.now() >= due {
                return Poll::Ready(());
            }
            timer.key = Some(timer.runtime.wake_at(due, context.waker().clone()));
            Poll::Pending
        })
        .await;
    }
}

/// A timer that is cancelled when dropped, so that it does not hide a deadlock.
struct Timer {
    runtime: Rc<Runtime>,
    key: Option<TimerKey>,
}

impl Timer {
    fn disarm(&mut self) {
        if let Some(key) = self.key.take() {
            self.runtime.cancel(key);
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.disarm();
    }
}

/// Awaits the output of a task; `None` if it was killed.
pub(crate) struct JoinHandle<T>(Rc<RefCell<Join<T>>>);

struct Join<T> {
    output: Option<T>,
    ended: bool,
    waker: Option<Waker>,
}

/// Says that a task has ended, also when it is dropped before it was done.
struct Ending<T>(Rc<RefCell<Join<T>>>);

impl<T> Drop for Ending<T> {
    fn drop(&mut self) {
        let waker = {
            let mut join = self.0.borrow_mut();
            join.ended = true;
            join.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> JoinHandle<T> {
    /// Whether the task has ended.
    pub(crate) fn is_ended(&self) -> bool {
        self.0.borrow().ended
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        let mut join = self.0.borrow_mut();
        if join.ended {
            return Poll::Ready(join.output.take());
        }
        let waker = join.waker.replace(context.waker().clone());
        drop(join);
        drop(waker);
        Poll::Pending
    }
}

/// Starts `task` in `group`.
pub(super) fn spawn_joined<T: 'static>(
    runtime: &Runtime,
    group: &Rc<Group>,
    task: impl Future<Output = T> + 'static,
) -> JoinHandle<T> {
    let join = Rc::new(RefCell::new(Join {
        output: None,
        ended: false,
        waker: None,
    }));
    let ending = Ending(Rc::clone(&join));
    runtime.spawn(group, 0, async move {
        let output = task.await;
        ending.0.borrow_mut().output = Some(output);
    });
    JoinHandle(join)
}
