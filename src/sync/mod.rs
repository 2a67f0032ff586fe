//! The few shared-memory primitives that cross threads, replaceable by loom's under `--cfg loom`.
//!
//! A panic while a lock is held leaves the data as it was between two statements of a few-line
//! critical section, so poisoning is ignored.
//!
//! What threads and tasks hand things over with stands on them: the mailbox, the one-shot answer, and
//! the signal, which is for the tasks of one thread.

pub(crate) mod mailbox;
pub(crate) mod signal;
pub(crate) mod slot;

#[cfg(loom)]
pub(crate) use loom::sync::Arc;
#[cfg(not(loom))]
pub(crate) use std::sync::Arc;

#[cfg(loom)]
use loom::sync as imp;
#[cfg(not(loom))]
use std::sync as imp;

/// A mutex without poisoning.
pub(crate) struct Mutex<T>(imp::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Mutex<T> {
        Mutex(imp::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> imp::MutexGuard<'_, T> {
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
