//! The store's figures as Prometheus has them: names that begin with `ringstore_`, base units.
//!
//! Invariants:
//! 1. What is shown comes from the public API, at the moment of the question.
//! 2. No payload's id is ever in a label: there would be as many series as payloads.
//! 3. A name, once published, keeps its meaning; a figure that the engine has not is left out.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::prometheus_text::encode;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeLabelSet, MetricEncoder,
    NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use ringstore::{LatencySnapshot, Stats, Store};
use std::fmt;
use std::time::Duration;

pub(crate) use prometheus_client::encoding::prometheus_text::CONTENT_TYPE;

/// Where the buckets of the histograms end, in microseconds: from a hit in memory to a remote that
/// is asked again.
const BUCKETS_US: [u64; 13] = [
    1, 4, 16, 64, 250, 1_000, 4_000, 16_000, 64_000, 250_000, 1_000_000, 4_000_000, 16_000_000,
];

/// What the store said.
#[derive(Debug)]
struct Figures {
    stats: Stats,
    latency: LatencySnapshot,
}

/// Everything that can be said of the store now.
pub(crate) async fn text(store: &Store) -> anyhow::Result<String> {
    let figures = Figures {
        stats: store.stats().await?,
        latency: store.latency().await?,
    };
    let mut registry = Registry::with_prefix("ringstore");
    registry.register_collector(Box::new(figures));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

impl Collector for Figures {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut sheet = Sheet(encoder);
        self.operations(&mut sheet)?;
        self.space(&mut sheet)?;
        self.memory(&mut sheet)?;
        self.device(&mut sheet)?;
        self.remote(&mut sheet)?;
        self.shards(&mut sheet)
    }
}

impl Figures {
    fn operations(&self, sheet: &mut Sheet<'_>) -> fmt::Result {
        let mut counts = Vec::new();
        for op in self.latency.operations() {
            let failed = self.latency.failed(op);
            let succeeded = self.latency.count(op).saturating_sub(failed);
            counts.push(([("op", op), ("result", "ok")], succeeded));
            counts.push(([("op", op), ("result", "error")], failed));
        }
        sheet.counters("operations", "Operations of callers.", None, &counts)?;
        let mut slow = Vec::new();
        for op in self.latency.operations() {
            for cause in self.latency.causes() {
                let count = self.latency.slow_by(op, cause);
                slow.push(([("op", op), ("cause", cause)], count));
            }
        }
        let help = "Operations slower than the store was told to bear, by what took most of it.";
        sheet.counters("slow_operations", help, None, &slow)?;
        let help = "From the caller's submission to the shard's answer.";
        let ops = self.latency.operations().map(|op| (op, op));
        self.durations(sheet, ("operation_duration", help), "op", ops)?;
        let help = "Where operations, and the upkeep behind them, spend their time.";
        let stages = self.latency.stages().map(|stage| (stage, stage));
        self.durations(sheet, ("operation_stage_duration", help), "stage", stages)
    }

    /// A histogram of each of the names, behind what its label says.
    fn durations(
        &self,
        sheet: &mut Sheet<'_>,
        (name, help): (&str, &str),
        label: &str,
        names: impl Iterator<Item = (&'static str, &'static str)>,
    ) -> fmt::Result {
        let (unit, kind) = (Some(&Unit::Seconds), MetricType::Histogram);
        let mut family = sheet.0.encode_descriptor(name, help, unit, kind)?;
        for (name, value) in names {
            self.histogram(name, family.encode_family(&[(label, value)])?)?;
        }
        Ok(())
    }

    fn histogram(&self, name: &str, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let mut buckets = Vec::new();
        let mut below = 0;
        for end in BUCKETS_US.map(Duration::from_micros) {
            let within = self.latency.count_within(name, end);
            buckets.push((end.as_secs_f64(), within.saturating_sub(below)));
            below = within;
        }
        let (sum, count) = (self.latency.total(name), self.latency.count(name));
        encoder.encode_histogram::<NoLabelSet>(sum.as_secs_f64(), count, &buckets, None)
    }

    fn space(&self, sheet: &mut Sheet<'_>) -> fmt::Result {
        let stats = &self.stats;
        let bytes = Some(&Unit::Bytes);
        sheet.gauge("payloads", "Payloads.", None, stats.file_count)?;
        let help = "Sizes of all payloads, holes included.";
        sheet.gauge("logical", help, bytes, stats.used_size)?;
        let help = "Files in the store's directory.";
        sheet.gauge("local", help, bytes, stats.local_disk_used)?;
        let help = "What they may take; 0 for no limit.";
        sheet.gauge("local_limit", help, bytes, stats.local_disk_max)?;
        let help = "Memory of bytes that are not yet durable.";
        sheet.gauge("dirty", help, bytes, stats.local_mem_used)?;
        let open = stats.segments.saturating_sub(stats.segments_sealed);
        let segments = [
            ([("state", "open")], open),
            ([("state", "sealed")], stats.segments_sealed),
            ([("state", "free")], stats.segments_free),
        ];
        let help = "Segments of the log, and files for new ones.";
        sheet.gauges("log_segments", help, None, &segments)?;
        let help = "Bytes of local segments that nothing refers to.";
        sheet.gauge("log_garbage", help, bytes, stats.garbage_bytes)?;
        let help = "Bytes of the log that the remote does not have.";
        sheet.gauge("unsynced", help, bytes, stats.unsynced_bytes)?;
        let help = "Age of the oldest segment that the remote does not have.";
        let seconds = Some(&Unit::Seconds);
        let age = stats.oldest_unsynced_seconds;
        sheet.gauge("oldest_unsynced", help, seconds, age)
    }

