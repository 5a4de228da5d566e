//! Counters and histograms as atomics.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::aligned::Aligned;

/// The counters that fill an `Aligned` value: histograms of different threads share none.
const LINE: usize = 16;

#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    pub fn take(&self) -> u64 {
        self.0.swap(0, Relaxed)
    }
}

/// Counts by upper bound; the last bucket has none. Bounds and values have the same unit.
#[derive(Debug)]
pub struct Histogram {
    bounds: Vec<u64>,
    /// The buckets and, after them, the sum.
    lines: Vec<Aligned<[Counter; LINE]>>,
}

impl Histogram {
    /// `scale` converts a bound to the unit of the values: `1e9` for bounds in seconds and values in nanoseconds.
    pub fn new(bounds: &[f64], scale: f64) -> Self {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // bounds are positive and below an hour
        let bounds: Vec<u64> = bounds.iter().map(|bound| (bound * scale).round() as u64).collect();
        let lines = (bounds.len() + 2).div_ceil(LINE);
        Self { bounds, lines: (0..lines).map(|_| Aligned::default()).collect() }
    }

    /// Counts a value; returns the index of its bucket.
    pub fn observe(&self, value: u64) -> usize {
        let bucket = self.bucket(value);
        self.counter(bucket).add(1);
        self.sum().add(value);
        bucket
    }

    /// Counts many values with one addition for each bucket.
    pub fn batch(&self) -> HistogramBatch<'_> {
        HistogramBatch { histogram: self, buckets: vec![0; self.bounds.len() + 1], sum: 0 }
    }

    /// The count of each bucket, not cumulative, and the sum of all values.
    pub fn read(&self) -> (Vec<u64>, u64) {
        ((0..=self.bounds.len()).map(|bucket| self.counter(bucket).get()).collect(), self.sum().get())
    }

    /// The same over several histograms, which have the same bounds.
    pub fn read_all<'a>(histograms: impl Iterator<Item = &'a Self>) -> (Vec<u64>, u64) {
        let add = |(mut counts, sum): (Vec<u64>, u64), other: (Vec<u64>, u64)| {
            counts.iter_mut().zip(other.0).for_each(|(count, n)| *count += n);
            (counts, sum + other.1)
        };
        histograms.map(Self::read).reduce(add).unwrap_or_default()
    }

    fn bucket(&self, value: u64) -> usize {
        self.bounds.partition_point(|bound| *bound < value)
    }

    fn sum(&self) -> &Counter {
        self.counter(self.bounds.len() + 1)
    }

    fn counter(&self, at: usize) -> &Counter {
        &self.lines[at / LINE][at % LINE]
    }
}

/// Values to count together.
pub struct HistogramBatch<'a> {
    histogram: &'a Histogram,
    buckets: Vec<u64>,
    sum: u64,
}

impl HistogramBatch<'_> {
    pub fn observe(&mut self, value: u64) {
        self.buckets[self.histogram.bucket(value)] += 1;
        self.sum += value;
    }

    /// Counts the values.
    pub fn record(self) {
        for (at, n) in self.buckets.into_iter().enumerate().filter(|(_, n)| *n > 0) {
            self.histogram.counter(at).add(n);
        }
        self.histogram.sum().add(self.sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_on_a_bound_is_in_its_bucket_as_in_prometheus() {
        let histogram = Histogram::new(&[1e-3, 2e-3], 1e9);
        for ns in [0, 1_000_000, 1_000_001, 2_000_000, 2_000_001] {
            histogram.observe(ns);
        }
        assert_eq!(histogram.read(), (vec![2, 2, 1], 6_000_002));
    }

    #[test]
    fn values_counted_together_and_over_several_histograms_are_as_those_counted_alone() {
        let bounds: Vec<f64> = (0..40).map(f64::from).collect(); // more than a cache line has
        let (alone, first, second) =
            (Histogram::new(&bounds, 1.0), Histogram::new(&bounds, 1.0), Histogram::new(&bounds, 1.0));
        let mut batch = first.batch();
        for value in 0..60 {
            alone.observe(value);
            if value % 3 == 0 {
                second.observe(value);
            } else {
                batch.observe(value);
            }
        }
        batch.record();
        assert_eq!(Histogram::read_all([&first, &second].into_iter()), alone.read());
        assert_eq!(alone.read().1, 59 * 60 / 2);
    }
}
