//! How long things take: histograms of operations, of the stages that they go through, and of the
//! remote's requests.
//!
//! The engine's only place that names `hdrhistogram`.
//!
//! Invariant: no name stands for two things, so that one suffices to ask for what it stands for.

use crate::types::Nanos;
use hdrhistogram::Histogram;
use std::fmt;
use std::time::Duration;

/// Operations that have a histogram of their own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Op {
    ReadHit,
    /// From this machine alone.
    ReadLocal,
    /// With bytes that had to be fetched from the remote.
    ReadRemote,
    Write,
    Flush,
    Truncate,
    Punch,
    Delete,
    Copy,
    CowRead,
    Meta,
}

impl Op {
    /// In the order of the variants.
    const NAMES: [&'static str; 11] = [
        "read_hit",
        "read_local",
        "read_remote",
        "write",
        "flush",
        "truncate",
        "punch",
        "delete",
        "copy",
        "cow_read",
        "meta",
    ];
}

/// Where operations spend their time, and the upkeep behind them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stage {
    /// From the caller's submission to the shard's taking it.
    QueueWait,
    /// From a flush to when the batch that it waits for is handed to the device.
    GroupCommitWait,
    /// A read of the local disk.
    DeviceRead,
    /// A write of a batch, until it is durable if it is to be.
    DeviceWrite,
    /// A sync of what was written without one.
    Sync,
    /// From the want of bytes of the remote to their coming, checked.
    Fetch,
    /// From handing a segment to the uploader to the bucket's having it.
    Upload,
    /// A checkpoint, from its snapshot to its being the newest.
    Checkpoint,
}

impl Stage {
    /// In the order of the variants.
    const NAMES: [&'static str; 8] = [
        "queue_wait",
        "group_commit_wait",
        "device_read",
        "device_write",
        "sync",
        "fetch",
        "upload",
        "checkpoint",
    ];
}

/// What one operation has spent in each stage, in microseconds: small enough to be handed about.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Spent([u32; Stage::NAMES.len()]);

/// Why an operation was slow: the place of a stage, or behind them for whatever is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Cause(usize);

impl Spent {
    pub(crate) fn add(&mut self, stage: Stage, span: Duration) {
        let span = u32::try_from(span.as_micros()).unwrap_or(u32::MAX);
        let sum = &mut self.0[stage as usize];
        *sum = sum.saturating_add(span);
    }

    /// Whether it has spent any time in a stage.
    pub(crate) fn has(&self, stage: Stage) -> bool {
        self.0[stage as usize] > 0
    }

    /// What most of an operation went into that took so long. Parts that were read at once add up.
    pub(crate) fn cause(&self, took: Duration) -> Cause {
        let known = self.0.iter().map(|span| u64::from(*span)).sum();
        let other = (took.as_micros() as u64).saturating_sub(known);
        let stages = self.0.iter().map(|span| u64::from(*span)).enumerate();
        // Of equals the last counts, and it is no stage if all are nothing.
        let spans = stages.chain([(self.0.len(), other)]);
        Cause(spans.max_by_key(|(_, span)| *span).map_or(0, |(at, _)| at))
    }
}

impl Cause {
    /// The stages, in their order, and what is none of them.
    const NAMES: [&'static str; Stage::NAMES.len() + 1] = {
        let mut names = ["other"; Stage::NAMES.len() + 1];
        let mut index = 0;
        while index < Stage::NAMES.len() {
            names[index] = Stage::NAMES[index];
            index += 1;
        }
        names
    };
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Cause::NAMES[self.0])
    }
}

/// What is asked of the remote.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verb {
    Create,
    Get,
    List,
    Delete,
}

impl Verb {
    /// In the order of the variants.
    const NAMES: [&'static str; 4] = [
        "remote_create",
        "remote_get",
        "remote_list",
        "remote_delete",
    ];
}

/// How something ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ended {
    Answered,
    Failed,
    /// It took too long, or another one was faster.
    GivenUp,
}

/// Longest latency that is told apart, in nanoseconds; longer ones count as this. One minute.
const LATENCY_MAX_NS: u64 = 60_000_000_000;

