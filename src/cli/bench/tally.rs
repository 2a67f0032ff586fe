//! What was measured of one kind of operation: two histograms, a count and bytes.
//!
//! Invariants:
//! 1. Three digits, to one hour; longer ones count as an hour.
//! 2. A percentile that the count cannot support is not given, see [`supports`].

use hdrhistogram::Histogram;
use std::time::Duration;

/// Longest latency that is told apart, in nanoseconds.
const LATENCY_MAX_NS: u64 = 3_600_000_000_000;

/// Values that must lie at or beyond a percentile. With fewer it tells of single mishaps, and the
/// next run of the same thing would give another figure.
const BEYOND_MIN: f64 = 5.0;

/// The percentiles that are shown, each with its fio name.
pub(crate) const PERCENTILES: [(&str, f64); 5] = [
    ("50.000000", 0.5),
    ("90.000000", 0.9),
    ("99.000000", 0.99),
    ("99.900000", 0.999),
    ("99.990000", 0.9999),
];

/// Whether `count` values are enough to speak of a quantile.
pub(crate) fn supports(count: u64, quantile: f64) -> bool {
    // The median of one value is that value; from there on the rule holds.
    quantile <= 0.5 && count > 0 || count as f64 * (1.0 - quantile) >= BEYOND_MIN - 1e-6
}

/// One kind of operation.
#[derive(Clone)]
pub(crate) struct Tally {
    pub(crate) count: u64,
    pub(crate) bytes: u64,
    /// From the moment it was handed to the store.
    pub(crate) service: Histogram<u64>,
    /// From the moment it was meant to begin; the same where no rate is given.
    pub(crate) total: Histogram<u64>,
}

impl Default for Tally {
    fn default() -> Tally {
        let fresh = || Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3).expect("bounds are valid");
        Tally {
            count: 0,
            bytes: 0,
            service: fresh(),
            total: fresh(),
        }
    }
}

impl Tally {
    pub(crate) fn record(&mut self, bytes: u64, service: Duration, total: Duration) {
        self.count += 1;
        self.bytes += bytes;
        let ns = |span: Duration| (span.as_nanos() as u64).clamp(1, LATENCY_MAX_NS);
        self.service.saturating_record(ns(service));
        self.total.saturating_record(ns(total));
    }

    pub(crate) fn merge(&mut self, other: &Tally) {
        self.count += other.count;
        self.bytes += other.bytes;
        let same = "all histograms have the same bounds";
        self.service.add(&other.service).expect(same);
        self.total.add(&other.total).expect(same);
    }
}

/// A quantile in nanoseconds, if there are values enough.
pub(crate) fn quantile(histogram: &Histogram<u64>, quantile: f64) -> Option<u64> {
    supports(histogram.len(), quantile).then(|| histogram.value_at_quantile(quantile))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_need_values_beyond_them() {
        for (count, supported) in [(0, 0), (1, 1), (49, 1), (50, 2), (500, 3), (50_000, 5)] {
            let found = PERCENTILES
                .iter()
                .filter(|(_, q)| supports(count, *q))
                .count();
            assert_eq!(found, supported, "{count}");
        }
    }

    #[test]
    fn merging_is_counting_together() {
        let (mut one, mut two) = (Tally::default(), Tally::default());
        let us = Duration::from_micros;
        one.record(10, us(1), us(2));
        two.record(20, us(3), us(3));
        two.record(20, us(100), Duration::from_secs(100_000));
        one.merge(&two);
        assert_eq!((one.count, one.bytes), (3, 50));
        assert_eq!(one.service.len(), 3);
        assert!(one.total.max() >= LATENCY_MAX_NS);
    }
}
