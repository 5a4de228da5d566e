//! The queue in front of the model: bounded, with two lanes. A batch is what its lane gathered during the last run.
//!
//! Small requests run on the I/O thread, because a hand-over to another thread costs more than their run. Large ones have
//! a thread of their own, so that neither waits behind the other. While no small requests arrive, the I/O thread runs
//! large ones too, as many as it expects to finish within a short budget. There is no timer: an idle model runs a batch
//! of one.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use crate::call_error::CallError;
use crate::message::{Message, Span};
use crate::metrics::{nanos, ModelMetrics};
use crate::model_version::ModelVersion;
use crate::responder::Responder;
use crate::sync::{now, AtomicBool, AtomicU64, AtomicUsize, Condvar, Mutex, MutexGuard, Notify};

/// How long the I/O thread may run large requests while no small ones arrive.
const INLINE_BUDGET: Duration = Duration::from_micros(500);
/// The time without a small request after which none is expected.
const IDLE_AFTER: Duration = Duration::from_millis(100);
/// Nanoseconds an image that `retry_after` assumes before the first run.
const DEFAULT_NS_PER_IMAGE: u64 = 1000;

/// A queued request.
pub struct Entry {
    pub message: Message,
    pub pixels: Span,
    pub images: usize,
    pub enqueued_at: Instant,
    pub deadline: Option<Instant>,
    /// The model that served when the request arrived.
    pub model: Arc<ModelVersion>,
    pub responder: Responder,
}

impl Entry {
    pub fn fail(self, error: CallError) {
        self.responder.fail(error, &self.model.statistics);
    }
}

pub struct BatchQueue {
    small: Mutex<VecDeque<Entry>>,
    large: Mutex<VecDeque<Entry>>,
    /// Notified when the I/O thread has a batch to run.
    pub inline_ready: Notify,
    large_ready: Condvar,
    epoch: Instant,
    /// When the last small request arrived, in ns since `epoch`.
    last_small_at: AtomicU64,
    is_closed: AtomicBool,
    queued_images: AtomicUsize,
    /// Of the last run; 0 before the first.
    ns_per_image: AtomicU64,
    max_queued_images: usize,
    max_batch_size: usize,
    /// The most images of a small request.
    inline_images: usize,
}

impl BatchQueue {
    pub fn new(max_queued_images: usize, max_batch_size: usize, inline_images: usize) -> Self {
        Self {
            small: Mutex::default(),
            large: Mutex::default(),
            inline_ready: Notify::new(),
            large_ready: Condvar::new(),
            epoch: now(),
            last_small_at: AtomicU64::new(0),
            is_closed: AtomicBool::new(false),
            queued_images: AtomicUsize::new(0),
            ns_per_image: AtomicU64::new(0),
            max_queued_images,
            max_batch_size,
            inline_images,
        }
    }

    pub fn queued_images(&self) -> usize {
        self.queued_images.load(Relaxed)
    }

    /// Whether a stream may queue another request before its last is answered, and leave capacity for other clients.
    pub fn can_read_ahead(&self) -> bool {
        self.queued_images() * 2 + self.max_batch_size <= self.max_queued_images
    }

    pub fn record_run(&self, ns: u64, images: usize) {
        self.ns_per_image.store(ns / images as u64, Relaxed);
    }

    /// Queues a request, or fails it at once if the queue is full.
    pub fn push(&self, entry: Entry, metrics: &ModelMetrics) {
        let is_small = entry.images <= self.inline_images;
        let mut lane = lock(if is_small { &self.small } else { &self.large });
        // A small request that would be first in its lane runs at once, whatever the limit.
        let is_next = is_small && lane.is_empty();
        if let Err(queued_images) = self.reserve(entry.images, is_next) {
            drop(lane);
            metrics.overloaded.add(1);
            return entry.fail(self.overloaded_error(queued_images));
        }
        if is_small {
            self.last_small_at.store(nanos(entry.enqueued_at - self.epoch), Relaxed);
        }
        let is_idle = self.is_idle(entry.enqueued_at);
        lane.push_back(entry);
        let was_empty = lane.len() == 1;
        drop(lane);
        if !is_small && !is_idle {
            self.large_ready.notify_one();
        } else if was_empty {
            self.inline_ready.notify_one();
        }
    }

    /// Counts images as queued; the error is how many are queued already, if these are too many.
    ///
    /// In one step, because another thread can queue in the other lane at the same time.
    #[allow(deprecated)] // its new name is unknown to the oldest supported Rust
    fn reserve(&self, images: usize, is_next: bool) -> Result<usize, usize> {
        self.queued_images.fetch_update(Relaxed, Relaxed, |queued| {
            Some(queued + images).filter(|all| is_next || *all <= self.max_queued_images)
        })
    }

