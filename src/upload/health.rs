//! Whether the bucket is well, as its answers tell.
//!
//! Invariant: `FAILURES` failures in a row turn it bad, one success turns it good.

use crate::remote::Failure;
use crate::sync::Mutex;
use crate::types::Nanos;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// Failures in a row that turn the bucket bad.
const FAILURES: u32 = 3;

/// How the bucket is, for everybody to see.
pub(crate) struct Health {
    failures: AtomicU32,
    bad: AtomicBool,
    /// Since when, in nanoseconds; meaningful while it is bad.
    since: AtomicU64,
    /// Why, the last time that something failed.
    why: Mutex<String>,
}

impl Health {
    pub(super) fn new() -> Health {
        Health {
            failures: AtomicU32::new(0),
            bad: AtomicBool::new(false),
            since: AtomicU64::new(0),
            why: Mutex::new(String::new()),
        }
    }

    /// Why and since when the bucket is bad; `None` while it is good.
    pub(crate) fn bad(&self) -> Option<(Nanos, String)> {
        let bad = self.bad.load(Ordering::Acquire);
        bad.then(|| {
            let since = Nanos(self.since.load(Ordering::Acquire));
            (since, self.why())
        })
    }

    /// Why something failed the last time.
    pub(super) fn why(&self) -> String {
        self.why.lock().clone()
    }

    pub(crate) fn is_good(&self) -> bool {
        !self.bad.load(Ordering::Acquire)
    }

    pub(super) fn note_success(&self) {
        self.failures.store(0, Ordering::Release);
        if self.bad.swap(false, Ordering::AcqRel) {
            tracing::info!("the remote is back");
        }
    }

    /// Whether this failure has turned the bucket bad.
    pub(super) fn note_failure(&self, why: &Failure, now: Nanos) -> bool {
        let failures = self.failures.fetch_add(1, Ordering::AcqRel) + 1;
        *self.why.lock() = why.message.clone();
        if failures < FAILURES || self.bad.load(Ordering::Acquire) {
            return false;
        }
        self.since.store(now.0, Ordering::Release);
        self.bad.store(true, Ordering::Release);
        tracing::warn!(why = why.message, "the remote is bad");
        true
    }
}
