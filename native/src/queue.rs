//! The queue in front of the model: bounded, with lanes. A batch is the requests that its lane gathered during the last run.
//!
//! Each I/O thread has a lane for the small requests of its connections. It runs them itself, because a hand-over to
//! another thread costs more than their run. Large requests of all connections share a lane with threads of its own, so
//! that neither kind waits behind the other. While an I/O thread gets no small requests, it runs large ones too, as many
//! as it expects to finish within a short budget. There is no timer: an idle model runs a batch of one.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use crate::aligned::Aligned;
use crate::call_error::CallError;
use crate::lane::{Dequeued, Entry, Lane};
use crate::metrics::{nanos, ModelMetrics};
use crate::session::MAX_RUN;
use crate::sync::{now, AtomicBool, AtomicU64, AtomicUsize, Condvar, Notify};

/// How long an I/O thread may run large requests while no small ones arrive.
const INLINE_BUDGET: Duration = Duration::from_micros(500);
/// Images of a large batch that runs without Python, in parts of `MAX_RUN`: more are no faster, and other threads can run
/// them meanwhile.
const MAX_LARGE_BATCH: usize = 4 * MAX_RUN;
/// The time without a small request after which none is expected.
const IDLE_AFTER: Duration = Duration::from_millis(100);
/// Nanoseconds an image that `retry_after` assumes before the first run.
const DEFAULT_NS_PER_IMAGE: u64 = 1000;

/// The small requests of one I/O thread.
struct SmallLane {
    requests: Lane,
    /// Notified when the thread has a batch to run.
    ready: Notify,
    /// When the last request arrived, in ns since the queue's epoch.
    last_at: AtomicU64,
}

pub struct BatchQueue {
    small: Vec<Aligned<SmallLane>>,
    large: Aligned<Lane>,
    large_ready: Condvar,
    is_closed: AtomicBool,
    /// Of all lanes.
    queued_images: Aligned<AtomicUsize>,
    /// Of the last run; 0 before the first.
    ns_per_image: Aligned<AtomicU64>,
    /// The lane at which the next search for the least loaded starts.
    next_lane: AtomicUsize,
    epoch: Instant,
    max_queued_images: usize,
    max_batch_size: usize,
    /// The most images of a small request.
    inline_images: usize,
}

impl BatchQueue {
    pub fn new(io_threads: usize, max_queued_images: usize, max_batch_size: usize, inline_images: usize) -> Self {
        let small = |_| SmallLane { requests: Lane::default(), ready: Notify::new(), last_at: AtomicU64::new(0) };
        Self {
            small: (0..io_threads).map(small).map(Aligned).collect(),
            large: Aligned::default(),
            large_ready: Condvar::new(),
            is_closed: AtomicBool::new(false),
            queued_images: Aligned(AtomicUsize::new(0)),
            ns_per_image: Aligned(AtomicU64::new(0)),
            next_lane: AtomicUsize::new(0),
            epoch: now(),
            max_queued_images,
            max_batch_size,
            inline_images,
        }
    }

    pub fn queued_images(&self) -> usize {
        self.queued_images.load(Relaxed)
    }

    /// Whether there are requests that the I/O thread of `lane` runs, or may run.
    pub fn has_inline_requests(&self, lane: usize) -> bool {
        self.small[lane].requests.len() > 0 || self.large.len() > 0
    }

    /// Whether a stream may queue another request before its last is answered, and leave capacity for other clients.
    pub fn can_read_ahead(&self) -> bool {
        self.queued_images() * 2 + self.max_batch_size <= self.max_queued_images
    }

    pub fn record_run(&self, ns: u64, images: usize) {
        self.ns_per_image.store(ns / images as u64, Relaxed);
    }

    /// The lane with the fewest small requests, for one that arrives on no I/O thread.
    pub fn least_loaded_lane(&self) -> usize {
        let (lanes, first) = (self.small.len(), self.next_lane.fetch_add(1, Relaxed));
        let lanes = (0..lanes).map(|at| first.wrapping_add(at) % lanes);
        lanes.min_by_key(|lane| self.small[*lane].requests.len()).unwrap_or_default()
    }

    /// Returns when the I/O thread of `lane` has a batch to run.
    pub async fn inline_ready(&self, lane: usize) {
        self.small[lane].ready.notified().await;
    }

    /// Queues a request of the I/O thread of `lane`, or fails it at once if the queue is full.
    pub fn push(&self, lane: usize, entry: Entry, metrics: &ModelMetrics) {
        if entry.images <= self.inline_images {
            self.push_small(&self.small[lane], entry, metrics);
        } else {
            self.push_large(lane, entry, metrics);
        }
    }

    fn push_small(&self, lane: &SmallLane, entry: Entry, metrics: &ModelMetrics) {
        let requests = lane.requests.lock();
        // One that would be first in its lane runs at once, in spite of the limit.
        let is_next = requests.is_empty();
        if let Err(queued_images) = self.reserve(entry.images, is_next) {
            drop(requests);
            return self.reject(entry, queued_images, metrics);
        }
        lane.last_at.store(nanos(entry.enqueued_at - self.epoch), Relaxed);
        lane.requests.push(requests, entry);
        if is_next {
            lane.ready.notify_one();
        }
    }

