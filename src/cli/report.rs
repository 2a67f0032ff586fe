//! The commands that ask the store about itself.

use super::args::Global;
use super::outcome::{Code, Report};
use super::progress;
use super::units::{show_count, show_size, show_time};
use ringstore::{HealthStatus, LatencySnapshot, Stats, Store, VerifyReport};
use serde_json::{Map, Value, json};
use std::time::Duration;

/// Pause between two looks at how far something is.
const BAR_INTERVAL: Duration = Duration::from_millis(200);

/// Quantiles of the engine's own histograms, which have two digits.
const QUANTILES: [(&str, f64); 4] = [
    ("p50_ns", 0.5),
    ("p99_ns", 0.99),
    ("p999_ns", 0.999),
    ("p9999_ns", 0.9999),
];

pub(crate) async fn stats(
    store: &Store,
    per_shard: bool,
    watch: Option<Duration>,
    json: bool,
) -> anyhow::Result<Report> {
    loop {
        let stats = store.stats().await?;
        let latency = store.latency().await?;
        let mut fields = stats_json(&stats);
        if per_shard {
            let shards = stats.per_shard.iter().enumerate().map(|(number, shard)| {
                let mut fields = stats_json(shard);
                fields.insert("shard".to_owned(), number.into());
                Value::Object(fields)
            });
            fields.insert("per_shard".to_owned(), shards.collect());
        }
        let operations = latency_json(&latency, latency.operations());
        fields.insert("latency".to_owned(), operations);
        let stages = latency_json(&latency, latency.stages());
        fields.insert("stages".to_owned(), stages);
        let requests = latency_json(&latency, latency.requests());
        fields.insert("remote_requests".to_owned(), requests);
        let shards = match per_shard {
            true => &stats.per_shard[..],
            false => &[],
        };
        let table = stats_text(&stats, shards);
        let operations = latency_text("operation", &latency, latency.operations());
        let stages = latency_text("stage", &latency, latency.stages());
        let requests = latency_text("request", &latency, latency.requests());
        let mut parts = vec![table, operations, stages, requests];
        parts.retain(|part| !part.is_empty());
        let text = parts.join("\n\n");
        let report = Report::answer(text, Value::Object(fields));
        let Some(every) = watch else {
            return Ok(report);
        };
        report.print(json, false)?;
        tokio::time::sleep(every).await;
    }
}

/// Every figure, under the name that it has in `Stats`.
pub(crate) fn stats_json(stats: &Stats) -> Map<String, Value> {
    let mut fields = Map::new();
    for (name, count) in stats.counts() {
        fields.insert(name.to_owned(), count.into());
    }
    fields.insert("has_remote".to_owned(), stats.has_remote.into());
    fields.insert("remote_healthy".to_owned(), stats.remote_healthy.into());
    let suspended = stats.eviction_suspended;
    fields.insert("eviction_suspended".to_owned(), suspended.into());
    let outage = stats.outage_duration_seconds;
    fields.insert("outage_duration_seconds".to_owned(), outage.into());
    let busy = stats.shard_busy_seconds;
    fields.insert("shard_busy_seconds".to_owned(), busy.into());
    let oldest = stats.oldest_unsynced_seconds;
    fields.insert("oldest_unsynced_seconds".to_owned(), oldest.into());
    fields.insert("driver".to_owned(), stats.driver.clone().into());
    fields
}

/// Whether a figure counts bytes; the names are fixed, some of them by an older engine.
fn is_bytes(name: &str) -> bool {
    const OLD: [&str; 9] = [
        "local_disk_used",
        "local_disk_max",
        "local_mem_used",
        "local_mem_max",
        "read_buffer_used",
        "read_buffer_max",
        "used_size",
        "total_size",
        "available_size",
    ];
    name.ends_with("_bytes") || OLD.contains(&name) || name == "average_size"
}

/// A line for each figure: the store's, or the store's and each shard's side by side.
fn stats_text(stats: &Stats, shards: &[Stats]) -> String {
    let mut lines = vec![format!("{:<24}{:>16}", "driver", stats.driver)];
    if !shards.is_empty() {
        let mut head = format!("{:<24}{:>16}", "", "store");
        (0..shards.len()).for_each(|number| head += &format!("{:>16}", format!("shard {number}")));
        lines.push(head);
    }
    let columns: Vec<Vec<(&str, u64)>> = shards.iter().map(Stats::counts).collect();
    for (index, (name, count)) in stats.counts().into_iter().enumerate() {
        let mut line = format!("{name:<24}{count:>16}");
        for column in &columns {
            line += &format!("{:>16}", column[index].1);
        }
        if columns.is_empty() && is_bytes(name) {
            line += &format!("  {}", show_size(count));
        }
        lines.push(line);
    }
    lines.join("\n")
}