    fn memory(&self, sheet: &mut Sheet<'_>) -> fmt::Result {
        let stats = &self.stats;
        let bytes = Some(&Unit::Bytes);
        let help = "Bytes in the read buffer.";
        sheet.gauge("read_buffer", help, bytes, stats.read_buffer_used)?;
        let misses = ["read_local", "read_remote"].map(|op| self.latency.count(op));
        let misses = misses.iter().sum();
        let requests = [
            ([("result", "hit")], self.latency.count("read_hit")),
            ([("result", "miss")], misses),
        ];
        let help = "Reads that the buffer served on the caller's thread, and all others.";
        sheet.counters("read_buffer_requests", help, None, &requests)?;
        let help = "Bytes read ahead of their readers.";
        sheet.counter("prefetch_issued", help, bytes, stats.prefetched_bytes)?;
        let help = "Of these, bytes that a reader came to in time.";
        sheet.counter("prefetch_used", help, bytes, stats.prefetch_used_bytes)
    }

    fn device(&self, sheet: &mut Sheet<'_>) -> fmt::Result {
        let stats = &self.stats;
        let moved = [
            ([("direction", "read")], stats.device_read_bytes),
            ([("direction", "write")], stats.device_written_bytes),
        ];
        let help = "Bytes read from the device and written to it.";
        sheet.counters("device_io", help, Some(&Unit::Bytes), &moved)?;
        if stats.written_bytes > 0 {
            let ratio = stats.device_written_bytes as f64 / stats.written_bytes as f64;
            let name = "write_amplification_ratio";
            let help = "Bytes written to the device for each byte that callers wrote.";
            let mut gauge = sheet
                .0
                .encode_descriptor(name, help, None, MetricType::Gauge)?;
            gauge.encode_gauge(&ratio)?;
        }
        let failures = [
            ([("tier", "local")], stats.checksum_failures),
            ([("tier", "remote")], stats.remote_checksum_failures),
        ];
        let help = "Pages that failed their checksum.";
        sheet.counters("checksum_failures", help, None, &failures)
    }

    fn remote(&self, sheet: &mut Sheet<'_>) -> fmt::Result {
        let latency = &self.latency;
        let verb = |name: &'static str| name.strip_prefix("remote_").unwrap_or(name);
        let mut counts = Vec::new();
        for name in latency.requests() {
            let (failed, given_up) = (latency.failed(name), latency.given_up(name));
            let answered = latency.count(name).saturating_sub(failed + given_up);
            for (result, count) in [("ok", answered), ("error", failed), ("given_up", given_up)] {
                counts.push(([("verb", verb(name)), ("result", result)], count));
            }
        }
        let help = "Requests made of the remote, each try by itself.";
        sheet.counters("remote_requests", help, None, &counts)?;
        let help = "From a request to its end, whatever came of it.";
        let requests = latency.requests().map(|name| (name, verb(name)));
        self.durations(sheet, ("remote_request_duration", help), "verb", requests)
    }

    fn shards(&self, sheet: &mut Sheet<'_>) -> fmt::Result {
        let shards = || self.stats.per_shard.iter().enumerate();
        let label = |number: usize| [("shard", number.to_string())];
        let stalls = shards().map(|(number, shard)| (label(number), shard.shard_stalls));
        let help = "Passes of a shard's loop that took more than 1 ms.";
        let stalls: Vec<_> = stalls.collect();
        sheet.counters("shard_stalls", help, None, &stalls)?;
        let busy = shards().map(|(number, shard)| (label(number), shard.shard_busy_seconds));
        let help = "Time that a shard's loop was neither parked nor spinning for want of work.";
        let busy: Vec<_> = busy.collect();
        sheet.counters("shard_busy", help, Some(&Unit::Seconds), &busy)
    }
}

/// What figures are written to.
struct Sheet<'a>(DescriptorEncoder<'a>);

impl Sheet<'_> {
    fn gauge<V: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        value: V,
    ) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, unit, MetricType::Gauge)?;
        family.encode_gauge(&value)
    }

    fn counter(&mut self, name: &str, help: &str, unit: Option<&Unit>, value: u64) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, unit, MetricType::Counter)?;
        family.encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    /// Figures of one name, each with the labels that tell it from the others.
    fn gauges<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        values: &[(L, u64)],
    ) -> fmt::Result {
        let kind = MetricType::Gauge;
        let family = self.0.encode_descriptor(name, help, unit, kind)?;
        labelled(family, values, |mut gauge, value| gauge.encode_gauge(value))
    }

    fn counters<L: EncodeLabelSet, V: EncodeCounterValue>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        values: &[(L, V)],
    ) -> fmt::Result {
        let kind = MetricType::Counter;
        let family = self.0.encode_descriptor(name, help, unit, kind)?;
        labelled(family, values, |mut counter, value| {
            counter.encode_counter::<NoLabelSet, V, u64>(value, None)
        })
    }
}

/// Writes figures, each behind its labels.
fn labelled<L: EncodeLabelSet, V>(
    mut family: MetricEncoder<'_>,
    values: &[(L, V)],
    write: impl Fn(MetricEncoder<'_>, &V) -> fmt::Result,
) -> fmt::Result {
    for (labels, value) in values {
        write(family.encode_family(labels)?, value)?;
    }
    Ok(())
}
