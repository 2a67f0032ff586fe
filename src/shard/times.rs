//! How long operations take, and where they spend it.
//!
//! Operations are timed by the clock; their stages by the stamps of the loop's passes, which are
//! there already: a read of the device that costs a few microseconds of the processor would feel
//! two looks at the clock more.
//!
//! Invariant: what an operation spends in stages is added up while its own future is polled, so
//! that nothing has to be handed down to where it waits. What is done for it by other tasks it adds
//! itself, when it has waited for that.

use super::Shard;
use crate::error::Result;
use crate::io::Driver;
use crate::stats::{Ended, Op, Spent, Stage};
use crate::types::Nanos;
use std::pin::Pin;
use std::time::Duration;

impl<D: Driver> Shard<D> {
    /// When the pass of the loop began that runs now.
    pub(super) fn pass(&self) -> Nanos {
        self.0.driver.pass()
    }

    /// A stage that began at `from` is over.
    pub(super) fn note_stage(&self, stage: Stage, from: Nanos) {
        let now = self.pass();
        self.state().latencies.record_stage(stage, from, now);
        self.spend(stage, now.since(from));
    }

    /// The operation that is being polled has spent so much in a stage.
    pub(super) fn spend(&self, stage: Stage, span: Duration) {
        let mut spent = self.0.spent.get();
        spent.add(stage, span);
        self.0.spent.set(spent);
    }

    /// Runs an operation that its caller began at `at`, and notes how long it took.
    pub(super) async fn timed<T>(
        &self,
        op: Op,
        at: Nanos,
        mut flow: Pin<&mut impl Future<Output = Result<T>>>,
    ) -> Result<T> {
        let mut spent = Spent::default();
        spent.add(Stage::QueueWait, self.pass().since(at));
        let result = std::future::poll_fn(|context| {
            let others = self.0.spent.replace(spent);
            let polled = flow.as_mut().poll(context);
            spent = self.0.spent.replace(others);
            polled
        });
        let result = result.await;
        self.note(op, at, result.is_ok(), &spent);
        result
    }

    fn note(&self, op: Op, at: Nanos, succeeded: bool, spent: &Spent) {
        let now = self.now();
        let op = match op {
            Op::ReadLocal if spent.has(Stage::Fetch) => Op::ReadRemote,
            op => op,
        };
        let ended = match succeeded {
            true => Ended::Answered,
            false => Ended::Failed,
        };
        if op != Op::Meta {
            self.0.used_at.set(now);
        }
        self.state().latencies.record(op, at, now, ended);
        if let Some(slow) = self.0.params.config.slow_op
            && now.since(at) > slow
        {
            let (shard, took) = (self.0.params.shard.0, now.since(at));
            let cause = spent.cause(took);
            self.state().latencies.note_slow(op, cause);
            tracing::warn!(shard, ?op, ?took, %cause, "a slow operation");
        }
    }
}
