//! cold-read, upload, write-cliff: the rows with a remote.
//!
//! The remote is the tests' S3 server, in this process and in memory, behind a link that has a
//! latency and rates. Server and link take processor time that ours lacks: where the processors
//! are few, they are the limit, and the CPU columns count them, too. The reference is the link
//! itself: what it was told to let through.
//!
//! Beside ours in cold-read is SlateDB, with the feature `slatedb`: see `slate.rs`. What is fetched
//! is counted by the link for both, heads of answers and whatever else goes on included.

use crate::bench::{Bench, GIB, KIB, MIB, PAGE, Pace, id};
use crate::link::{FETCHED, Link, REQUESTS, Shape};
use crate::machine;
use crate::measure::{Case, Figure, OURS, Sample, Side, alternate};
use crate::puts::{PUTS, puts};
use crate::s3_server::{BUCKET, KEY_ID, SECRET, Server};
#[cfg(feature = "slatedb")]
use crate::slate::{SLATE, Slate};
#[cfg(feature = "slatedb")]
use anyhow::anyhow;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use ringstore::{Config, PayloadId, RemoteConfig, S3Config, Store};
use std::time::Duration;

const LATENCY: Duration = Duration::from_millis(20);

/// What one stream carries, and how many streams together the engine should fill.
const STREAM_RATE: f64 = 80e6;
const STREAMS: usize = 16;

/// What a stream carries of a link that two processors can keep full.
const SLOW_STREAM_RATE: f64 = 10e6;

/// Tasks that read pages at random, and what the one that reads in order asks for at once.
const READERS: usize = 8;
const PIECE: u64 = 128 * KIB;

/// What the link of cold-read carries: little enough for two processors to keep up with.
const COLD_RATE: f64 = 100e6;

const GROWN: &str = "process-MiB";

/// A server and the link to it.
struct Far {
    server: Server,
    link: Link,
}

impl Far {
    fn new(shape: Shape) -> anyhow::Result<Far> {
        let server = Server::start();
        let link = Link::to(server.port, shape)?;
        Ok(Far { server, link })
    }

    fn config(&self, bench: &Bench, name: &str) -> anyhow::Result<Config> {
        let mut bucket = S3Config::new(BUCKET);
        bucket.endpoint = Some(format!("http://127.0.0.1:{}", self.link.port));
        bucket.region = Some("us-east-1".to_owned());
        bucket.path_style = true;
        bucket.access_key_id = Some(KEY_ID.to_owned());
        bucket.secret_access_key = Some(SECRET.to_owned());
        let mut config = bench.config(name, bench.driver())?;
        config.remote = Some(RemoteConfig::S3(bucket));
        Ok(config)
    }
}

struct Cold<'a> {
    bench: &'a Bench,
    store: &'a Store,
    far: &'a Far,
    payload: PayloadId,
    bytes: u64,
}

impl Cold<'_> {
    /// Reads pieces that are nowhere but in the remote, at random or in order.
    fn read(&self, tasks: usize, piece: u64, is_random: bool) -> anyhow::Result<Sample> {
        let runtime = &self.bench.runtime;
        runtime.block_on(self.store.evict(&self.payload))?;
        runtime.block_on(self.store.evict_read_buffer())?;
        let (span, pieces) = (self.bench.span, self.bytes / piece);
        let task = |task| {
            let (store, payload) = (self.store.clone(), self.payload.clone());
            async move {
                let mut rng = SmallRng::seed_from_u64(task as u64);
                let mut pace = Pace::time(span);
                while pace.goes_on() && pace.ops < pieces {
                    let number = match is_random {
                        true => rng.random_range(0..pieces),
                        false => pace.ops,
                    };
                    store
                        .read_at(&payload, number * piece, piece as usize)
                        .await?;
                    pace.done();
                }
                Ok(pace)
            }
        };
        let read = || self.bench.tasks(tasks, piece, task);
        self.far.link.counted(read)
    }
}

pub fn cold_read(bench: &Bench) -> anyhow::Result<Vec<Case>> {
    const ROW: &str = "cold-read";
    let bytes = bench.sized(512 * MIB, 32 * MIB);
    let far = Far::new(Shape::default())?;
    let config = far.config(bench, ROW)?;
    #[cfg(feature = "slatedb")]
    let slate = Slate::written(bench, &far.link, bytes, config.read_buffer_bytes);
    let store = bench.open(config)?;
    let payload = id("cold");
    bench.lay_out(&store, &payload, bytes)?;
    bench.runtime.block_on(store.wait_remote(&payload))?;
    far.link.reshape(Shape {
        latency: LATENCY,
        stream_rate: None,
        total_rate: Some(COLD_RATE),
    });
    let cold = Cold {
        bench,
        store: &store,
        far: &far,
        payload,
        bytes,
    };
    #[cfg(feature = "slatedb")]
    let slate = || slate.as_ref().map_err(|error| anyhow!("{error:#}"));
    let at_random = [
        Side::ours(|| cold.read(READERS, PAGE, true)),
        #[cfg(feature = "slatedb")]
        Side::new(SLATE, || slate()?.random(READERS)),
    ];
    let in_order = [
        Side::ours(|| cold.read(1, PIECE, false)),
        #[cfg(feature = "slatedb")]
        Side::new(SLATE, || slate()?.in_order(PIECE)),
    ];
    let name = format!("random, {READERS} readers");
    let mut random = alternate(ROW, name, bench.rounds, at_random.into());
    let mut ordered = alternate(ROW, "in order", bench.rounds, in_order.into());
    let fetched = |case: &Case| case.median(OURS, Figure::Extra(FETCHED));
    random.at_most(
        "bytes fetched for each that is read",
        fetched(&random),
        32.0,
    );
    let p99 = random.median(OURS, Figure::LatencyUs(0.99));
    let latency = LATENCY.as_secs_f64() * 1e6;
    random.at_most("p99, of the latency", p99.map(|us| us / latency), 3.0);
    ordered.at_most(
        "bytes fetched for each that is read",
        fetched(&ordered),
        1.1,
    );
    let rate = ordered.median(OURS, Figure::BytesPerSecond);
    ordered.at_least(
        "bytes per s, of the link's",
        rate.map(|it| it / COLD_RATE),
        0.9,
    );
    bench.close(store)?;
    bench.remove(ROW)?;
    Ok(vec![random, ordered])
}

