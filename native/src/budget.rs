//! Memory limits for each peer's incomplete messages and unread replies.
//!
//! A connection at its limit is not read until its peer reads. At the limit of the process, the
//! connection that holds most is closed: a peer that reads its replies holds almost no memory.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

use crate::aligned::Aligned;
use crate::histogram::Counter;
use crate::metrics::nanos;
use crate::status::{Status, RESOURCE_EXHAUSTED};
use crate::sync::{now, AtomicBool, AtomicU64, AtomicUsize, Mutex, MutexGuard, Notify};

/// Unread bytes of replies on one connection, beyond which its next call with a large reply waits.
const CONNECTION_REPLIES: usize = 8 << 20;
/// Beyond which any call waits. It is larger because the clients of one proxy share a connection, and small replies
/// should not wait for a large one.
const CONNECTION_SMALL_REPLIES: usize = 3 * CONNECTION_REPLIES;
const SMALL_REPLY: usize = 32 << 10; // the largest
const PROCESS_REPLIES: usize = 96 << 20;
/// Bytes of incomplete messages; or of four of the largest messages, if that is more.
const PROCESS_INCOMPLETE: usize = 160 << 20;
/// The same for connections that have not presented a token or client certificate, if tokens are required.
const UNAUTHENTICATED_INCOMPLETE: usize = 16 << 20;
/// After this time without a byte read or a message completed, a connection counts for `STALLED_WEIGHT` times its bytes.
const STALLED_AFTER: Duration = Duration::from_secs(1);
const STALLED_WEIGHT: usize = 16;

/// The bytes held for all connections.
#[derive(Debug)]
pub struct Budget {
    reply_bytes: Aligned<AtomicUsize>,
    incomplete: Aligned<AtomicUsize>,
    incomplete_unauthenticated: Aligned<AtomicUsize>,
    max_incomplete: usize,
    usages: Mutex<BTreeMap<u64, Arc<Usage>>>,
    next_id: AtomicU64,
    epoch: Instant,
    /// Connections chosen to be closed and still open: no other is chosen meanwhile.
    closing: AtomicUsize,
    /// Connections closed because they held most when the process was at its limit.
    shed: Counter,
    /// One thread of the process decompresses, because that competes with the model and the I/O threads.
    decompression: Arc<Semaphore>,
}

