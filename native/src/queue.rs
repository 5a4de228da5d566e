//! Who waits for the model: a bounded line in two lanes, of which each gives what gathered while its model was busy.
//!
//! Small requests run on the thread that read them, since a hand-over costs more than the run; large ones on a thread
//! of their own, so that neither waits behind the other; but while nobody small is about, the thread that reads runs those
//! too, as far as it expects to be done at once. Nothing waits for a timer: an idle model takes a batch of one.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use crate::metrics::{self, nanos};
use crate::model_version::Served;
use crate::protobuf::{Message, Span};
use crate::responder::{Reply, Trouble};
use crate::sync::{now, AtomicBool, AtomicU64, AtomicUsize, Condvar, Mutex, MutexGuard, Notify};

/// How long the reading thread may run large requests itself where nobody small is about.
const SPARE: Duration = Duration::from_micros(500);
/// How long after a small request another is reckoned with.
const QUIET: Duration = Duration::from_millis(100);

/// A request in line; it holds its own reply.
pub struct Item {
    pub message: Message,
    pub span: Span,
    pub images: usize,
    pub since: Instant,
    pub deadline: Option<Instant>,
    /// The model that answers it: the one that served when it came.
    pub served: Arc<Served>,
    pub reply: Reply,
}

impl Item {
    pub fn fail(self, trouble: Trouble) {
        self.reply.fail(trouble, &self.served.statistics);
    }
}

pub struct Line {
    small: Mutex<VecDeque<Item>>,
    large: Mutex<VecDeque<Item>>,
    pub small_waits: Notify,
    large_waits: Condvar,
    began: Instant,
    /// When the last small request came, in ns since `began`.
    last_small: AtomicU64,
    closed: AtomicBool,
    images: AtomicUsize,
    /// What the last run took; 0 before the first.
    ns_per_image: AtomicU64,
    max_queued_images: usize,
    max_batch_size: usize,
    inline: usize,
}

impl Line {
    pub fn new(max_queued_images: usize, max_batch_size: usize, inline: usize) -> Self {
        Self {
            small: Mutex::default(),
            large: Mutex::default(),
            small_waits: Notify::new(),
            large_waits: Condvar::new(),
            began: now(),
            last_small: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            images: AtomicUsize::new(0),
            ns_per_image: AtomicU64::new(0),
            max_queued_images,
            max_batch_size,
            inline,
        }
    }

    /// How many images wait.
    pub fn images(&self) -> usize {
        self.images.load(Relaxed)
    }

    /// Whether one caller may put in a request more before its last is answered, and leave room for others.
    pub fn has_room_ahead(&self) -> bool {
        self.images() * 2 + self.max_batch_size <= self.max_queued_images
    }

    pub fn took(&self, ns: u64, images: usize) {
        self.ns_per_image.store(ns / images as u64, Relaxed);
    }

    /// Puts a request in its lane; where that is full the caller hears of it at once.
    pub fn push(&self, item: Item, model: &metrics::Model) {
        let is_small = item.images <= self.inline;
        let mut lane = lock(if is_small { &self.small } else { &self.large });
        // A small request that finds nobody waiting runs at once, whatever the bound.
        let is_next = is_small && lane.is_empty();
        if let Err(waiting) = self.count(item.images, is_next) {
            drop(lane);
            model.overloaded.add(1);
            return item.fail(self.overloaded(waiting));
        }
        if is_small {
            self.last_small.store(nanos(item.since - self.began), Relaxed);
        }
        let is_spare = self.is_quiet(item.since);
        lane.push_back(item);
        let was_empty = lane.len() == 1;
        drop(lane);
        if !is_small && !is_spare {
            self.large_waits.notify_one();
        } else if was_empty {
            self.small_waits.notify_one();
        }
    }

    /// Counts images that are to wait; how many wait already where these are too many.
    ///
    /// In one step, for another thread may be putting some in the other lane.
    #[allow(deprecated)] // in favour of a name that the oldest Rust which this is for does not know
    fn count(&self, images: usize, is_next: bool) -> Result<usize, usize> {
        self.images.fetch_update(Relaxed, Relaxed, |waiting| {
            Some(waiting + images).filter(|all| is_next || *all <= self.max_queued_images)
        })
    }

    /// Whether no small request has come for a while.
    fn is_quiet(&self, now: Instant) -> bool {
        self.inline > 0 && u128::from(self.last_small.load(Relaxed)) + QUIET.as_nanos() < (now - self.began).as_nanos()
    }