/// The distributions of some of the names that are told apart.
fn latency_json(latency: &LatencySnapshot, names: impl Iterator<Item = &'static str>) -> Value {
    let mut all = Map::new();
    for name in names {
        let count = latency.count(name);
        let mut fields = Map::new();
        fields.insert("count".to_owned(), count.into());
        for (key, quantile) in QUANTILES {
            if let Some(span) = latency.quantile(name, quantile)
                && super::bench::tally::supports(count, quantile)
            {
                fields.insert(key.to_owned(), (span.as_nanos() as u64).into());
            }
        }
        if let Some(span) = latency.max(name) {
            fields.insert("max_ns".to_owned(), (span.as_nanos() as u64).into());
        }
        all.insert(name.to_owned(), Value::Object(fields));
    }
    Value::Object(all)
}

/// The same as a table, of what there was.
fn latency_text(
    what: &str,
    latency: &LatencySnapshot,
    names: impl Iterator<Item = &'static str>,
) -> String {
    let mut lines = Vec::new();
    for name in names.filter(|name| latency.count(name) > 0) {
        let count = latency.count(name);
        let mut line = format!("{name:<18}{:>10}", show_count(count as f64));
        for (_, quantile) in QUANTILES {
            let span = latency
                .quantile(name, quantile)
                .filter(|_| super::bench::tally::supports(count, quantile));
            let shown = span.map_or(String::new(), |span| show_time(span.as_nanos() as u64));
            line += &format!("{shown:>12}");
        }
        let longest = latency.max(name).unwrap_or_default();
        line += &format!("{:>12}", show_time(longest.as_nanos() as u64));
        lines.push(line);
    }
    if lines.is_empty() {
        return String::new();
    }
    let head = format!(
        "{:<18}{:>10}{:>12}{:>12}{:>12}{:>12}{:>12}",
        what, "n", "p50", "p99", "p99.9", "p99.99", "max"
    );
    lines.insert(0, head);
    lines.join("\n")
}

pub(crate) async fn health(store: &Store) -> anyhow::Result<Report> {
    let health = store.health().await;
    let remote = health.remote.map(|status| status.to_string());
    let mut text = format!("{}\nlocal   {}", health.status, health.local);
    if let Some(remote) = &remote {
        text += &format!("\nremote  {remote}");
    }
    for reason in &health.reasons {
        text += &format!("\n- {reason}");
    }
    let fields = json!({
        "status": health.status.to_string(),
        "local": health.local.to_string(),
        "remote": remote,
        "reasons": health.reasons,
    });
    let code = match health.status {
        HealthStatus::Healthy => Code::Ok,
        HealthStatus::Degraded => Code::Degraded,
        _ => Code::Failed,
    };
    Ok(Report::answer(text, fields).with_code(code))
}

/// Reads everything, with a bar: how far it is shows in what was read from the device.
async fn verified(store: &Store, global: &Global) -> anyhow::Result<VerifyReport> {
    let before = store.stats().await?;
    let bar = progress::bytes(global, "verify", Some(before.live_bytes));
    let mut verifying = std::pin::pin!(store.verify());
    let report = loop {
        tokio::select! {
            report = &mut verifying => break report?,
            () = tokio::time::sleep(BAR_INTERVAL) => {
                let read = store.stats().await?.device_read_bytes;
                bar.set_position((read - before.device_read_bytes).min(before.live_bytes));
            }
        }
    };
    bar.finish_and_clear();
    Ok(report)
}

pub(crate) async fn verify(store: &Store, global: &Global) -> anyhow::Result<Report> {
    let report = verified(store, global).await?;
    let mut text = format!(
        "{} payloads, {} checked, {} repaired, {} ranges corrupt",
        report.payloads,
        show_size(report.bytes_checked),
        show_size(report.bytes_repaired),
        report.corrupt.len()
    );
    if store.has_remote() {
        text += &format!(
            "\nthe remote's copies of what is here: {} checked, {} out of reach",
            show_size(report.remote_bytes_checked),
            show_size(report.remote_bytes_unreachable)
        );
    }
    let mut corrupt = Vec::new();
    for (id, extent) in &report.corrupt {
        text += &format!("\n{:>16} {:>16}  {id}", extent.offset, extent.len);
        corrupt.push(json!({ "id": id.as_str(), "offset": extent.offset, "len": extent.len }));
    }
    let fields = json!({
        "payloads": report.payloads,
        "bytes_checked": report.bytes_checked,
        "bytes_repaired": report.bytes_repaired,
        "remote_bytes_checked": report.remote_bytes_checked,
        "remote_bytes_unreachable": report.remote_bytes_unreachable,
        "corrupt": corrupt,
    });
    let code = match report.corrupt.is_empty() {
        true => Code::Ok,
        false => Code::Corrupt,
    };
    Ok(Report::answer(text, fields).with_code(code))
}