/// What is known of the things of one name.
#[derive(Clone, Default)]
struct Series {
    /// Two digits: 30 KiB, from the first one on.
    spans: Option<Histogram<u64>>,
    failed: u64,
    given_up: u64,
}

impl Series {
    fn record(&mut self, span: Duration, ended: Ended) {
        self.add(span.as_nanos() as u64, 1);
        match ended {
            Ended::Answered => {}
            Ended::Failed => self.failed += 1,
            Ended::GivenUp => self.given_up += 1,
        }
    }

    /// So many more took so many nanoseconds.
    fn add(&mut self, span: u64, count: u64) {
        let span = span.clamp(1, LATENCY_MAX_NS);
        self.spans_mut().saturating_record_n(span, count);
    }

    fn spans_mut(&mut self) -> &mut Histogram<u64> {
        let fresh = || Histogram::new_with_bounds(1, LATENCY_MAX_NS, 2).expect("bounds are valid");
        self.spans.get_or_insert_with(fresh)
    }
}

/// Things of one kind, by name.
#[derive(Clone)]
struct Group {
    names: &'static [&'static str],
    /// In the order of the names.
    series: Vec<Series>,
}

impl Group {
    fn new(names: &'static [&'static str]) -> Group {
        let series = vec![Series::default(); names.len()];
        Group { names, series }
    }

    fn find(&self, name: &str) -> Option<&Series> {
        let index = self.names.iter().position(|own| *own == name)?;
        self.series.get(index)
    }

    fn merge(&mut self, other: &Group) {
        for (mine, theirs) in self.series.iter_mut().zip(&other.series) {
            if let Some(spans) = &theirs.spans {
                let added = mine.spans_mut().add(spans);
                added.expect("all histograms have the same bounds");
            }
            mine.failed += theirs.failed;
            mine.given_up += theirs.given_up;
        }
    }
}

/// What a shard counts; of the remote's requests, nothing.
pub(crate) struct Latencies(LatencySnapshot);

impl Latencies {
    pub(crate) fn new() -> Latencies {
        Latencies(LatencySnapshot::empty())
    }

    pub(crate) fn record(&mut self, op: Op, from: Nanos, to: Nanos, ended: Ended) {
        self.0.operations.series[op as usize].record(to.since(from), ended);
    }

    pub(crate) fn record_stage(&mut self, stage: Stage, from: Nanos, to: Nanos) {
        self.0.stages.series[stage as usize].record(to.since(from), Ended::Answered);
    }

    pub(crate) fn note_slow(&mut self, op: Op, cause: Cause) {
        self.0.slow[op as usize][cause.0] += 1;
    }

    pub(crate) fn snapshot(&self) -> LatencySnapshot {
        self.0.clone()
    }
}

/// What is counted of the remote's requests, whoever makes them.
#[derive(Clone)]
pub(crate) struct Requests(Group);

impl Requests {
    pub(crate) fn new() -> Requests {
        Requests(Group::new(&Verb::NAMES))
    }

    pub(crate) fn record(&mut self, verb: Verb, from: Nanos, to: Nanos, ended: Ended) {
        self.0.series[verb as usize].record(to.since(from), ended);
    }
}

/// Latency distributions since the store was opened, over all shards.
///
/// Each has a name: that of an operation, of a request that is made of the remote (`remote_get`),
/// or of a stage that operations go through. Every try is a request of its own. A stage counts
/// whoever goes through it, upkeep too, and each time, so an operation may count several times, and
/// what one wait serves, once:
///
/// | stage | from | to |
/// |---|---|---|
/// | `queue_wait` | the caller's submission | the shard's taking it |
/// | `group_commit_wait` | a flush | its batch's being handed to the device |
/// | `device_read` | one read of the local disk | its end |
/// | `device_write` | one write of a batch of the log | its end, durable or not |
/// | `sync` | one sync of what was written without | its end |
/// | `fetch` | the want of bytes of the remote | their being there and checked |
/// | `upload` | a segment's being handed to the uploader | its being in the bucket |
/// | `checkpoint` | its snapshot of the map | its being the newest |
///
/// Stages are timed by the passes of a shard's loop, to some microseconds.
#[derive(Clone)]
pub struct LatencySnapshot {
    operations: Group,
    stages: Group,
    requests: Group,
    /// By operation and cause.
    slow: [[u64; Cause::NAMES.len()]; Op::NAMES.len()],
}

