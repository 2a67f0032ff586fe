//! How a shard's loop spends its time, from one stamp of the clock a pass.
//!
//! Invariants:
//! 1. Every nanosecond is counted once: as busy, or as rest.
//! 2. To look for work, which `idle_spin` has a loop do, is rest: the figure tells how much of what
//!    the loop could do it does, and one that spins could take work at any moment. What the
//!    processor burns meanwhile, the process's own figures tell.

use crate::types::Nanos;
use std::time::Duration;

/// Longer than this between two passes is a stall: requests wait for it that a device would have
/// answered many times over.
const STALL: Duration = Duration::from_millis(1);

/// What a loop has done since it began.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Load {
    /// Time that it was not at rest.
    pub(crate) busy: Duration,
    /// Passes that took longer than [`STALL`].
    pub(crate) stalls: u64,
}

/// The loop's own account.
#[derive(Clone, Copy, Default)]
pub(super) struct Pulse {
    /// When the pass began, or the rest.
    stamp: Nanos,
    is_at_work: bool,
    load: Load,
}

impl Pulse {
    /// When the pass that runs now began.
    pub(super) fn pass(&self) -> Nanos {
        self.stamp
    }

    /// With the pass that runs now, up to `now`.
    pub(super) fn load(mut self, now: Nanos) -> Load {
        self.settle(now);
        self.load
    }

    pub(super) fn begin_pass(&mut self, now: Nanos) {
        self.settle(now);
        self.is_at_work = true;
    }

    /// There is nothing to do: the loop parks, or looks for work.
    pub(super) fn begin_rest(&mut self, now: Nanos) {
        self.settle(now);
        self.is_at_work = false;
    }

    fn settle(&mut self, now: Nanos) {
        let span = now.since(self.stamp);
        if self.is_at_work {
            self.load.busy += span;
            self.load.stalls += u64::from(span > STALL);
        }
        self.stamp = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_rest_is_busy() {
        let mut pulse = Pulse::default();
        let at = |us: u64| Nanos(us * 1000);
        let busy = |us, stalls| Load {
            busy: Duration::from_micros(us),
            stalls,
        };
        // Before the first pass it was not there.
        assert_eq!(pulse.load(at(500)), busy(0, 0));
        pulse.begin_pass(at(1000));
        assert_eq!(pulse.pass(), at(1000));
        assert_eq!(pulse.load(at(1300)), busy(300, 0));
        pulse.begin_pass(at(2000));
        pulse.begin_rest(at(2100));
        assert_eq!(pulse.load(at(9000)), busy(1100, 0));
        pulse.begin_pass(at(10_000));
        // A pass of exactly a millisecond is none, a longer one is a stall.
        pulse.begin_pass(at(11_000));
        pulse.begin_rest(at(12_001));
        assert_eq!(pulse.load(at(20_000)), busy(3101, 1));
    }
}
