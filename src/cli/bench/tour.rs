//! The tour: a store in a temporary directory is written, cloned, cut, overwritten, read back and
//! verified, each phase measured.
//!
//! Invariants:
//! 1. Every page that is read is compared with what the model says it must be; one wrong byte ends
//!    the tour with an error.
//! 2. Phases that repeat a small operation end by a deadline, so that a slow machine is not kept
//!    for minutes.
//! 3. No two operations in flight touch one page, so the model knows the order without asking.

use super::args::BenchArgs;
use super::extend;
use super::place::Place;
use super::show::{self, Footer, Row};
use super::tally::{PERCENTILES, Tally, quantile};
use crate::cli::args::Global;
use crate::cli::outcome::Report;
use crate::cli::{clock, machine, progress};
use anyhow::ensure;
use bytes::{Buf, Bytes};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use indicatif::ProgressBar;
use ringstore::{Chunks, PayloadId, Store};
use serde_json::{Map, Value, json};
use std::time::{Duration, Instant};

const PAGE: u64 = 4096;

/// Bytes of one sequential request.
const PIECE_BYTES: u64 = 1 << 20;

/// Payloads that are written, and their size: more than the memory for dirty bytes, four times
/// over.
const PAYLOADS: usize = 4;
const PAYLOAD_BYTES: u64 = 64 << 20;

/// Clones that are made of them.
const CLONES: usize = 16;

/// Most small writes of a phase. Each leaves an extent of its own, and whatever is read whole after
/// that pays for every one of them.
const OVERWRITES_MAX: usize = 20_000;

/// How long a phase of small operations may go on.
const PHASE_SPAN: Duration = Duration::from_secs(2);

/// Sequential requests in flight.
const SEQUENTIAL_DEPTH: usize = 8;

/// Small requests in flight where there are many.
const RANDOM_DEPTH: usize = 32;

/// Step between the pages that are touched one after the other: a prime that divides no count of
/// pages here, so every page has its turn once before any has it twice.
const STRIDE: u64 = 1_000_003;

/// A payload, and for each of its pages the stamp that its bytes are made from; 0 is a hole.
#[derive(Clone)]
struct Model {
    id: PayloadId,
    stamps: Vec<u64>,
}

impl Model {
    fn len(&self) -> u64 {
        self.stamps.len() as u64 * PAGE
    }
}

struct Phase {
    name: &'static str,
    tally: Tally,
    span: Duration,
}

struct Tour {
    store: Store,
    models: Vec<Model>,
    phases: Vec<Phase>,
    next_stamp: u64,
    bar: ProgressBar,
}

pub(super) async fn run(global: &Global, args: &BenchArgs) -> anyhow::Result<Report> {
    let load = machine::load();
    let place = Place::temporary()?;
    let store = crate::cli::open(super::configured(&place, global, args)?, global).await?;
    let bar = progress::spinner(global);
    bar.enable_steady_tick(Duration::from_millis(200));
    let mut tour = Tour {
        store,
        models: Vec::new(),
        phases: Vec::new(),
        // Stamps of two runs with neighbouring seeds have nothing in common.
        next_stamp: args.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
        bar,
    };
    tour.write().await?;
    tour.change().await?;
    tour.read().await?;
    let begun = clock::now();
    tour.store.clone().close().await?;
    tour.note("close", begun);
    let begun = clock::now();
    tour.store = crate::cli::open(super::configured(&place, global, args)?, global).await?;
    tour.note("open", begun);
    tour.read_back("reread").await?;
    let checked = tour.verify().await?;
    let stats = tour.store.stats().await?;
    tour.store.clone().close().await?;
    tour.bar.finish_and_clear();
    let footer = Footer::new(place.dir(), &stats, args.seed, load);
    Ok(tour.report(&footer, checked))
}

impl Tour {
    async fn write(&mut self) -> anyhow::Result<()> {
        let pages = PAYLOAD_BYTES / PAGE;
        for index in 0..PAYLOADS {
            let id = PayloadId::new(format!("payload-{index}"))?;
            let stamps = (0..pages).map(|_| self.stamp()).collect();
            self.models.push(Model { id, stamps });
        }
        let store = &self.store;
        let requests = pieces(&self.models).map(|(model, at, len)| {
            let data = content(model, at, len);
            async move { write(store, &model.id, at, data).await }
        });
        let phase = drive("ingest", SEQUENTIAL_DEPTH, None, requests, &self.bar).await?;
        self.phases.push(phase);
        self.flush_all().await?;
        self.overwrite("commit", 1, true).await
    }

