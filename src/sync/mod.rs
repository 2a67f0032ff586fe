//! The few shared-memory primitives that cross threads, replaceable by loom's under `--cfg loom`.
//!
//! A panic while a lock is held leaves the data as it was between two statements of a few-line
//! critical section, so poisoning is ignored.
//!
//! What threads and tasks hand things over with stands on them: the mailbox, the one-shot answer,
//! and, for the tasks of one thread, the signal and the limit.

pub(crate) mod limit;
pub(crate) mod mailbox;
pub(crate) mod signal;
pub(crate) mod slot;

#[cfg(loom)]
pub(crate) use loom::sync::Arc;
#[cfg(not(loom))]
pub(crate) use std::sync::Arc;

#[cfg(loom)]
pub(crate) use loom::sync::atomic;
#[cfg(not(loom))]
pub(crate) use std::sync::atomic;

#[cfg(loom)]
use loom::sync as imp;
#[cfg(not(loom))]
use std::sync as imp;

use std::sync::TryLockError;

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

/// A cell that any thread may look into and one may change, and for which nobody ever waits.
pub(crate) struct TryCell<T>(imp::RwLock<T>);

impl<T> TryCell<T> {
    pub(crate) fn new(value: T) -> TryCell<T> {
        TryCell(imp::RwLock::new(value))
    }

    /// Looks in, unless it is being changed.
    pub(crate) fn try_read(&self) -> Option<imp::RwLockReadGuard<'_, T>> {
        match self.0.try_read() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Changes it, unless somebody is looking in.
    pub(crate) fn try_write(&self) -> Option<imp::RwLockWriteGuard<'_, T>> {
        match self.0.try_write() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}
