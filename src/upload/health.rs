//! Whether the bucket is well, as its answers tell.
//!
//! What reads and what writes go separate ways: behind a bucket that lists and takes nothing, bytes
//! can be had, and nothing is uploaded.
//!
//! Invariant: `FAILURES` failures in a row turn a way bad, one success on it turns it good. The
//! bucket is as good as the worse of them.

use crate::remote::Failure;
use crate::sync::Mutex;
use crate::types::Nanos;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// Failures in a row that turn a way bad.
const FAILURES: u32 = 3;

/// What a request does in the bucket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// Gets and listings.
    Reads,
    /// Creates and deletions.
    Writes,
}

/// How one way is.
struct Track {
    failures: AtomicU32,
    bad: AtomicBool,
    /// Since when, in nanoseconds; meaningful while it is bad.
    since: AtomicU64,
    /// Why, the last time that something failed.
    why: Mutex<String>,
}

impl Track {
    fn new() -> Track {
        Track {
            failures: AtomicU32::new(0),
            bad: AtomicBool::new(false),
            since: AtomicU64::new(0),
            why: Mutex::new(String::new()),
        }
    }

    fn is_good(&self) -> bool {
        !self.bad.load(Ordering::Acquire)
    }

    fn bad(&self) -> Option<(Nanos, String)> {
        let since = Nanos(self.since.load(Ordering::Acquire));
        (!self.is_good()).then(|| (since, self.why.lock().clone()))
    }
}

/// How the bucket is, for everybody to see.
pub(crate) struct Health {
    reads: Track,
    writes: Track,
    /// When the bucket was heard of last, in nanoseconds.
    heard: AtomicU64,
}

impl Health {
    pub(super) fn new() -> Health {
        Health {
            reads: Track::new(),
            writes: Track::new(),
            heard: AtomicU64::new(0),
        }
    }

    fn track(&self, way: Way) -> &Track {
        match way {
            Way::Reads => &self.reads,
            Way::Writes => &self.writes,
        }
    }

    /// Why and since when the bucket is bad; `None` while it is good.
    pub(crate) fn bad(&self) -> Option<(Nanos, String)> {
        let both = [self.reads.bad(), self.writes.bad()];
        both.into_iter().flatten().min_by_key(|(since, _)| *since)
    }

    /// Why nothing can be had from the bucket; `None` while something can.
    pub(super) fn reads_bad(&self) -> Option<String> {
        self.reads.bad().map(|(_, why)| why)
    }

    pub(super) fn is_bad(&self, way: Way) -> bool {
        !self.track(way).is_good()
    }

    pub(crate) fn is_good(&self) -> bool {
        self.reads.is_good() && self.writes.is_good()
    }

    /// For how long nothing has been asked of the bucket that would tell how it is.
    pub(super) fn silence(&self, now: Nanos) -> Duration {
        now.since(Nanos(self.heard.load(Ordering::Acquire)))
    }

    /// It has answered, or was seen not to.
    pub(super) fn note_heard(&self, now: Nanos) {
        self.heard.store(now.0, Ordering::Release);
    }

    pub(super) fn note_success(&self, way: Way, now: Nanos) {
        self.note_heard(now);
        let track = self.track(way);
        track.failures.store(0, Ordering::Release);
        if track.bad.swap(false, Ordering::AcqRel) {
            tracing::info!(?way, "the remote is back");
        }
    }

    /// Whether this failure has turned the way bad.
    pub(super) fn note_failure(&self, way: Way, why: &Failure, now: Nanos) -> bool {
        self.note_heard(now);
        let track = self.track(way);
        let failures = track.failures.fetch_add(1, Ordering::AcqRel) + 1;
        *track.why.lock() = why.message.clone();
        if failures < FAILURES || !track.is_good() {
            return false;
        }
        track.since.store(now.0, Ordering::Release);
        track.bad.store(true, Ordering::Release);
        tracing::warn!(?way, why = why.message, "the remote is bad");
        true
    }
}
