//! Counts of what callers take from a read buffer on their own threads.
//!
//! Counters are striped: threads that read at once do not write to one cache line, which would cost
//! more than all the rest of a hit. A stripe is chosen per thread, once.
//!
//! Invariant: counting allocates nothing and waits for nobody.

use crate::types::Nanos;
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Stripes of counters: threads on as many cores seldom meet.
const STRIPES: usize = 8;

/// Spans are told apart exactly up to as many nanoseconds, and then by as many steps an octave: an
/// eighth, which is finer than what a hit's span varies by.
const STEPS: u64 = 8;

/// Octaves above the first steps: up to 67 ms. A hit that takes longer was preempted.
const OCTAVES: usize = 23;

const SPANS: usize = STEPS as usize * (OCTAVES + 1);

/// One thread's counters, or a few threads': on cache lines of their own, of which processors
/// fetch two at a time.
#[repr(align(128))]
struct Stripe {
    bytes: AtomicU64,
    prefetched: AtomicU64,
    spans: [AtomicU64; SPANS],
}

impl Stripe {
    fn new() -> Stripe {
        Stripe {
            bytes: AtomicU64::new(0),
            prefetched: AtomicU64::new(0),
            spans: [const { AtomicU64::new(0) }; SPANS],
        }
    }
}

/// What has been taken from one shard's read buffer.
pub(crate) struct Hits(Box<[Stripe]>);

thread_local! {
    static STRIPE: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// This thread's stripe.
fn stripe() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    STRIPE.with(|stripe| {
        if stripe.get() == usize::MAX {
            stripe.set(NEXT.fetch_add(1, Ordering::Relaxed) % STRIPES);
        }
        stripe.get()
    })
}

impl Hits {
    pub(crate) fn new() -> Hits {
        Hits((0..STRIPES).map(|_| Stripe::new()).collect())
    }

    /// A read was served.
    pub(crate) fn note(&self, bytes: usize, from: Nanos, to: Nanos) {
        let stripe = &self.0[stripe()];
        stripe.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        let span = to.since(from).as_nanos() as u64;
        stripe.spans[bucket(span)].fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes that had been read ahead are used for the first time.
    pub(super) fn note_prefetched(&self, bytes: usize) {
        let prefetched = &self.0[stripe()].prefetched;
        prefetched.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes that were served.
    pub(crate) fn bytes(&self) -> u64 {
        let all = self.0.iter();
        all.map(|it| it.bytes.load(Ordering::Relaxed)).sum()
    }

    /// Bytes that had been read ahead and were used.
    pub(crate) fn prefetched(&self) -> u64 {
        let all = self.0.iter();
        all.map(|it| it.prefetched.load(Ordering::Relaxed)).sum()
    }

    /// How many reads took about how many nanoseconds.
    pub(crate) fn spans(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        (0..SPANS).filter_map(|bucket| {
            let counts = self.0.iter().map(|it| &it.spans[bucket]);
            let count = counts.map(|it| it.load(Ordering::Relaxed)).sum();
            (count > 0).then(|| (largest(bucket), count))
        })
    }
}

/// Where a span is counted.
fn bucket(span: u64) -> usize {
    if span < STEPS {
        return span as usize;
    }
    // The highest bit says the octave, the three below it the step.
    let octave = u64::from(span.ilog2() - STEPS.ilog2());
    let step = (span >> octave) - STEPS;
    ((STEPS * (octave + 1) + step) as usize).min(SPANS - 1)
}

/// The largest span that is counted there.
fn largest(bucket: usize) -> u64 {
    let (octave, step) = (bucket as u64 / STEPS, bucket as u64 % STEPS);
    match octave {
        0 => step,
        _ => ((STEPS + step + 1) << (octave - 1)) - 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_told_apart_to_an_eighth() {
        let mut last = 0;
        for span in (0..2000).chain((2000..60_000_000).step_by(4099)) {
            let at = bucket(span);
            assert!(at >= last && at < SPANS, "in order: span={span}");
            assert!(span <= largest(at), "span={span}");
            assert!(largest(at) - span <= span / 8 + 1, "span={span}");
            last = at;
        }
        assert_eq!(bucket(u64::MAX), SPANS - 1);
    }

    #[test]
    fn what_threads_count_adds_up() {
        let hits = Hits::new();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..100).for_each(|_| hits.note(10, Nanos(5), Nanos(105))));
            }
        });
        assert_eq!(hits.bytes(), 4000);
        assert_eq!(hits.spans().collect::<Vec<_>>(), [(103, 400)]);
        hits.note_prefetched(7);
        assert_eq!(hits.prefetched(), 7);
    }
}