impl LatencySnapshot {
    pub(crate) fn empty() -> LatencySnapshot {
        LatencySnapshot {
            operations: Group::new(&Op::NAMES),
            stages: Group::new(&Stage::NAMES),
            requests: Group::new(&Verb::NAMES),
            slow: [[0; Cause::NAMES.len()]; Op::NAMES.len()],
        }
    }

    pub(crate) fn merge(&mut self, other: &LatencySnapshot) {
        self.operations.merge(&other.operations);
        self.stages.merge(&other.stages);
        self.requests.merge(&other.requests);
        let slow = self.slow.as_flattened_mut().iter_mut();
        for (mine, theirs) in slow.zip(other.slow.as_flattened()) {
            *mine += theirs;
        }
    }

    /// So many more of an operation took so many nanoseconds.
    pub(crate) fn add(&mut self, op: Op, span: u64, count: u64) {
        self.operations.series[op as usize].add(span, count);
    }

    /// These are the requests that were made of the remote.
    pub(crate) fn set_requests(&mut self, requests: Requests) {
        self.requests = requests.0;
    }

    fn series(&self, name: &str) -> Option<&Series> {
        let groups = [&self.operations, &self.stages, &self.requests];
        groups.into_iter().find_map(|group| group.find(name))
    }

    /// The spans of what was counted at least once.
    fn spans(&self, name: &str) -> Option<&Histogram<u64>> {
        self.series(name)?.spans.as_ref()
    }

    /// Names of the operations that are told apart.
    pub fn operations(&self) -> impl Iterator<Item = &'static str> + '_ {
        Op::NAMES.into_iter()
    }

    /// Names of the stages that are told apart.
    pub fn stages(&self) -> impl Iterator<Item = &'static str> + '_ {
        Stage::NAMES.into_iter()
    }

    /// Names of the remote's requests that are told apart: `remote_`, and what is asked.
    pub fn requests(&self) -> impl Iterator<Item = &'static str> + '_ {
        Verb::NAMES.into_iter()
    }

    /// How many of this name were counted; 0 for an unknown one.
    pub fn count(&self, name: &str) -> u64 {
        self.spans(name).map_or(0, Histogram::len)
    }

    /// How many of these ended in an error; 0 for a stage, or an unknown name.
    ///
    /// That the remote has no object of a name is an answer, and no error.
    pub fn failed(&self, name: &str) -> u64 {
        self.series(name).map_or(0, |series| series.failed)
    }

    /// How many of the remote's requests were given up, because they took too long or a second one
    /// was faster; 0 for other names.
    pub fn given_up(&self, name: &str) -> u64 {
        self.series(name).map_or(0, |series| series.given_up)
    }

    /// How many of an operation took longer than [`Config::slow_op`](crate::Config::slow_op); 0
    /// where that is not set.
    pub fn slow(&self, operation: &str) -> u64 {
        let causes = self.causes();
        causes.map(|cause| self.slow_by(operation, cause)).sum()
    }

    /// What operations may be slow by: the stages, and `other`.
    pub fn causes(&self) -> impl Iterator<Item = &'static str> + '_ {
        Cause::NAMES.into_iter()
    }

    /// How many of these spent more of their time in this than in anything else.
    ///
    /// `other` is what is in no stage: the wait of a writer for room, above all.
    pub fn slow_by(&self, operation: &str, cause: &str) -> u64 {
        let operation = Op::NAMES.iter().position(|name| *name == operation);
        let cause = Cause::NAMES.iter().position(|name| *name == cause);
        let place = operation.zip(cause);
        place.map_or(0, |(operation, cause)| self.slow[operation][cause])
    }

