//! The result in the shape of fio's `json+`, so that fio's own tools read it.
//!
//! Deliberately not here: fields of fio that have no meaning for us (disk utilisation, page
//! faults).

use super::args::{BenchArgs, Rw};
use super::load::Outcome;
use super::tally::{PERCENTILES, Tally, supports};
use crate::cli::clock;
use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};
use std::time::Duration;

/// One object with one group of all jobs, as fio's `group_reporting` gives it.
pub(crate) fn result(args: &BenchArgs, rw: Rw, outcome: &Outcome) -> Value {
    let side = |tally: &Tally| side(tally, outcome.span);
    json!({
        "fio version": format!("ringstore-{}", env!("CARGO_PKG_VERSION")),
        "timestamp": clock::unix_seconds(),
        "jobs": [{
            "jobname": rw.name(),
            "groupid": 0,
            "error": 0,
            "job options": options(args, rw),
            "read": side(&outcome.read),
            "write": side(&outcome.write),
            "trim": side(&Tally::default()),
            "sync": {
                "total_ios": outcome.flush.count,
                "lat_ns": latency(&outcome.flush.total),
            },
            "job_runtime": outcome.span.as_millis() as u64,
        }],
    })
}

fn options(args: &BenchArgs, rw: Rw) -> Value {
    json!({
        "rw": rw.name(),
        "bs": args.bs.to_string(),
        "iodepth": args.iodepth.to_string(),
        "numjobs": args.numjobs.to_string(),
        "size": args.size.to_string(),
        "nrfiles": args.payloads.to_string(),
        "fsync": args.fsync.to_string(),
        "randseed": args.seed.to_string(),
    })
}

fn side(tally: &Tally, span: Duration) -> Value {
    let seconds = span.as_secs_f64().max(1e-9);
    let bytes_per_second = (tally.bytes as f64 / seconds) as u64;
    json!({
        "io_bytes": tally.bytes,
        "io_kbytes": tally.bytes >> 10,
        "bw_bytes": bytes_per_second,
        "bw": bytes_per_second >> 10,
        "iops": tally.count as f64 / seconds,
        "runtime": span.as_millis() as u64,
        "total_ios": tally.count,
        "clat_ns": latency(&tally.service),
        "lat_ns": latency(&tally.total),
    })
}

fn latency(histogram: &Histogram<u64>) -> Value {
    if histogram.is_empty() {
        return json!({ "min": 0, "max": 0, "mean": 0.0, "stddev": 0.0, "N": 0 });
    }
    let mut percentiles = Map::new();
    for (name, quantile) in PERCENTILES {
        if supports(histogram.len(), quantile) {
            percentiles.insert(
                name.to_owned(),
                histogram.value_at_quantile(quantile).into(),
            );
        }
    }
    let mut bins = Map::new();
    for bin in histogram.iter_recorded() {
        bins.insert(
            bin.value_iterated_to().to_string(),
            bin.count_at_value().into(),
        );
    }
    json!({
        "min": histogram.min(),
        "max": histogram.max(),
        "mean": histogram.mean(),
        "stddev": histogram.stdev(),
        "N": histogram.len(),
        "percentile": percentiles,
        "bins": bins,
    })
}