    /// Clones everything, cuts the clones, overwrites pages of all of them.
    async fn change(&mut self) -> anyhow::Result<()> {
        let mut clones = Vec::new();
        for index in 0..CLONES {
            let id = PayloadId::new(format!("clone-{index}"))?;
            let stamps = self.models[index % PAYLOADS].stamps.clone();
            clones.push(Model { id, stamps });
        }
        let (store, models) = (&self.store, &self.models);
        let requests = clones.iter().enumerate().map(|(index, clone)| {
            let source = &models[index % PAYLOADS].id;
            timed(async move { store.copy(source, &clone.id).await.map(|_| 0) })
        });
        let phase = drive("clone", 1, None, requests, &self.bar).await?;
        self.phases.push(phase);
        for (index, clone) in clones.iter_mut().enumerate() {
            // Each another size; every other one is grown again, over what was cut off.
            let pages = clone.stamps.len();
            clone.stamps.truncate(pages / 4 + index * 7);
        }
        let store = &self.store;
        let requests = clones.iter().map(|clone| {
            timed(async move { store.truncate(&clone.id, clone.len()).await.map(|()| 0) })
        });
        let phase = drive("truncate", 1, None, requests, &self.bar).await?;
        self.phases.push(phase);
        for clone in clones.iter_mut().step_by(2) {
            clone.stamps.resize(clone.stamps.len() * 2, 0);
            self.store.truncate(&clone.id, clone.len()).await?;
        }
        self.models.extend(clones);
        self.overwrite("overwrite", RANDOM_DEPTH, false).await?;
        self.flush_all().await
    }

    async fn read(&mut self) -> anyhow::Result<()> {
        for (name, depth) in [("read qd1", 1), ("read qd32", RANDOM_DEPTH)] {
            let store = &self.store;
            let requests = scattered(&self.models).map(|(model, page)| {
                let model = &self.models[model];
                async move { read(store, model, page * PAGE, PAGE).await }
            });
            let phase = drive(name, depth, Some(PHASE_SPAN), requests, &self.bar).await?;
            self.phases.push(phase);
        }
        self.read_back("read back").await
    }

    /// Reads every payload whole.
    async fn read_back(&mut self, name: &'static str) -> anyhow::Result<()> {
        let store = &self.store;
        let requests = pieces(&self.models)
            .map(|(model, at, len)| async move { read(store, model, at, len).await });
        let phase = drive(name, SEQUENTIAL_DEPTH, None, requests, &self.bar).await?;
        self.phases.push(phase);
        Ok(())
    }

    /// Overwrites single pages all over, with a flush each if asked.
    async fn overwrite(
        &mut self,
        name: &'static str,
        depth: usize,
        flush: bool,
    ) -> anyhow::Result<()> {
        let store = &self.store;
        let mut stamp = self.next_stamp;
        let mut written = Vec::new();
        let pages = scattered(&self.models).take(OVERWRITES_MAX);
        let requests = pages.map(|(index, page)| {
            stamp += 2;
            written.push((index, page, stamp));
            let id = &self.models[index].id;
            let data = Bytes::from(fill(&[stamp]));
            timed(async move {
                store.write_at(id, page * PAGE, data).await?;
                if flush {
                    store.flush(id).await?;
                }
                Ok(PAGE)
            })
        });
        let phase = drive(name, depth, Some(PHASE_SPAN), requests, &self.bar).await?;
        self.phases.push(phase);
        self.next_stamp = stamp;
        for (index, page, stamp) in written {
            self.models[index].stamps[page as usize] = stamp;
        }
        Ok(())
    }

    async fn flush_all(&mut self) -> anyhow::Result<()> {
        let begun = clock::now();
        self.store.flush_all().await?;
        self.note("flush", begun);
        Ok(())
    }

    async fn verify(&mut self) -> anyhow::Result<u64> {
        self.bar.set_message("verify");
        let begun = clock::now();
        let report = self.store.verify().await?;
        ensure!(
            report.corrupt.is_empty(),
            "verify found bad bytes: {:?}",
            report.corrupt
        );
        ensure!(
            report.payloads == self.models.len() as u64,
            "verify looked at {} of {} payloads",
            report.payloads,
            self.models.len()
        );
        self.note("verify", begun);
        if let Some(phase) = self.phases.last_mut() {
            phase.tally.bytes = report.bytes_checked;
        }
        Ok(report.bytes_checked)
    }

    /// Notes something that happened once.
    fn note(&mut self, name: &'static str, begun: Instant) {
        let span = begun.elapsed();
        let mut tally = Tally::default();
        tally.record(0, span, span);
        self.phases.push(Phase { name, tally, span });
    }

    fn stamp(&mut self) -> u64 {
        self.next_stamp += 2;
        self.next_stamp
    }

    fn report(&self, footer: &Footer, checked: u64) -> Report {
        let mut rows = Vec::new();
        let mut phases = Vec::new();
        for phase in &self.phases {
            rows.push(Row {
                name: phase.name.to_owned(),
                tally: &phase.tally,
                span: phase.span,
                is_total: false,
            });
            phases.push(phase_json(phase));
        }
        let text = format!(
            "{}\n\nevery page that was read is what was written; {checked} bytes verified\n{}",
            show::table(&rows),
            footer.text()
        );
        let mut fields = json!({ "phases": phases, "bytes_verified": checked });
        extend(&mut fields, json!({ "environment": footer.json() }));
        Report::answer(text, fields)
    }
}