    /// How many of this name took no longer than `span`, to two digits.
    pub fn count_within(&self, name: &str, span: Duration) -> u64 {
        let span = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        self.spans(name)
            .map_or(0, |spans| spans.count_between(0, span.min(spans.high())))
    }

    /// How long all of this name took together, to two digits.
    pub fn total(&self, name: &str) -> Duration {
        self.spans(name).map_or(Duration::ZERO, |spans| {
            Duration::from_nanos((spans.mean() * spans.len() as f64) as u64)
        })
    }

    /// The latency that a share `quantile` (0 to 1) of this name did not exceed.
    ///
    /// `None` if none was counted. Of operations, from the caller's submission to the shard's
    /// reply.
    pub fn quantile(&self, name: &str, quantile: f64) -> Option<Duration> {
        let spans = self.spans(name)?;
        Some(Duration::from_nanos(spans.value_at_quantile(quantile)))
    }

    /// The longest of this name, `None` if none was counted.
    pub fn max(&self, name: &str) -> Option<Duration> {
        Some(Duration::from_nanos(self.spans(name)?.max()))
    }
}

impl fmt::Debug for LatencySnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut map = f.debug_map();
        let names = self.operations().chain(self.stages());
        let names = names.chain(self.requests());
        for name in names.filter(|name| self.count(name) > 0) {
            map.entry(
                &name,
                &(self.count(name), self.quantile(name, 0.5), self.max(name)),
            );
        }
        map.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_cause_is_what_took_the_most() {
        let us = Duration::from_micros;
        let mut spent = Spent::default();
        assert_eq!(spent.cause(us(0)).to_string(), "other");
        spent.add(Stage::QueueWait, us(30));
        assert_eq!(spent.cause(us(50)).to_string(), "queue_wait");
        assert_eq!(spent.cause(us(90)).to_string(), "other");
        for _ in 0..64 {
            spent.add(Stage::DeviceRead, us(40));
        }
        assert_eq!(spent.cause(us(90)).to_string(), "device_read");
        spent.add(Stage::Fetch, Duration::MAX);
        spent.add(Stage::Fetch, Duration::MAX);
        assert_eq!(spent.cause(us(90)).to_string(), "fetch");
    }

    #[test]
    fn each_name_stands_for_one_thing() {
        let all = LatencySnapshot::empty();
        let names = all.operations().chain(all.stages());
        let names: Vec<&str> = names.chain(all.requests()).collect();
        let distinct: BTreeSet<&str> = names.iter().copied().collect();
        assert_eq!(names.len(), distinct.len());
        assert_eq!(Op::NAMES[Op::Meta as usize], "meta");
        assert_eq!(Stage::NAMES[Stage::Checkpoint as usize], "checkpoint");
        assert_eq!(Verb::NAMES[Verb::Delete as usize], "remote_delete");

        let mut counted = Latencies::new();
        counted.record(Op::Flush, Nanos(5), Nanos(1005), Ended::Failed);
        counted.record_stage(Stage::Sync, Nanos(9), Nanos(5));
        let mut requests = Requests::new();
        requests.record(Verb::Get, Nanos(5), Nanos(85), Ended::GivenUp);
        let mut first = counted.snapshot();
        first.set_requests(requests);
        let mut sum = LatencySnapshot::empty();
        sum.merge(&first);
        sum.merge(&counted.snapshot());
        assert_eq!(sum.given_up("remote_get"), 1);
        for name in names {
            let expected = match name {
                "flush" => (2, 2, Some(1000)),
                // Shorter than nothing is the shortest.
                "sync" => (2, 0, Some(1)),
                "remote_get" => (1, 0, Some(80)),
                _ => (0, 0, None),
            };
            // To two digits.
            let max = sum.max(name).map(|max| max.as_nanos() / 8 * 8);
            let max = max.map(|max| max.max(1));
            let seen = (sum.count(name), sum.failed(name), max);
            assert_eq!(seen, expected, "{name}");
        }
        assert_eq!(sum.count_within("flush", Duration::from_micros(2)), 2);
        assert_eq!(sum.count_within("flush", Duration::from_nanos(900)), 0);
        assert_eq!(sum.count("unknown"), 0);
    }
}