pub fn upload(bench: &Bench) -> anyhow::Result<Vec<Case>> {
    let fast = uploaded(bench, bench.sized(GIB, 32 * MIB), STREAM_RATE)?;
    let slow = uploaded(bench, bench.sized(GIB, 32 * MIB), SLOW_STREAM_RATE)?;
    Ok(vec![fast, slow])
}

/// Uploads through a link that gives each stream so many bytes a second.
fn uploaded(bench: &Bench, bytes: u64, stream_rate: f64) -> anyhow::Result<Case> {
    const ROW: &str = "upload";
    let shape = Shape {
        latency: LATENCY,
        stream_rate: Some(stream_rate),
        total_rate: None,
    };
    let ours = Side::ours(|| {
        bench.remove(ROW)?;
        let far = Far::new(shape)?;
        let store = bench.open(far.config(bench, ROW)?)?;
        let payload = id("upload");
        let grown = machine::resident_bytes();
        let meter = bench.meter();
        bench.lay_out(&store, &payload, bytes)?;
        bench.runtime.block_on(store.wait_remote(&payload))?;
        let sample = meter.stop(bytes / MIB, bytes, crate::measure::histogram());
        let after = machine::resident_bytes();
        bench.close(store)?;
        let requests = far.server.requests() as f64;
        let grown = grown.zip(after).map_or(f64::NAN, |(before, after)| {
            // The bucket is in this process, too.
            (after as f64 - before as f64 - bytes as f64) / MIB as f64
        });
        Ok(sample.with(REQUESTS, requests).with(GROWN, grown))
    });
    let object_bytes = bench.config(ROW, bench.driver())?.segment_bytes;
    let theirs = Side::new(PUTS, || {
        let far = Far::new(shape)?;
        puts(bench, &far.link, bytes, object_bytes, STREAMS)
    });
    let name = format!("{STREAMS} streams of {} MB/s", stream_rate / 1e6);
    let mut case = alternate(ROW, name, bench.rounds, vec![ours, theirs]);
    let rate = case.median(OURS, Figure::BytesPerSecond);
    let nominal = STREAMS as f64 * stream_rate;
    case.at_least(
        "bytes per s, of the link's",
        rate.map(|it| it / nominal),
        0.9,
    );
    let ratio = case.ratio(OURS, PUTS, Figure::BytesPerSecond);
    case.at_least("bytes per s, of the SDK's puts", ratio, 0.9);
    bench.remove(ROW)?;
    Ok(case)
}

/// Overwrites pages at random, with so many writers.
fn overwrite(bench: &Bench, store: &Store, bytes: u64, span: Duration) -> anyhow::Result<Sample> {
    bench.tasks(32, PAGE, |task| {
        let (store, payload) = (store.clone(), id("cliff"));
        let data = bench.page_of_noise(task as u64);
        async move {
            let mut rng = SmallRng::seed_from_u64(task as u64);
            let mut pace = Pace::time(span);
            while pace.goes_on() {
                let at = rng.random_range(0..bytes / PAGE) * PAGE;
                store.write_at(&payload, at, data.clone()).await?;
                pace.done();
            }
            Ok(pace)
        }
    })
}

pub fn write_cliff(bench: &Bench) -> anyhow::Result<Vec<Case>> {
    const ROW: &str = "write-cliff";
    let bytes = bench.sized(256 * MIB, 16 * MIB);
    let span = Duration::from_secs(bench.sized(30, 1));
    let far = Far::new(Shape::default())?;
    let mut config = far.config(bench, ROW)?;
    config.local_bytes_max = Some(4 * bytes);
    let store = bench.open(config)?;
    bench.lay_out(&store, &id("cliff"), bytes)?;
    let ingest = overwrite(bench, &store, bytes, bench.span)?;
    bench.runtime.block_on(store.drain_uploads())?;
    let uplink = ingest.bytes as f64 / ingest.span.as_secs_f64() / 4.0;
    far.link.reshape(Shape {
        latency: LATENCY,
        stream_rate: None,
        total_rate: Some(uplink),
    });
    // What the local disk still takes in is no steady state: the first half is not counted.
    let ours = Side::ours(|| {
        overwrite(bench, &store, bytes, span)?;
        overwrite(bench, &store, bytes, span)
    });
    let mut case = alternate(ROW, "uplink a quarter", 1, vec![ours]);
    let rate = case.median(OURS, Figure::BytesPerSecond);
    let share = rate.map(|it| it / uplink);
    case.at_least("bytes per s, of the uplink's", share, 0.9);
    case.at_most("bytes per s, of the uplink's", share, 1.1);
    let [p50, p99] = [0.5, 0.99].map(|it| case.median(OURS, Figure::LatencyUs(it)));
    let tail = p50.zip(p99).map(|(p50, p99)| p99 / p50);
    case.at_most("p99 over p50", tail, 5.0);
    // Closing would wait for the slow link: it has shown what it was for.
    far.link.reshape(Shape::default());
    bench.close(store)?;
    bench.remove(ROW)?;
    Ok(vec![case])
}
