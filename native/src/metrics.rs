//! What happened, counted in atomics; a scrape reads them and Python gives them their names.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::decode::Predictions;

/// gRPC has 17 status codes, 0 to 16.
pub const CODES: usize = 17;

#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    fn take(&self) -> u64 {
        self.0.swap(0, Relaxed)
    }
}

/// Counts by upper edge, the last one without; edges and values in the same unit.
#[derive(Debug)]
pub struct Histogram {
    edges: Vec<u64>,
    buckets: Vec<Counter>,
    sum: Counter,
}

impl Histogram {
    /// `scale` times an edge is the unit of what is observed: `1e9` for edges in seconds and values in nanoseconds.
    pub fn new(edges: &[f64], scale: f64) -> Self {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // edges are positive and below an hour
        let edges: Vec<u64> = edges.iter().map(|edge| (edge * scale).round() as u64).collect();
        let buckets = (0..=edges.len()).map(|_| Counter::default()).collect();
        Self { edges, buckets, sum: Counter::default() }
    }

    /// Counts a value; the number of its bucket.
    pub fn observe(&self, value: u64) -> usize {
        let bucket = self.edges.partition_point(|edge| *edge < value);
        self.buckets[bucket].add(1);
        self.sum.add(value);
        bucket
    }

    /// The count of each bucket alone, the last one without an edge, and the sum of all values.
    pub fn read(&self) -> (Vec<u64>, u64) {
        (self.buckets.iter().map(Counter::get).collect(), self.sum.get())
    }
}

/// The `grpc_server_*` series of one RPC.
#[derive(Debug)]
pub struct Rpc {
    pub started: Counter,
    pub received: Counter,
    pub sent: Counter,
    pub handled: [Counter; CODES],
    pub handling: Histogram,
    pub exemplars: Mutex<Exemplars>,
}

/// Which request was the last of its code and of its bucket, by id: where there is one, for most have none.
#[derive(Clone, Debug, Default)]
pub struct Exemplars {
    /// Id and Unix time by code.
    pub by_code: BTreeMap<usize, (String, f64)>,
    /// Id, nanoseconds and Unix time by bucket.
    pub by_bucket: BTreeMap<usize, (String, u64, f64)>,
}

/// `OpenMetrics` allows an exemplar's names and values 128 characters together.
const LONGEST_IN_EXEMPLAR: usize = 128 - "request_id".len();

impl Rpc {
    pub fn new(latency_edges: &[f64]) -> Self {
        Self {
            started: Counter::default(),
            received: Counter::default(),
            sent: Counter::default(),
            handled: std::array::from_fn(|_| Counter::default()),
            handling: Histogram::new(latency_edges, 1e9),
            exemplars: Mutex::default(),
        }
    }

    pub fn finish(&self, since: Instant, code: usize, request_id: Option<&str>) {
        let ns = nanos(since.elapsed());
        let bucket = self.handling.observe(ns);
        self.handled[code].add(1);
        if let Some(id) = request_id.filter(|id| id.len() <= LONGEST_IN_EXEMPLAR) {
            let now = unix_time().as_secs_f64();
            let mut exemplars = self.exemplars.lock().unwrap_or_else(PoisonError::into_inner);
            exemplars.by_code.insert(code, (id.to_owned(), now));
            exemplars.by_bucket.insert(bucket, (id.to_owned(), ns, now));
        }
    }
}

/// How often, and for how many nanoseconds in all.
#[derive(Debug, Default)]
pub struct Total {
    count: Counter,
    ns: Counter,
}

impl Total {
    pub fn add(&self, ns: u64, times: u64) {
        self.count.add(times);
        self.ns.add(ns * times);
    }

    pub fn take(&self) -> (u64, u64) {
        (self.count.take(), self.ns.take())
    }
}

/// Connections that were not served, or not to their end.
#[derive(Debug, Default)]
pub struct Refused {
    /// One too many.
    pub full: Counter,
    /// No handshake of TLS that both sides agree on.
    pub handshake: Counter,
    /// The peer did not read its replies.
    pub unread: Counter,
}