    /// Whether no small request has arrived for a while.
    fn is_idle(&self, now: Instant) -> bool {
        let idle_at = u128::from(self.last_small_at.load(Relaxed)) + IDLE_AFTER.as_nanos();
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

    /// The next batch of small requests; empty if none are queued.
    pub fn small_batch(&self, metrics: &ModelMetrics) -> Vec<Entry> {
        let dequeued = self.dequeue(&mut lock(&self.small), self.max_batch_size);
        dequeued.into_batch(metrics)
    }

    /// Large requests for the I/O thread, which saves a hand-over; wakes the other thread for the rest.
    ///
    /// Empty while small requests are expected, which would have to wait.
    pub fn inline_large_batch(&self, metrics: &ModelMetrics) -> Vec<Entry> {
        let mut lane = lock(&self.large);
        let Some(first) = lane.front() else { return Vec::new() };
        let max_images = self.inline_capacity();
        let is_inline = first.images <= max_images && self.is_idle(now());
        let dequeued = if is_inline { self.dequeue(&mut lane, max_images) } else { Dequeued::default() };
        if !lane.is_empty() {
            self.large_ready.notify_one();
        }
        drop(lane);
        dequeued.into_batch(metrics)
    }

    /// The images that a run is expected to finish within `INLINE_BUDGET`; 0 before the first run.
    fn inline_capacity(&self) -> usize {
        let images = nanos(INLINE_BUDGET).checked_div(self.ns_per_image.load(Relaxed)).unwrap_or(0);
        usize::try_from(images).unwrap_or(usize::MAX).min(self.max_batch_size)
    }

    /// Waits for large requests; `None` once the queue is closed and their lane empty.
    pub fn large_batch(&self, metrics: &ModelMetrics) -> Option<Vec<Entry>> {
        let mut lane = lock(&self.large);
        while lane.is_empty() {
            if self.is_closed.load(Relaxed) {
                return None;
            }
            lane = self.large_ready.wait(lane).unwrap_or_else(PoisonError::into_inner);
        }
        let dequeued = self.dequeue(&mut lane, self.max_batch_size);
        drop(lane);
        Some(dequeued.into_batch(metrics))
    }

    /// Lets the threads of the large lane end once it is empty.
    pub fn close(&self) {
        let _lane = lock(&self.large);
        self.is_closed.store(true, Relaxed);
        self.large_ready.notify_all();
    }

    /// Dequeues requests of one model up to `max_images`. Cancelled and expired ones take no part of that.
    fn dequeue(&self, lane: &mut VecDeque<Entry>, max_images: usize) -> Dequeued {
        let mut dequeued = Dequeued { batch: Vec::with_capacity(lane.len().min(max_images)), ..Dequeued::default() };
        let (mut images, now) = (0, now());
        while let Some(next) = lane.front() {
            let fits = |first: &Entry| images + next.images <= max_images && Arc::ptr_eq(&first.model, &next.model);
            if !dequeued.batch.first().is_none_or(fits) {
                break;
            }
            let Some(mut entry) = lane.pop_front() else { break };
            self.queued_images.fetch_sub(entry.images, Relaxed);
            if entry.responder.is_cancelled() {
                dequeued.cancelled.push(entry);
            } else if entry.deadline.is_some_and(|deadline| now >= deadline) {
                dequeued.expired.push(entry);
            } else {
                images += entry.images;
                dequeued.batch.push(entry);
            }
        }
        dequeued
    }
}

/// Requests taken from a lane: to run, or to drop because they were cancelled or their deadline has passed.
#[derive(Default)]
struct Dequeued {
    batch: Vec<Entry>,
    cancelled: Vec<Entry>,
    expired: Vec<Entry>,
}

impl Dequeued {
    /// Records all requests, fails the expired ones and returns those to run.
    ///
    /// Call it with the lane unlocked. Failing and dropping an entry can call Python: one thread that waits for the
    /// interpreter with the lane locked, and a Python thread that waits for the lane, would deadlock.
    fn into_batch(self, metrics: &ModelMetrics) -> Vec<Entry> {
        let now = now();
        for entry in &self.batch {
            let queued = nanos(now - entry.enqueued_at);
            metrics.queue.observe(queued);
            entry.model.statistics.queue.add(queued, 1);
        }
        metrics.cancelled.add(self.cancelled.len() as u64);
        metrics.deadline_exceeded.add(self.expired.len() as u64);
        for entry in self.expired {
            entry.fail(CallError::DeadlineExceeded);
        }
        self.batch
    }
}

/// Never call Python with it locked: see `Dequeued::into_batch`.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
