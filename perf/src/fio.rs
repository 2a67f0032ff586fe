//! The reference for whatever a disk can do: fio, with io_uring and O_DIRECT.
//!
//! Its latencies are the whole ones, submission included, as ours are; they come as the buckets of
//! its own histogram. Its processor time is that of the program and its threads in the kernel, less
//! that of a run that reads one page: what it costs to start is no part of the work.

use crate::bench::{Bench, PAGE};
use crate::machine::{Device, Who};
use crate::measure::{Meter, Sample, histogram};
use anyhow::{Context, bail, ensure};
use hdrhistogram::Histogram;
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

/// When a run ends.
#[derive(Clone, Copy)]
pub enum End {
    After(Duration),
    /// When so many bytes have been moved.
    Bytes(u64),
}

/// A job: what fio calls `rw`, `bs`, `iodepth`.
#[derive(Clone)]
pub struct Job<'a> {
    pub rw: &'a str,
    pub block_bytes: u64,
    pub depth: usize,
    pub file_bytes: u64,
    pub end: End,
    /// More options, as they are typed.
    pub options: &'a [&'a str],
}

/// What a job is run on.
pub enum On<'a> {
    File(&'a Path),
    /// The address of an export.
    Nbd(&'a str),
}

/// Runs a job on a file in the bench's directory.
pub fn run(bench: &Bench, file: &str, job: &Job) -> anyhow::Result<Sample> {
    run_on(bench, On::File(&bench.path(file)), job)
}

/// Runs a job on whatever fio can speak to.
pub fn run_on(bench: &Bench, on: On, job: &Job) -> anyhow::Result<Sample> {
    let start_up = start_up(bench)?;
    let mut sample = measure(&bench.device, on, job)?;
    sample.cpu = sample.cpu.saturating_sub(start_up);
    Ok(sample)
}

/// Writes a file from beginning to end, so that nothing that follows allocates.
pub fn prepare(bench: &Bench, file: &str, bytes: u64) -> anyhow::Result<()> {
    let job = Job {
        rw: "write",
        block_bytes: crate::bench::MIB.min(bytes),
        depth: 4,
        file_bytes: bytes,
        end: End::Bytes(bytes),
        options: &["--end_fsync=1"],
    };
    measure(&bench.device, On::File(&bench.path(file)), &job).map(drop)
}

/// What fio needs to start and end.
fn start_up(bench: &Bench) -> anyhow::Result<Duration> {
    static CPU: OnceLock<Duration> = OnceLock::new();
    if let Some(cpu) = CPU.get() {
        return Ok(*cpu);
    }
    let path = bench.path("fio-start-up");
    let job = Job {
        rw: "read",
        block_bytes: PAGE,
        depth: 1,
        file_bytes: PAGE,
        end: End::Bytes(PAGE),
        options: &[],
    };
    // The first one makes the file, too.
    measure(&bench.device, On::File(&path), &job)?;
    let cpu = measure(&bench.device, On::File(&path), &job)?.cpu;
    Ok(*CPU.get_or_init(|| cpu))
}

fn measure(device: &Device, on: On, job: &Job) -> anyhow::Result<Sample> {
    let mut command = Command::new("fio");
    match on {
        On::File(path) => command
            .args(["--ioengine=io_uring", "--direct=1"])
            .arg(format!("--filename={}", path.display())),
        On::Nbd(uri) => command.arg("--ioengine=nbd").arg(format!("--uri={uri}")),
    };
    command
        .arg("--name=perf")
        .args(["--output-format=json+", "--clat_percentiles=0"])
        .args(["--lat_percentiles=1", "--randrepeat=0", "--norandommap"])
        .arg(format!("--rw={}", job.rw))
        .arg(format!("--bs={}", job.block_bytes))
        .arg(format!("--iodepth={}", job.depth))
        .arg(format!("--size={}", job.file_bytes))
        .args(job.options);
    match job.end {
        End::After(span) => command
            .arg("--time_based")
            .arg(format!("--runtime={}ms", span.as_millis())),
        End::Bytes(bytes) => command.arg(format!("--io_size={bytes}")),
    };
    let meter = Meter::start(device, Who::Children);
    let output = command
        .output()
        .context("fio is not to be had: apt-get install fio")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("fio failed: {}", said.trim());
    }
    // Some builds say something before the object.
    let text = String::from_utf8_lossy(&output.stdout);
    let start = text.find('{').context("fio printed no JSON")?;
    let json: Value = serde_json::from_str(&text[start..])?;
    let result = &json["jobs"][0];
    ensure!(result["error"] == 0, "fio: error={}", result["error"]);
    let side = match job.rw {
        "read" | "randread" => &result["read"],
        _ => &result["write"],
    };
    let number = |name: &str| {
        side[name]
            .as_u64()
            .with_context(|| format!("fio: no {name}"))
    };
    let mut sample = meter.stop(number("total_ios")?, number("io_bytes")?, latency(side)?);
    // The program's own clock: it leaves out starting and laying out, but no sync at the end.
    sample.span = Duration::from_millis(number("runtime")?.max(1));
    Ok(sample)
}

fn latency(side: &Value) -> anyhow::Result<Histogram<u64>> {
    let mut all = histogram();
    let bins = side["lat_ns"]["bins"]
        .as_object()
        .context("fio: no bins of latencies")?;
    for (ns, count) in bins {
        all.saturating_record_n(ns.parse()?, count.as_u64().unwrap_or(0));
    }
    Ok(all)
}