/// The series of the model that are not of one version of it.
#[derive(Debug)]
pub struct Model {
    pub inference: Histogram,
    pub queue: Histogram,
    pub batch_size: Histogram,
    /// The winning activation of each image, in billionths.
    pub confidence: Histogram,
    pub digits: [Counter; 10],
    pub cancelled: Counter,
    pub late: Counter,
    pub overloaded: Counter,
    pub unauthenticated: Counter,
    pub last_ms: Counter,
}

/// Triton's statistics, of one version of the model.
#[derive(Debug, Default)]
pub struct Statistics {
    pub success: Total,
    pub fail: Total,
    pub queued: Total,
    pub decoded: Total,
    pub ran: Total,
    pub encoded: Total,
    pub batches: Mutex<BTreeMap<usize, (u64, u64)>>,
    pub last_ms: Counter,
}

impl Model {
    pub fn new(latency_edges: &[f64], inference_edges: &[f64], batch_edges: &[f64], confidence_edges: &[f64]) -> Self {
        Self {
            inference: Histogram::new(inference_edges, 1e9),
            queue: Histogram::new(latency_edges, 1e9),
            batch_size: Histogram::new(batch_edges, 1.0),
            confidence: Histogram::new(confidence_edges, 1e9),
            digits: std::array::from_fn(|_| Counter::default()),
            cancelled: Counter::default(),
            late: Counter::default(),
            overloaded: Counter::default(),
            unauthenticated: Counter::default(),
            last_ms: Counter::default(),
        }
    }

    /// Counts one run.
    pub fn ran(&self, found: &Predictions, time: Duration) {
        self.inference.observe(nanos(time));
        self.batch_size.observe(found.digits.len() as u64);
        let mut by_digit = [0u64; 10];
        for (digit, row) in found.digits.iter().zip(found.activations.chunks_exact(10)) {
            let digit = usize::from(*digit);
            by_digit[digit] += 1;
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // 0 to 1
            self.confidence.observe((f64::from(row[digit]) * 1e9).round() as u64);
        }
        for (counter, n) in self.digits.iter().zip(by_digit).filter(|(_, n)| *n > 0) {
            counter.add(n);
        }
        self.last_ms.set(unix_ms());
    }
}

impl Statistics {
    /// Counts one run that answered `requests` requests; each of them took the whole of it, as in Triton.
    pub fn ran(&self, images: usize, requests: usize, time: Duration) {
        let ns = nanos(time);
        self.ran.add(ns, requests as u64);
        let mut batches = self.batches.lock().unwrap_or_else(PoisonError::into_inner);
        let batch = batches.entry(images).or_default();
        batch.0 += 1;
        batch.1 += ns;
        drop(batches);
        self.last_ms.set(unix_ms());
    }
}

fn unix_ms() -> u64 {
    u64::try_from(unix_time().as_millis()).unwrap_or(u64::MAX)
}

fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

pub fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_on_an_edge_is_below_it_as_prometheus_has_it() {
        let histogram = Histogram::new(&[1e-3, 2e-3], 1e9);
        for ns in [0, 1_000_000, 1_000_001, 2_000_000, 2_000_001] {
            histogram.observe(ns);
        }
        assert_eq!(histogram.read(), (vec![2, 2, 1], 6_000_002));
    }

    #[test]
    fn a_run_counts_its_images_by_digit_and_by_size() {
        let model = Model::new(&[1.0], &[1.0], &[1.0, 2.0], &[0.5, 1.0]);
        let found = Predictions { digits: vec![7, 7, 3], activations: vec![0.75; 30], ..Predictions::default() };
        let statistics = Statistics::default();
        model.ran(&found, Duration::from_micros(5));
        statistics.ran(3, 2, Duration::from_micros(5));
        assert_eq!((model.digits[7].get(), model.digits[3].get()), (2, 1));
        assert_eq!(model.confidence.read(), (vec![0, 3, 0], 2_250_000_000));
        assert_eq!(statistics.ran.take(), (2, 10_000));
        assert_eq!(statistics.batches.lock().unwrap().get(&3), Some(&(1, 5_000)));
    }
}