fn phase_json(phase: &Phase) -> Value {
    let mut percentiles = Map::new();
    for (name, share) in PERCENTILES {
        if let Some(ns) = quantile(&phase.tally.service, share) {
            percentiles.insert(name.to_owned(), ns.into());
        }
    }
    json!({
        "name": phase.name,
        "total_ios": phase.tally.count,
        "io_bytes": phase.tally.bytes,
        "runtime_ns": phase.span.as_nanos() as u64,
        "lat_ns": { "max": phase.tally.service.max(), "percentile": percentiles },
    })
}

/// Keeps `depth` of the requests in flight, until they or the time are used up.
async fn drive<F>(
    name: &'static str,
    depth: usize,
    time: Option<Duration>,
    mut requests: impl Iterator<Item = F>,
    bar: &ProgressBar,
) -> anyhow::Result<Phase>
where
    F: Future<Output = anyhow::Result<(u64, Duration)>>,
{
    bar.set_message(name);
    let begun = clock::now();
    let mut tally = Tally::default();
    let mut flying = FuturesUnordered::new();
    loop {
        let is_over = time.is_some_and(|time| begun.elapsed() >= time);
        if flying.len() < depth
            && !is_over
            && let Some(request) = requests.next()
        {
            flying.push(request);
            continue;
        }
        let Some(done) = flying.next().await else {
            break;
        };
        let (bytes, span) = done?;
        tally.record(bytes, span, span);
    }
    let span = begun.elapsed();
    Ok(Phase { name, tally, span })
}

/// Adds the time that a request takes to the bytes that it moves.
async fn timed(
    request: impl Future<Output = ringstore::Result<u64>>,
) -> anyhow::Result<(u64, Duration)> {
    let begun = clock::now();
    let bytes = request.await?;
    Ok((bytes, begun.elapsed()))
}

async fn write(
    store: &Store,
    id: &PayloadId,
    at: u64,
    data: Bytes,
) -> anyhow::Result<(u64, Duration)> {
    let len = data.len() as u64;
    timed(async { store.write_at(id, at, data).await.map(|()| len) }).await
}

/// Reads a range and compares it with the model; the comparison is not part of the time.
async fn read(store: &Store, model: &Model, at: u64, len: u64) -> anyhow::Result<(u64, Duration)> {
    let begun = clock::now();
    let found = store.read_at(&model.id, at, len as usize).await?;
    let span = begun.elapsed();
    let expected = content(model, at, len);
    let id = &model.id;
    ensure!(
        found.len() == expected.len(),
        "short read: id={id} offset={at} len={}",
        found.len()
    );
    ensure!(
        is_same(found, &expected),
        "wrong bytes: id={id} offset={at} len={len}"
    );
    Ok((len, span))
}

fn is_same(mut found: Chunks, mut expected: &[u8]) -> bool {
    while found.has_remaining() {
        let chunk = found.chunk();
        let len = chunk.len();
        if chunk != &expected[..len] {
            return false;
        }
        expected = &expected[len..];
        found.advance(len);
    }
    expected.is_empty()
}

/// What the model says is in a range of whole pages.
fn content(model: &Model, at: u64, len: u64) -> Bytes {
    let pages = (at / PAGE) as usize..((at + len) / PAGE) as usize;
    fill(&model.stamps[pages]).into()
}

/// Pages made from their stamps; no word of one is a word of another.
fn fill(stamps: &[u64]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(stamps.len() * PAGE as usize);
    for stamp in stamps {
        for index in 0..PAGE / 8 {
            let word = match stamp {
                0 => 0,
                stamp => (stamp << 9 | index).wrapping_mul(0x9E37_79B9_7F4A_7C15),
            };
            bytes.extend_from_slice(&word.to_le_bytes());
        }
    }
    bytes
}

/// All payloads, one after the other, in pieces.
fn pieces(models: &[Model]) -> impl Iterator<Item = (&Model, u64, u64)> {
    models.iter().flat_map(|model| {
        let len = model.len();
        let starts = (0..len).step_by(PIECE_BYTES as usize);
        starts.map(move |at| (model, at, PIECE_BYTES.min(len - at)))
    })
}

/// All pages of all payloads, each once, far from its neighbours in time.
fn scattered(models: &[Model]) -> impl Iterator<Item = (usize, u64)> + use<> {
    let mut ends = Vec::new();
    let mut total = 0;
    for model in models {
        total += model.stamps.len() as u64;
        ends.push(total);
    }
    (0..total).map(move |turn| {
        let page = turn * STRIDE % total;
        let model = ends.partition_point(|end| *end <= page);
        let start = if model == 0 { 0 } else { ends[model - 1] };
        (model, page - start)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_has_its_turn_once() {
        let models = [3, 1, 5].map(|pages| Model {
            id: PayloadId::new("any").unwrap(),
            stamps: vec![1; pages],
        });
        let mut turns: Vec<_> = scattered(&models).collect();
        turns.sort_unstable();
        turns.dedup();
        assert_eq!(turns.len(), 9);
        assert_eq!(turns.last(), Some(&(2, 4)));
    }

    #[test]
    fn a_hole_is_zeros_and_nothing_else_is() {
        assert!(fill(&[0]).iter().all(|byte| *byte == 0));
        assert_ne!(fill(&[1]), fill(&[2]));
        assert_eq!(fill(&[1, 0]).len(), 8192);
    }
}