    /// Queues a large request, for the I/O thread of `lane` if that gets no small ones.
    fn push_large(&self, lane: usize, entry: Entry, metrics: &ModelMetrics) {
        if let Err(queued_images) = self.reserve(entry.images, false) {
            return self.reject(entry, queued_images, metrics);
        }
        let is_idle = self.is_idle(lane, entry.enqueued_at);
        self.large.push(self.large.lock(), entry);
        if is_idle {
            self.small[lane].ready.notify_one();
        } else {
            self.large_ready.notify_one();
        }
    }

    /// Call it with the lane unlocked: it calls Python.
    fn reject(&self, entry: Entry, queued_images: usize, metrics: &ModelMetrics) {
        metrics.overloaded.add(1);
        entry.fail(self.overloaded_error(queued_images));
    }

    /// Counts images as queued; the error is how many are queued already, if these are too many.
    ///
    /// In one step, because other threads can queue in other lanes at the same time.
    #[allow(deprecated)] // its new name is unknown to the oldest supported Rust
    fn reserve(&self, images: usize, is_next: bool) -> Result<usize, usize> {
        self.queued_images.fetch_update(Relaxed, Relaxed, |queued| {
            Some(queued + images).filter(|all| is_next || *all <= self.max_queued_images)
        })
    }

    /// Whether the I/O thread of `lane` has received no small request for a while.
    fn is_idle(&self, lane: usize, now: Instant) -> bool {
        let idle_at = u128::from(self.small[lane].last_at.load(Relaxed)) + IDLE_AFTER.as_nanos();
        self.inline_images > 0 && idle_at < (now - self.epoch).as_nanos()
    }

    fn overloaded_error(&self, queued_images: usize) -> CallError {
        let ns_per_image = match self.ns_per_image.load(Relaxed) {
            0 => DEFAULT_NS_PER_IMAGE,
            ns => ns,
        };
        #[allow(clippy::cast_precision_loss)] // a hint in seconds
        let retry_after = (queued_images as u64 * ns_per_image) as f64 / 1e9;
        CallError::Overloaded { queued_images, max_queued_images: self.max_queued_images, retry_after }
    }

    /// The next batch of small requests of a lane; empty if none are queued.
    pub fn small_batch(&self, lane: usize, metrics: &ModelMetrics) -> Vec<Entry> {
        let requests = &self.small[lane].requests;
        let dequeued = requests.dequeue(&mut requests.lock(), self.max_batch_size);
        self.release(dequeued).into_batch(metrics)
    }

    /// Large requests for the I/O thread of `lane`, which saves a hand-over; wakes another thread for the rest.
    ///
    /// Empty while small requests are expected, which would have to wait.
    pub fn inline_large_batch(&self, lane: usize, metrics: &ModelMetrics) -> Vec<Entry> {
        // Without the lock, which all I/O threads share: the thread that queues a request is woken, or wakes another.
        if self.large.len() == 0 {
            return Vec::new();
        }
        let mut requests = self.large.lock();
        let Some(first) = requests.front() else { return Vec::new() };
        let max_images = self.inline_capacity();
        let max_batch = max_images.min(self.large_batch_limit(first));
        let is_inline = first.images <= max_images && self.is_idle(lane, now());
        let dequeued = if is_inline { self.large.dequeue(&mut requests, max_batch) } else { Dequeued::default() };
        if !requests.is_empty() {
            self.large_ready.notify_one();
        }
        drop(requests);
        self.release(dequeued).into_batch(metrics)
    }

    /// The most images of a large batch that begins with `first`, which may have more itself.
    fn large_batch_limit(&self, first: &Entry) -> usize {
        if first.model.session().is_some() {
            MAX_LARGE_BATCH
        } else {
            self.max_batch_size
        }
    }

    /// The images that a run is expected to finish within `INLINE_BUDGET`; 0 before the first run.
    fn inline_capacity(&self) -> usize {
        let images = nanos(INLINE_BUDGET).checked_div(self.ns_per_image.load(Relaxed)).unwrap_or(0);
        usize::try_from(images).unwrap_or(usize::MAX).min(self.max_batch_size)
    }

    /// Waits for large requests; `None` once the queue is closed and their lane empty.
    pub fn large_batch(&self, metrics: &ModelMetrics) -> Option<Vec<Entry>> {
        let mut requests = self.large.lock();
        let max_images = loop {
            if let Some(first) = requests.front() {
                break self.large_batch_limit(first);
            }
            if self.is_closed.load(Relaxed) {
                return None;
            }
            requests = self.large_ready.wait(requests).unwrap_or_else(PoisonError::into_inner);
        };
        let dequeued = self.large.dequeue(&mut requests, max_images);
        if !requests.is_empty() {
            self.large_ready.notify_one();
        }
        drop(requests);
        Some(self.release(dequeued).into_batch(metrics))
    }

    /// Counts dequeued requests as no longer queued.
    fn release(&self, dequeued: Dequeued) -> Dequeued {
        self.queued_images.fetch_sub(dequeued.images, Relaxed);
        dequeued
    }

    /// Lets the threads of the large lane end once it is empty.
    pub fn close(&self) {
        let _requests = self.large.lock();
        self.is_closed.store(true, Relaxed);
        self.large_ready.notify_all();
    }
}
