//! How long operations take, and where they spend it.
//!
//! Operations are timed by the clock; their stages by the stamps of the loop's passes, which are
//! there already: a read of the device that costs a few microseconds of the processor would feel
//! two looks at the clock more.

use super::Shard;
use crate::io::Driver;
use crate::stats::{Ended, Op, Stage};
use crate::types::Nanos;

impl<D: Driver> Shard<D> {
    /// When the pass of the loop began that runs now.
    pub(super) fn pass(&self) -> Nanos {
        self.0.driver.pass()
    }

    /// A stage that began at `from` is over.
    pub(super) fn note_stage(&self, stage: Stage, from: Nanos) {
        let now = self.pass();
        self.state().latencies.record_stage(stage, from, now);
    }

    /// An operation that its caller began at `at` is over.
    pub(super) fn note(&self, op: Op, at: Nanos, succeeded: bool) {
        let now = self.now();
        let ended = match succeeded {
            true => Ended::Answered,
            false => Ended::Failed,
        };
        self.state().latencies.record(op, at, now, ended);
        if let Some(slow) = self.0.params.config.slow_op
            && now.since(at) > slow
        {
            self.state().latencies.note_slow(op);
            let (shard, took) = (self.0.params.shard.0, now.since(at));
            tracing::warn!(shard, ?op, ?took, "a slow operation");
        }
    }
}