impl Budget {
    pub fn new(max_message_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            reply_bytes: Aligned(AtomicUsize::new(0)),
            incomplete: Aligned(AtomicUsize::new(0)),
            incomplete_unauthenticated: Aligned(AtomicUsize::new(0)),
            max_incomplete: PROCESS_INCOMPLETE.max(4 * max_message_bytes),
            usages: Mutex::default(),
            next_id: AtomicU64::new(0),
            epoch: now(),
            closing: AtomicUsize::new(0),
            shed: Counter::default(),
            decompression: Arc::new(Semaphore::new(1)),
        })
    }

    /// Registers a new connection.
    pub fn register(self: &Arc<Self>, is_authenticated: bool) -> Registration {
        let usage = Arc::new(Usage {
            id: self.next_id.fetch_add(1, Relaxed),
            budget: self.clone(),
            peer: OnceLock::new(),
            is_authenticated: AtomicBool::new(is_authenticated),
            reply_bytes: AtomicUsize::new(0),
            reserved: AtomicUsize::new(0),
            incomplete: AtomicUsize::new(0),
            sent: AtomicU64::new(0),
            progress_at: AtomicU64::new(self.now()),
            is_shed: AtomicBool::new(false),
            capacity: Notify::new(),
            shed: Notify::new(),
            decompression: Arc::new(Semaphore::new(1)),
        });
        self.usages().insert(usage.id, usage.clone());
        Registration(usage)
    }

    /// Connections closed so far because they held most.
    pub fn shed_connections(&self) -> u64 {
        self.shed.get()
    }

    fn usages(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Usage>>> {
        self.usages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn incomplete(&self, is_authenticated: bool) -> &AtomicUsize {
        if is_authenticated {
            &self.incomplete
        } else {
            &self.incomplete_unauthenticated
        }
    }

    fn now(&self) -> u64 {
        nanos(now() - self.epoch)
    }

    /// Closes the connection with the most bytes by `bytes`; false if that is the requesting one.
    fn shed_largest(&self, requesting: &Usage, bytes: impl Fn(&Usage) -> usize) -> bool {
        let usages = self.usages();
        if self.closing.load(Relaxed) > 0 {
            return true;
        }
        let now = self.now();
        let weight = |usage: &Usage| {
            let idle = now.saturating_sub(usage.progress_at.load(Relaxed));
            let is_stalled = u128::from(idle) > STALLED_AFTER.as_nanos();
            bytes(usage) * if is_stalled { STALLED_WEIGHT } else { 1 }
        };
        let largest = usages.values().filter(|usage| !usage.is_shed.load(Relaxed)).max_by_key(|usage| weight(usage));
        let Some(largest) = largest.filter(|usage| usage.id != requesting.id && bytes(usage) > 0) else { return false };
        largest.is_shed.store(true, Relaxed);
        self.closing.fetch_add(1, Relaxed);
        largest.shed.notify_one();
        self.shed.add(1);
        true
    }
}

/// A connection's entry in the budget, until it is dropped.
pub struct Registration(pub Arc<Usage>);

impl Drop for Registration {
    fn drop(&mut self) {
        self.0.budget.usages().remove(&self.0.id);
        if self.0.is_shed.load(Relaxed) {
            self.0.budget.closing.fetch_sub(1, Relaxed);
        }
    }
}

/// The bytes held for one connection.
#[derive(Debug)]
pub struct Usage {
    id: u64,
    budget: Arc<Budget>,
    /// The client, as gRPC writes its address, or `unix:uid=1000`.
    pub peer: OnceLock<String>,
    is_authenticated: AtomicBool,
    /// Bytes of unsent replies, and those reserved for replies to come.
    reply_bytes: AtomicUsize,
    /// The reserved bytes alone.
    reserved: AtomicUsize,
    incomplete: AtomicUsize,
    /// Bytes of replies sent within the peer's flow-control windows.
    sent: AtomicU64,
    /// When a byte of a reply was last sent, or a message completed while others were not, in ns.
    progress_at: AtomicU64,
    is_shed: AtomicBool,
    capacity: Notify,
    /// Notified when the connection must be closed.
    pub shed: Notify,
    /// Decompresses the messages of a connection in sequence, so that they delay only each other.
    decompression: Arc<Semaphore>,
}

impl Usage {
    /// A token or client certificate was presented on this connection.
    pub fn set_authenticated(&self) {
        self.is_authenticated.store(true, Relaxed);
    }

    pub fn is_authenticated(&self) -> bool {
        self.is_authenticated.load(Relaxed)
    }

    pub fn peer(&self) -> &str {
        self.peer.get().map_or("", String::as_str)
    }

    /// Bytes of replies that the peer has not read.
    pub fn unsent(&self) -> usize {
        self.reply_bytes().saturating_sub(self.reserved.load(Relaxed))
    }

    fn reply_bytes(&self) -> usize {
        self.reply_bytes.load(Relaxed)
    }

    pub fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    pub fn record_sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Relaxed);
        self.progress_at.store(self.budget.now(), Relaxed);
    }

    pub fn record_message(&self) {
        if self.incomplete.load(Relaxed) > 0 {
            self.progress_at.store(self.budget.now(), Relaxed);
        }
    }

    /// Waits for the connection's turn to decompress, and then for the process's.
    pub async fn wait_to_decompress(&self) -> Result<[OwnedSemaphorePermit; 2], AcquireError> {
        let of_connection = self.decompression.clone().acquire_owned().await?;
        Ok([of_connection, self.budget.decompression.clone().acquire_owned().await?])
    }

    /// Whether a call whose reply takes so many bytes may start.
    pub fn has_capacity(&self, bytes: usize) -> bool {
        let used = self.reply_bytes();
        let max = if bytes <= SMALL_REPLY { CONNECTION_SMALL_REPLIES } else { CONNECTION_REPLIES };
        used == 0 || used + bytes.min(CONNECTION_REPLIES / 2) <= max
    }

    /// Waits until `has_capacity`.
    pub async fn wait_for_capacity(&self, bytes: usize) {
        loop {
            let mut notified = std::pin::pin!(self.capacity.notified());
            notified.as_mut().enable();
            if self.has_capacity(bytes) {
                return;
            }
            notified.await;
        }
    }

    /// Enforces the process's limit on replies.
    pub fn check_replies(&self) -> Result<(), Status> {
        let is_over = self.budget.reply_bytes.load(Relaxed) > PROCESS_REPLIES;
        if is_over && self.reply_bytes() > 0 && !self.budget.shed_largest(self, Self::reply_bytes) {
            return Err(Status::new(RESOURCE_EXHAUSTED, "replies: too many are not read; read those on the way first"));
        }
        Ok(())
    }

    pub fn add_reply_bytes(&self, bytes: usize) {
        self.budget.reply_bytes.fetch_add(bytes, Relaxed);
        self.reply_bytes.fetch_add(bytes, Relaxed);
    }

    pub fn remove_reply_bytes(&self, bytes: usize) {
        self.budget.reply_bytes.fetch_sub(bytes, Relaxed);
        let before = self.reply_bytes.fetch_sub(bytes, Relaxed);
        let falls_below = |level| before > level && before - bytes <= level;
        if falls_below(CONNECTION_REPLIES / 2) || falls_below(CONNECTION_SMALL_REPLIES - CONNECTION_REPLIES) {
            self.capacity.notify_waiters();
        }
    }

    pub fn add_reserved(&self, bytes: usize) {
        self.reserved.fetch_add(bytes, Relaxed);
    }

    pub fn remove_reserved(&self, bytes: usize) {
        self.reserved.fetch_sub(bytes, Relaxed);
    }

    pub fn add_incomplete(&self, bytes: usize, is_authenticated: bool) {
        self.budget.incomplete(is_authenticated).fetch_add(bytes, Relaxed);
        self.incomplete.fetch_add(bytes, Relaxed);
    }

    pub fn remove_incomplete(&self, bytes: usize, is_authenticated: bool) {
        self.budget.incomplete(is_authenticated).fetch_sub(bytes, Relaxed);
        self.incomplete.fetch_sub(bytes, Relaxed);
    }

    /// Enforces the process's limit on incomplete messages. Only unauthenticated connections are closed for the lower
    /// limit that is theirs.
    pub fn check_incomplete(&self, is_authenticated: bool) -> Result<(), Status> {
        let max = if is_authenticated { self.budget.max_incomplete } else { UNAUTHENTICATED_INCOMPLETE };
        let is_over = self.budget.incomplete(is_authenticated).load(Relaxed) > max;
        let bytes = |usage: &Self| {
            let is_exempt = !is_authenticated && usage.is_authenticated();
            if is_exempt {
                0
            } else {
                usage.incomplete.load(Relaxed)
            }
        };
        if is_over && !self.budget.shed_largest(self, bytes) {
            return Err(Status::new(RESOURCE_EXHAUSTED, "message: too many are not whole; send those begun first"));
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "budget_tests.rs"]
mod tests;
