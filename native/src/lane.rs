//! One lane of the queue: requests in the order of their arrival, and the batches taken from it.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use crate::call_error::CallError;
use crate::metrics::{nanos, ModelMetrics};
use crate::model_version::ModelVersion;
use crate::pixels::Pixels;
use crate::responder::Responder;
use crate::sync::{now, AtomicUsize, Mutex, MutexGuard};

/// A queued request.
pub struct Entry {
    pub pixels: Pixels,
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

pub type Entries<'a> = MutexGuard<'a, VecDeque<Entry>>;

#[derive(Default)]
pub struct Lane {
    entries: Mutex<VecDeque<Entry>>,
    /// The number of entries, to be read without the lock.
    len: AtomicUsize,
}

impl Lane {
    /// Never call Python with it locked: see `Dequeued::into_batch`.
    pub fn lock(&self) -> Entries<'_> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of entries; another thread can change it at any time.
    pub fn len(&self) -> usize {
        self.len.load(Relaxed)
    }

    pub fn push(&self, mut entries: Entries<'_>, entry: Entry) {
        entries.push_back(entry);
        self.len.store(entries.len(), Relaxed);
    }

    /// Dequeues requests of one model up to `max_images`. Cancelled and expired ones take no part of that.
    pub fn dequeue(&self, entries: &mut Entries<'_>, max_images: usize) -> Dequeued {
        let mut dequeued = Dequeued { batch: Vec::with_capacity(entries.len().min(max_images)), ..Dequeued::default() };
        let (mut images, now) = (0, now());
        while let Some(next) = entries.front() {
            let fits = |first: &Entry| images + next.images <= max_images && first.model.is_same(&next.model);
            if !dequeued.batch.first().is_none_or(fits) {
                break;
            }
            let Some(mut entry) = entries.pop_front() else { break };
            dequeued.images += entry.images;
            if entry.responder.is_cancelled() {
                dequeued.cancelled.push(entry);
            } else if entry.deadline.is_some_and(|deadline| now >= deadline) {
                dequeued.expired.push(entry);
            } else {
                images += entry.images;
                dequeued.batch.push(entry);
            }
        }
        self.len.store(entries.len(), Relaxed);
        dequeued
    }
}

/// Requests taken from a lane: to run, or to drop because they were cancelled or their deadline has passed.
#[derive(Default)]
pub struct Dequeued {
    /// The images of all of them.
    pub images: usize,
    batch: Vec<Entry>,
    cancelled: Vec<Entry>,
    expired: Vec<Entry>,
}

impl Dequeued {
    /// Records all requests, fails the expired ones and returns those to run.
    ///
    /// Call it with the lane unlocked, since failing and dropping an entry can call Python. A thread that waits for the
    /// interpreter with the lane locked, and a Python thread that waits for the lane, would deadlock.
    pub fn into_batch(self, metrics: &ModelMetrics) -> Vec<Entry> {
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
