//! Metrics as atomics, of one I/O thread. Python reads their sums over all threads before a scrape.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::histogram::{Counter, Histogram};
use crate::inference::{Predictions, CLASSES};
use crate::status::CODES;

/// As in `service.network`, which has the reason.
const LOWEST_TOP: f32 = 0.6;
const HIGHEST_SECOND: f32 = 0.2;

/// The `grpc_server_*` series of one RPC on one I/O thread. Aligned, so that no other thread writes to its cache lines.
#[derive(Debug)]
#[repr(align(128))]
pub struct RpcMetrics {
    pub started: Counter,
    pub messages_received: Counter,
    pub messages_sent: Counter,
    pub handled: [Counter; CODES],
    pub handling: Histogram,
    pub exemplars: Mutex<Exemplars>,
}

/// The last request of each status code and of each bucket, among those that have a request id.
#[derive(Clone, Debug, Default)]
pub struct Exemplars {
    /// Id and Unix time by code.
    pub by_code: BTreeMap<usize, (String, f64)>,
    /// Id, nanoseconds and Unix time by bucket.
    pub by_bucket: BTreeMap<usize, (String, u64, f64)>,
}

impl Exemplars {
    /// The last of each over all threads.
    pub fn latest(parts: &[&RpcMetrics]) -> Self {
        let mut latest = Self::default();
        for part in parts {
            let exemplars = part.exemplars.lock().unwrap_or_else(PoisonError::into_inner).clone();
            for (code, new) in exemplars.by_code {
                let last = latest.by_code.entry(code).or_default();
                if new.1 >= last.1 {
                    *last = new;
                }
            }
            for (bucket, new) in exemplars.by_bucket {
                let last = latest.by_bucket.entry(bucket).or_default();
                if new.2 >= last.2 {
                    *last = new;
                }
            }
        }
        latest
    }
}

/// `OpenMetrics` allows 128 characters for the names and values of an exemplar.
const MAX_EXEMPLAR_ID: usize = 128 - "request_id".len();

impl RpcMetrics {
    pub fn new(latency_bounds: &[f64]) -> Self {
        Self {
            started: Counter::default(),
            messages_received: Counter::default(),
            messages_sent: Counter::default(),
            handled: std::array::from_fn(|_| Counter::default()),
            handling: Histogram::new(latency_bounds, 1e9),
            exemplars: Mutex::default(),
        }
    }

    /// Records the end of a call that started at `started_at`.
    pub fn record_end(&self, started_at: Instant, code: usize, request_id: Option<&str>) {
        let ns = nanos(started_at.elapsed());
        let bucket = self.handling.observe(ns);
        self.handled[code].add(1);
        if let Some(id) = request_id.filter(|id| id.len() <= MAX_EXEMPLAR_ID) {
            let now = unix_time().as_secs_f64();
            let mut exemplars = self.exemplars.lock().unwrap_or_else(PoisonError::into_inner);
            exemplars.by_code.insert(code, (id.to_owned(), now));
            exemplars.by_bucket.insert(bucket, (id.to_owned(), ns, now));
        }
    }
}

/// The number of events and the sum of their durations.
#[derive(Debug, Default)]
pub struct DurationTotal {
    count: Counter,
    ns: Counter,
}

impl DurationTotal {
    /// Adds `count` events of `ns` nanoseconds each.
    pub fn add(&self, ns: u64, count: u64) {
        self.count.add(count);
        self.ns.add(ns * count);
    }

    /// Returns count and nanoseconds since the last call.
    pub fn take(&self) -> (u64, u64) {
        (self.count.take(), self.ns.take())
    }
}

/// Connections that were rejected, or closed by the server.
#[derive(Debug, Default)]
pub struct ConnectionMetrics {
    /// Rejected because there were as many as the limit allows.
    pub full: Counter,
    /// Rejected because the TLS handshake failed.
    pub handshake: Counter,
    /// Closed because the client did not read its replies.
    pub unread: Counter,
}

/// The series of the model on one I/O thread, over all its versions.
#[derive(Debug)]
#[repr(align(128))]
pub struct ModelMetrics {
    pub inference: Histogram,
    pub queue: Histogram,
    pub batch_size: Histogram,
    /// The highest activation of each image, in billionths.
    pub confidence: Histogram,
    /// Images whose highest activation is below `LOWEST_TOP`, or whose second is above `HIGHEST_SECOND`.
    pub unsure: Counter,
    pub digits: [Counter; CLASSES],
    pub cancelled: Counter,
    pub deadline_exceeded: Counter,
    pub overloaded: Counter,
    pub unauthenticated: Counter,
    pub last_inference_ms: Counter,
}