    fn overloaded(&self, waiting: usize) -> Trouble {
        let each = match self.ns_per_image.load(Relaxed) {
            0 => 1000,
            ns => ns,
        };
        #[allow(clippy::cast_precision_loss)] // a hint in seconds
        let retry_after = (waiting as u64 * each) as f64 / 1e9;
        Trouble::Overloaded { waiting, max_queued_images: self.max_queued_images, retry_after }
    }

    /// The next batch of small requests; empty where nobody waits.
    pub fn small_batch(&self, model: &metrics::Model) -> Vec<Item> {
        let taken = self.take(&mut lock(&self.small), self.max_batch_size);
        taken.batch(model)
    }

    /// Large requests that the reading thread runs itself, which saves a hand-over; the rest is handed over.
    ///
    /// Empty where a small request might come and would have to wait.
    pub fn spare_batch(&self, model: &metrics::Model) -> Vec<Item> {
        let mut lane = lock(&self.large);
        let Some(first) = lane.front() else { return Vec::new() };
        let most = self.spare_images();
        let is_spare = first.images <= most && self.is_quiet(now());
        let taken = if is_spare { self.take(&mut lane, most) } else { Taken::default() };
        if !lane.is_empty() {
            self.large_waits.notify_one();
        }
        drop(lane);
        taken.batch(model)
    }

    /// How many images are expected to be done within SPARE; none before the first run.
    fn spare_images(&self) -> usize {
        let most = nanos(SPARE).checked_div(self.ns_per_image.load(Relaxed)).unwrap_or(0);
        usize::try_from(most).unwrap_or(usize::MAX).min(self.max_batch_size)
    }

    /// Waits for large requests; `None` once the line is closed and empty.
    pub fn large_batch(&self, model: &metrics::Model) -> Option<Vec<Item>> {
        let mut lane = lock(&self.large);
        while lane.is_empty() {
            if self.closed.load(Relaxed) {
                return None;
            }
            lane = self.large_waits.wait(lane).unwrap_or_else(PoisonError::into_inner);
        }
        let taken = self.take(&mut lane, self.max_batch_size);
        drop(lane);
        Some(taken.batch(model))
    }

    /// Let the threads of the large lane end when it is empty.
    pub fn close(&self) {
        let _lane = lock(&self.large);
        self.closed.store(true, Relaxed);
        self.large_waits.notify_all();
    }

    /// The longest run of waiting requests that fits and has one model; those that left or are late cost nothing.
    fn take(&self, lane: &mut VecDeque<Item>, most: usize) -> Taken {
        let mut taken = Taken { batch: Vec::with_capacity(lane.len().min(most)), ..Taken::default() };
        let (mut size, now) = (0, now());
        while let Some(next) = lane.front() {
            let fits = |first: &Item| size + next.images <= most && Arc::ptr_eq(&first.served, &next.served);
            if !taken.batch.first().is_none_or(fits) {
                break;
            }
            let Some(mut item) = lane.pop_front() else { break };
            self.images.fetch_sub(item.images, Relaxed);
            if item.reply.is_gone() {
                taken.gone.push(item);
            } else if item.deadline.is_some_and(|deadline| now >= deadline) {
                taken.late.push(item);
            } else {
                size += item.images;
                taken.batch.push(item);
            }
        }
        taken
    }
}

/// What was taken out of a lane: to be run, or left out because its caller has gone or its time is over.
#[derive(Default)]
struct Taken {
    batch: Vec<Item>,
    gone: Vec<Item>,
    late: Vec<Item>,
}

impl Taken {
    /// Counts all, tells those who are late, and gives what is to be run.
    ///
    /// With the lane unlocked again, for to tell and to let go of an item may ask Python: a thread that waits for the
    /// interpreter with a lane locked, and one of Python's that waits for that lane, would wait for ever.
    fn batch(self, model: &metrics::Model) -> Vec<Item> {
        let now = now();
        for item in &self.batch {
            let waited = nanos(now - item.since);
            model.queue.observe(waited);
            item.served.statistics.queued.add(waited, 1);
        }
        model.cancelled.add(self.gone.len() as u64);
        model.late.add(self.late.len() as u64);
        for item in self.late {
            item.fail(Trouble::Late);
        }
        self.batch
    }
}

/// Never hold it while Python is asked for anything: see `Taken::batch`.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
