//! Where time comes from.
//!
//! Invariants:
//! 1. It never goes back, and all real clocks of a process count from one base, so that times taken
//!    on different shards may be compared.
//!
//! Deliberately not here: sleeping (a driver's), and the wall clock (nobody's).

use crate::types::Nanos;
use std::sync::OnceLock;
#[cfg(any(test, feature = "sim"))]
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use std::time::Instant;

/// The first reading of any real clock, from which they all count.
static BASE: OnceLock<Instant> = OnceLock::new();

/// A source of monotonic time; clones show the same time, on any thread.
#[derive(Clone, Debug)]
pub(crate) enum Clock {
    /// The system's monotonic clock.
    Real,
    /// Nanoseconds that somebody else moves on.
    #[cfg(any(test, feature = "sim"))]
    Virtual(Arc<AtomicU64>),
}

impl Clock {
    /// Nanoseconds since the clock's base.
    #[expect(clippy::disallowed_methods, reason = "this is where time comes from")]
    pub(crate) fn now(&self) -> Nanos {
        match self {
            Clock::Real => {
                let base = *BASE.get_or_init(Instant::now);
                // 2^64 nanoseconds are 584 years.
                Nanos(base.elapsed().as_nanos() as u64)
            }
            #[cfg(any(test, feature = "sim"))]
            Clock::Virtual(nanos) => Nanos(nanos.load(Ordering::Acquire)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn real_time_does_not_go_back() {
        let clock = Clock::Real;
        let mut last = clock.now();
        for _ in 0..1000 {
            let now = clock.now();
            assert!(now >= last);
            last = now;
        }
    }

    #[test]
    fn virtual_time_is_shared() {
        let nanos = Arc::new(AtomicU64::new(7));
        let clock = Clock::Virtual(Arc::clone(&nanos));
        let other = clock.clone();
        assert_eq!(clock.now(), Nanos(7));
        nanos.store(9, Ordering::Release);
        assert_eq!((clock.now(), other.now()), (Nanos(9), Nanos(9)));
    }
}