/// The statistics of one version of the model on one I/O thread, named as in Triton's `ModelStatistics`.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Statistics {
    pub success: DurationTotal,
    pub fail: DurationTotal,
    pub queue: DurationTotal,
    pub compute_input: DurationTotal,
    pub compute_infer: DurationTotal,
    pub compute_output: DurationTotal,
    pub batches: Mutex<BTreeMap<usize, (u64, u64)>>,
    pub last_inference_ms: Counter,
}

impl ModelMetrics {
    /// The upper bounds of the buckets: seconds, seconds, images, and 0 to 1.
    pub fn new(latency: &[f64], inference: &[f64], batch_size: &[f64], confidence: &[f64]) -> Self {
        Self {
            inference: Histogram::new(inference, 1e9),
            queue: Histogram::new(latency, 1e9),
            batch_size: Histogram::new(batch_size, 1.0),
            confidence: Histogram::new(confidence, 1e9),
            unsure: Counter::default(),
            digits: std::array::from_fn(|_| Counter::default()),
            cancelled: Counter::default(),
            deadline_exceeded: Counter::default(),
            overloaded: Counter::default(),
            unauthenticated: Counter::default(),
            last_inference_ms: Counter::default(),
        }
    }

    pub fn record_run(&self, predictions: &Predictions, duration: Duration) {
        self.inference.observe(nanos(duration));
        self.batch_size.observe(predictions.digits.len() as u64);
        let mut by_digit = [0u64; CLASSES];
        let mut confidence = self.confidence.batch();
        let mut unsure = 0;
        for (digit, row) in predictions.digits.iter().zip(predictions.activations.chunks_exact(CLASSES)) {
            let digit = usize::from(*digit);
            by_digit[digit] += 1;
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // 0 to 1
            let billionths = (f64::from(row[digit]) * 1e9 + 0.5) as u64; // rounded, without a call of the C library
            confidence.observe(billionths);
            unsure += u64::from(is_unsure(row, digit));
        }
        confidence.record();
        self.unsure.add(unsure);
        for (counter, n) in self.digits.iter().zip(by_digit).filter(|(_, n)| *n > 0) {
            counter.add(n);
        }
        self.last_inference_ms.set(unix_ms());
    }
}

impl Statistics {
    /// Records a run that answered `requests` requests. As in Triton, each counts with the duration of the whole run.
    pub fn record_run(&self, images: usize, requests: usize, duration: Duration) {
        let ns = nanos(duration);
        self.compute_infer.add(ns, requests as u64);
        let mut batches = self.batches.lock().unwrap_or_else(PoisonError::into_inner);
        let batch = batches.entry(images).or_default();
        batch.0 += 1;
        batch.1 += ns;
        drop(batches);
        self.last_inference_ms.set(unix_ms());
    }
}

/// Whether the rule of `service.network` calls an answer unsure.
fn is_unsure(activations: &[f32], digit: usize) -> bool {
    let others = activations.iter().enumerate().filter(|(index, _)| *index != digit);
    activations[digit] < LOWEST_TOP || others.map(|(_, activation)| *activation).any(|other| other > HIGHEST_SECOND)
}

fn unix_ms() -> u64 {
    u64::try_from(unix_time().as_millis()).unwrap_or(u64::MAX)
}

fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

pub fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_recorded_by_digit_and_by_batch_size() {
        let model = ModelMetrics::new(&[1.0], &[1.0], &[1.0, 2.0], &[0.5, 1.0]);
        let predictions = Predictions { digits: vec![7, 7, 3], activations: vec![0.75; 30], ..Predictions::default() };
        let statistics = Statistics::default();
        model.record_run(&predictions, Duration::from_micros(5));
        statistics.record_run(3, 2, Duration::from_micros(5));
        assert_eq!((model.digits[7].get(), model.digits[3].get()), (2, 1));
        assert_eq!(model.confidence.read(), (vec![0, 3, 0], 2_250_000_000));
        assert_eq!(model.unsure.get(), 3); // all ten activations are 0.75
        assert_eq!(statistics.compute_infer.take(), (2, 10_000));
        assert_eq!(statistics.batches.lock().unwrap().get(&3), Some(&(1, 5_000)));
    }
}
