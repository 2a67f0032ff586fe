//! The load generator: jobs that keep operations in flight, closed loop or open.
//!
//! Invariants:
//! 1. Open loop: an operation's time counts from when it was meant to begin, so a store that stalls
//!    is charged for everything that had to wait, and nothing is left out.
//! 2. One job is one task; its histograms are its own until it ends.
//! 3. Nothing that begins before the ramp is over is counted, nor is the time until then.

use super::aim::{Aim, Shot};
use super::args::{BenchArgs, RateProcess, Rw};
use super::tally::Tally;
use crate::cli::clock;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rand_distr::{Distribution, Exp};
use ringstore::{PayloadId, Store};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Noise that writes are cut from, so that nothing on the way can compress them.
const NOISE_BYTES: usize = 4 << 20;

/// Beginnings that are drawn ahead; their times stay what they were if nobody fetches them.
const BEGINNINGS_MAX: usize = 4096;

/// One piece of the layout.
const LAYOUT_BYTES: u64 = 1 << 20;

/// Pieces of the layout in flight.
const LAYOUT_IN_FLIGHT: usize = 8;

/// What all jobs did, per kind of operation.
#[derive(Clone, Default)]
pub(crate) struct Outcome {
    pub(crate) read: Tally,
    pub(crate) write: Tally,
    pub(crate) flush: Tally,
    /// From the end of the ramp to the last operation's end.
    pub(crate) span: Duration,
}

/// An operation that is done.
struct Done {
    shot: Shot,
    bytes: u64,
    meant: Instant,
    begun: Instant,
    ended: Instant,
    flushed: Option<Duration>,
}

pub(crate) struct Job {
    store: Store,
    args: BenchArgs,
    aim: Aim,
    payloads: Vec<PayloadId>,
    noise: Bytes,
    writes: u64,
}

impl Job {
    pub(crate) fn new(store: &Store, args: &BenchArgs, rw: Rw, job: u32) -> anyhow::Result<Job> {
        let ids = (0..args.payloads).map(|index| PayloadId::new(format!("bench/{job}/{index}")));
        let mut noise = vec![0; NOISE_BYTES.max(2 * args.bs as usize)];
        SmallRng::seed_from_u64(args.seed).fill_bytes(&mut noise);
        Ok(Job {
            store: store.clone(),
            args: args.clone(),
            aim: Aim::new(args, rw, job),
            payloads: ids.collect::<ringstore::Result<_>>()?,
            noise: noise.into(),
            writes: 0,
        })
    }

    /// Writes the payloads, so that there is something to read.
    pub(crate) async fn lay_out(&self, bar: &indicatif::ProgressBar) -> anyhow::Result<()> {
        let mut writing = FuturesUnordered::new();
        let len = self.aim.payload_bytes();
        for id in &self.payloads {
            let mut at = 0;
            while at < len {
                let piece = LAYOUT_BYTES.min(len - at);
                let data = self.noise.slice(..piece as usize);
                writing.push(async move {
                    let written = self.store.write_at(id, at, data).await;
                    written.map(|()| piece)
                });
                if writing.len() == LAYOUT_IN_FLIGHT
                    && let Some(result) = writing.next().await
                {
                    bar.inc(result?);
                }
                at += piece;
            }
        }
        while let Some(result) = writing.next().await {
            bar.inc(result?);
        }
        Ok(())
    }

    /// Removes what the job has made.
    pub(crate) async fn clean_up(&self) -> anyhow::Result<()> {
        for id in &self.payloads {
            self.store.delete(id).await?;
        }
        Ok(())
    }

