//! A condition that tasks of one shard wait for: the shard-local cousin of a condition variable.
//!
//! Invariant: a waiter re-checks its condition after every `notify`, so a spurious wake-up costs a
//! check and a missed one cannot happen (all of it is on one thread).

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::task::{Poll, Waker};

/// Wakes everybody who waits for something to have changed.
#[derive(Default)]
pub(crate) struct Signal(RefCell<Vec<Waker>>);

impl Signal {
    /// Something changed: everybody looks again.
    pub(crate) fn notify(&self) {
        for waker in self.0.take() {
            waker.wake();
        }
    }

    /// Resolves when `check` gives a value; it is asked now and after every `notify`.
    pub(crate) fn until<T>(&self, mut check: impl FnMut() -> Option<T>) -> impl Future<Output = T> {
        poll_fn(move |context| match check() {
            Some(value) => Poll::Ready(value),
            None => {
                self.0.borrow_mut().push(context.waker().clone());
                Poll::Pending
            }
        })
    }
}