    /// Runs until the size, or the time, is used up.
    pub(crate) async fn run(&mut self, start: Instant) -> anyhow::Result<Outcome> {
        let counted_from = start + self.args.ramp_time;
        let until = self.args.runtime.map(|span| counted_from + span);
        let mut outcome = Outcome::default();
        let mut bytes_left = match self.args.time_based {
            true => u64::MAX,
            false => self.args.size.max(self.args.bs),
        };
        let mut beginnings = self.beginnings(start);
        let mut flying = FuturesUnordered::new();
        loop {
            let is_over = bytes_left < self.args.bs || until.is_some_and(|end| clock::now() >= end);
            if is_over && flying.is_empty() {
                break;
            }
            let may_begin = !is_over && flying.len() < self.args.iodepth as usize;
            let meant = match &mut beginnings {
                _ if !may_begin => None,
                None => Some(clock::now()),
                Some(beginnings) if flying.is_empty() => beginnings.recv().await,
                Some(beginnings) => tokio::select! {
                    biased;
                    meant = beginnings.recv() => meant,
                    Some(done) = flying.next() => {
                        outcome.count(done?, counted_from);
                        continue;
                    }
                },
            };
            if let Some(meant) = meant {
                bytes_left -= self.args.bs;
                flying.push(self.begin(meant));
            } else if let Some(done) = flying.next().await {
                outcome.count(done?, counted_from);
            }
        }
        outcome.span = clock::now().saturating_duration_since(counted_from);
        Ok(outcome)
    }

    /// One operation, with the flush that follows it if one is due.
    fn begin(&mut self, meant: Instant) -> impl Future<Output = ringstore::Result<Done>> + use<> {
        let shot = self.aim.next();
        let len = self.args.bs as usize;
        let store = self.store.clone();
        let id = self.payloads[shot.payload].clone();
        let mut data = Bytes::new();
        let mut is_flush_due = false;
        if !shot.is_read {
            let from = self.aim.noise_offset(self.noise.len(), len);
            data = self.noise.slice(from..from + len);
            self.writes += 1;
            is_flush_due = self.args.fsync > 0 && self.writes.is_multiple_of(self.args.fsync);
        }
        async move {
            let begun = clock::now();
            let bytes = match shot.is_read {
                true => store.read_at(&id, shot.offset, len).await?.len() as u64,
                false => store
                    .write_at(&id, shot.offset, data)
                    .await
                    .map(|()| len as u64)?,
            };
            let ended = clock::now();
            let mut flushed = None;
            if is_flush_due {
                store.flush(&id).await?;
                flushed = Some(clock::now() - ended);
            }
            Ok(Done {
                shot,
                bytes,
                meant,
                begun,
                ended,
                flushed,
            })
        }
    }

    /// When operations are meant to begin, if a rate is given.
    fn beginnings(&self, start: Instant) -> Option<mpsc::Receiver<Instant>> {
        let rate = self.args.rate_iops? as f64;
        let (sender, receiver) = mpsc::channel(BEGINNINGS_MAX);
        let process = self.args.rate_process;
        let mut rng = SmallRng::seed_from_u64(self.args.seed.wrapping_add(1));
        // A thread of its own: the runtime's timers are a thousand times coarser.
        tokio::task::spawn_blocking(move || {
            let gaps = Exp::new(rate).expect("the rate is above zero");
            let mut at = 0.0;
            loop {
                at += match process {
                    RateProcess::Linear => 1.0 / rate,
                    RateProcess::Poisson => gaps.sample(&mut rng),
                };
                let meant = start + Duration::from_secs_f64(at);
                let ahead = meant.saturating_duration_since(clock::now());
                if !ahead.is_zero() {
                    std::thread::sleep(ahead);
                }
                if sender.blocking_send(meant).is_err() {
                    return;
                }
            }
        });
        Some(receiver)
    }
}

impl Outcome {
    fn count(&mut self, done: Done, counted_from: Instant) {
        if done.meant < counted_from {
            return;
        }
        let tally = match done.shot.is_read {
            true => &mut self.read,
            false => &mut self.write,
        };
        let service = done.ended - done.begun;
        tally.record(done.bytes, service, done.ended - done.meant);
        if let Some(span) = done.flushed {
            self.flush.record(0, span, span);
        }
    }

    pub(crate) fn merge(&mut self, other: &Outcome) {
        self.read.merge(&other.read);
        self.write.merge(&other.write);
        self.flush.merge(&other.flush);
        self.span = self.span.max(other.span);
    }

    /// The kinds of operations that there were, by fio's names.
    pub(crate) fn kinds(&self) -> impl Iterator<Item = (&'static str, &Tally)> {
        [
            ("read", &self.read),
            ("write", &self.write),
            ("sync", &self.flush),
        ]
        .into_iter()
        .filter(|(_, tally)| tally.count > 0)
    }
}
