//! What peers may have the server hold: bytes of messages that are not whole, and of replies that are not read.
//!
//! A connection that has reached its bound is read no further until its peer reads. Where all connections together
//! have, the one that holds most is ended, for a peer that reads what it asked for holds next to nothing.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use tokio::sync::Semaphore;

use crate::metrics::{nanos, Counter};
use crate::status::{Refusal, RESOURCE_EXHAUSTED};
use crate::sync::{now, AtomicBool, AtomicU64, AtomicUsize, Mutex, MutexGuard, Notify};

/// Bytes of replies that one connection may have unread before its next call with a large one waits.
const CONNECTION_HELD: usize = 8 << 20;
/// Before any call waits: the clients of one proxy share a connection, and small replies are not to wait for another's.
const CONNECTION_FULL: usize = 3 * CONNECTION_HELD;
/// A reply up to this is small.
const SMALL_REPLY: usize = 32 << 10;
const PROCESS_HELD: usize = 96 << 20;
/// Bytes of messages that are not whole; or of four of the largest, where that is more.
const PROCESS_UNFINISHED: usize = 160 << 20;
/// The same for connections on which no token was shown, where one is needed.
const STRANGERS_UNFINISHED: usize = 16 << 20;
/// What a call that waits for its message takes besides its bytes.
pub const CALL: usize = 4 << 10;
/// Beyond this without a byte read or a message whole, a connection counts for so many times what it holds.
const STUCK: Duration = Duration::from_secs(1);
const STUCK_WEIGHT: usize = 16;

/// Of the whole process.
#[derive(Debug)]
pub struct Budget {
    held: AtomicUsize,
    unfinished: AtomicUsize,
    strangers: AtomicUsize,
    most_unfinished: usize,
    usages: Mutex<BTreeMap<u64, Arc<Usage>>>,
    next: AtomicU64,
    began: Instant,
    /// Connections that are to end and have not yet: no other is told to meanwhile.
    ending: AtomicUsize,
    /// Connections ended because they held most when the process had reached its bound.
    pub shed: Counter,
}

impl Budget {
    pub fn new(largest_message: usize) -> Arc<Self> {
        Arc::new(Self {
            held: AtomicUsize::new(0),
            unfinished: AtomicUsize::new(0),
            strangers: AtomicUsize::new(0),
            most_unfinished: PROCESS_UNFINISHED.max(4 * largest_message),
            usages: Mutex::default(),
            next: AtomicU64::new(0),
            began: now(),
            ending: AtomicUsize::new(0),
            shed: Counter::default(),
        })
    }

    /// A new connection's share; `Opened` gives it back.
    pub fn open(self: &Arc<Self>, is_known: bool) -> Opened {
        let usage = Arc::new(Usage {
            id: self.next.fetch_add(1, Relaxed),
            budget: self.clone(),
            is_known: AtomicBool::new(is_known),
            held: AtomicUsize::new(0),
            reserved: AtomicUsize::new(0),
            unfinished: AtomicUsize::new(0),
            sent: AtomicU64::new(0),
            moved: AtomicU64::new(self.now()),
            is_shed: AtomicBool::new(false),
            room: Notify::new(),
            shed: Notify::new(),
            inflating: Semaphore::new(1),
        });
        self.usages().insert(usage.id, usage.clone());
        Opened(usage)
    }

    fn usages(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Usage>>> {
        self.usages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> u64 {
        nanos(now() - self.began)
    }

    /// Ends the connection that holds most by `held`; false where that is the one that asks.
    fn shed(&self, asking: &Usage, held: impl Fn(&Usage) -> usize) -> bool {
        let usages = self.usages();
        if self.ending.load(Relaxed) > 0 {
            return true;
        }
        let now = self.now();
        let weight = |usage: &Usage| {
            let is_stuck = u128::from(now.saturating_sub(usage.moved.load(Relaxed))) > STUCK.as_nanos();
            held(usage) * if is_stuck { STUCK_WEIGHT } else { 1 }
        };
        let most = usages.values().filter(|usage| !usage.is_shed.load(Relaxed)).max_by_key(|usage| weight(usage));
        let Some(most) = most.filter(|most| most.id != asking.id && held(most) > 0) else { return false };
        most.is_shed.store(true, Relaxed);
        self.ending.fetch_add(1, Relaxed);
        most.shed.notify_one();
        self.shed.add(1);
        true
    }
}

/// A connection's share, until it ends.
pub struct Opened(pub Arc<Usage>);

impl Drop for Opened {
    fn drop(&mut self) {
        self.0.budget.usages().remove(&self.0.id);
        if self.0.is_shed.load(Relaxed) {
            self.0.budget.ending.fetch_sub(1, Relaxed);
        }
    }
}

/// Of one connection.
#[derive(Debug)]
pub struct Usage {
    id: u64,
    budget: Arc<Budget>,
    is_known: AtomicBool,
    /// Bytes of replies that are not sent, and room kept for those to come.
    held: AtomicUsize,
    /// The latter alone.
    reserved: AtomicUsize,
    unfinished: AtomicUsize,
    /// Bytes of replies that the peer's windows let out.
    sent: AtomicU64,
    /// When a byte of a reply was last sent, or a message became whole while others were not; in ns.
    moved: AtomicU64,
    is_shed: AtomicBool,
    room: Notify,
    /// The connection is to end.
    pub shed: Notify,
    /// One message of a connection at a time: whoever sends many waits for himself.
    pub inflating: Semaphore,
}

impl Usage {
    /// A token was shown on it.
    pub fn know(&self) {
        self.is_known.store(true, Relaxed);
    }

    /// Bytes of replies that the peer could read.
    pub fn unsent(&self) -> usize {
        self.held().saturating_sub(self.reserved.load(Relaxed))
    }

    fn held(&self) -> usize {
        self.held.load(Relaxed)
    }

    pub fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    pub fn send(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Relaxed);
        self.moved.store(self.budget.now(), Relaxed);
    }

    /// A message has become whole.
    pub fn whole(&self) {
        if self.unfinished.load(Relaxed) > 0 {
            self.moved.store(self.budget.now(), Relaxed);
        }
    }

    /// Whether a call may begin whose reply takes so many bytes.
    pub fn has_room(&self, bytes: usize) -> bool {
        let held = self.held();
        let most = if bytes <= SMALL_REPLY { CONNECTION_FULL } else { CONNECTION_HELD };
        held == 0 || held + bytes.min(CONNECTION_HELD / 2) <= most
    }

    /// Waits until it may.
    pub async fn room(&self, bytes: usize) {
        loop {
            let mut notified = std::pin::pin!(self.room.notified());
            notified.as_mut().enable();
            if self.has_room(bytes) {
                return;
            }
            notified.await;
        }
    }

    /// Sees to it that all connections together stay within their bound.
    pub fn check(&self) -> Result<(), Refusal> {
        let is_over = self.budget.held.load(Relaxed) > PROCESS_HELD;
        if is_over && self.held() > 0 && !self.budget.shed(self, Self::held) {
            return Err(Refusal::bare(
                RESOURCE_EXHAUSTED,
                "replies: too many are not read; read those on the way first",
            ));
        }
        Ok(())
    }

    fn hold(&self, bytes: usize) {
        self.budget.held.fetch_add(bytes, Relaxed);
        self.held.fetch_add(bytes, Relaxed);
    }

    fn release(&self, bytes: usize) {
        self.budget.held.fetch_sub(bytes, Relaxed);
        let before = self.held.fetch_sub(bytes, Relaxed);
        let falls_below = |level| before > level && before - bytes <= level;
        if falls_below(CONNECTION_HELD / 2) || falls_below(CONNECTION_FULL - CONNECTION_HELD) {
            self.room.notify_waiters();
        }
    }
}

/// Bytes of replies that are ready and unread, until it is dropped.
#[derive(Debug)]
pub struct Hold {
    usage: Arc<Usage>,
    bytes: usize,
}

impl Hold {
    pub fn new(usage: Arc<Usage>, bytes: usize) -> Self {
        usage.hold(bytes);
        Self { usage, bytes }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.usage.release(self.bytes);
    }
}

/// Room kept for replies to come, until it is dropped.
#[derive(Debug)]
pub struct Reserved {
    usage: Arc<Usage>,
    bytes: usize,
}

impl Reserved {
    pub fn new(usage: Arc<Usage>, bytes: usize) -> Self {
        let mut reserved = Self { usage, bytes: 0 };
        reserved.set(bytes);
        reserved
    }

    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn set(&mut self, bytes: usize) {
        if bytes > self.bytes {
            self.usage.hold(bytes - self.bytes);
            self.usage.reserved.fetch_add(bytes - self.bytes, Relaxed);
        } else {
            self.usage.reserved.fetch_sub(self.bytes - bytes, Relaxed);
            self.usage.release(self.bytes - bytes);
        }
        self.bytes = bytes;
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// A reply on its way: h2 lets go of it once it is sent, or never will be.
#[derive(Debug)]
pub struct Unsent {
    bytes: Bytes,
    _hold: Hold,
}

impl Unsent {
    pub fn new(bytes: Bytes, usage: Arc<Usage>) -> Self {
        let hold = Hold::new(usage, bytes.len());
        Self { bytes, _hold: hold }
    }
}

impl Buf for Unsent {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, cnt: usize) {
        self.bytes.advance(cnt);
    }

    fn copy_to_bytes(&mut self, len: usize) -> Bytes {
        self.bytes.copy_to_bytes(len)
    }
}

/// Bytes of a call whose message is not whole, until it is dropped.
pub struct Unfinished {
    pub usage: Arc<Usage>,
    bytes: usize,
    /// Counted as a stranger's; a token may be shown on the connection meanwhile.
    as_stranger: bool,
}

impl Unfinished {
    pub fn new(usage: Arc<Usage>) -> Self {
        let as_stranger = !usage.is_known.load(Relaxed);
        Self { usage, bytes: 0, as_stranger }
    }

    fn total(&self) -> &AtomicUsize {
        if self.as_stranger {
            &self.usage.budget.strangers
        } else {
            &self.usage.budget.unfinished
        }
    }

    /// So many from now on; a refusal where that is more than there is room for.
    pub fn set(&mut self, bytes: usize) -> Result<(), Refusal> {
        if bytes == self.bytes {
            return Ok(());
        }
        let more = bytes.saturating_sub(self.bytes);
        self.total().fetch_add(more, Relaxed);
        self.usage.unfinished.fetch_add(more, Relaxed);
        self.give_back(self.bytes.saturating_sub(bytes));
        self.bytes = bytes;
        if more == 0 {
            return Ok(());
        }
        let most = if self.as_stranger { STRANGERS_UNFINISHED } else { self.usage.budget.most_unfinished };
        let is_over = self.total().load(Relaxed) > most;
        let held = |usage: &Usage| {
            let is_spared = self.as_stranger && usage.is_known.load(Relaxed);
            if is_spared {
                0
            } else {
                usage.unfinished.load(Relaxed)
            }
        };
        if is_over && !self.usage.budget.shed(&self.usage, held) {
            return Err(Refusal::bare(RESOURCE_EXHAUSTED, "message: too many are not whole; send those begun first"));
        }
        Ok(())
    }

    fn give_back(&self, bytes: usize) {
        if bytes > 0 {
            self.total().fetch_sub(bytes, Relaxed);
            self.usage.unfinished.fetch_sub(bytes, Relaxed);
        }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        self.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: usize = 1 << 20;

    fn shed(opened: &Opened) -> bool {
        opened.0.is_shed.load(Relaxed)
    }

    #[test]
    fn what_is_held_is_given_back_whatever_becomes_of_it() {
        let budget = Budget::new(1000);
        let opened = budget.open(true);
        let mut reserved = Reserved::new(opened.0.clone(), 5 * MB);
        reserved.set(7 * MB);
        assert!(opened.0.has_room(MB) && !opened.0.has_room(2 * MB));
        let mut unsent = Unsent::new(Bytes::from_static(b"reply"), opened.0.clone());
        assert_eq!((opened.0.unsent(), budget.held.load(Relaxed)), (5, 7 * MB + 5));
        drop(reserved);
        assert_eq!(&unsent.copy_to_bytes(5)[..], b"reply");
        assert_eq!((opened.0.unsent(), budget.held.load(Relaxed)), (5, 5));
        drop(unsent);
        assert_eq!((opened.0.unsent(), budget.held.load(Relaxed)), (0, 0));
        let mut unfinished = Unfinished::new(opened.0.clone());
        unfinished.set(900).unwrap();
        unfinished.set(400).unwrap();
        assert_eq!(budget.unfinished.load(Relaxed), 400);
        drop(unfinished);
        assert_eq!(budget.unfinished.load(Relaxed), 0);
        drop(opened);
        assert!(budget.usages().is_empty());
    }

    #[test]
    fn a_reply_larger_than_the_bound_may_be_asked_for_where_nothing_else_is_on_its_way() {
        let opened = Budget::new(1000).open(true);
        assert!(opened.0.has_room(100 * MB));
        let _held = Hold::new(opened.0.clone(), 9 * MB);
        assert!(opened.0.has_room(SMALL_REPLY) && !opened.0.has_room(SMALL_REPLY + 1));
        let _more = Hold::new(opened.0.clone(), 15 * MB);
        assert!(!opened.0.has_room(1));
    }

    #[test]
    fn where_all_hold_too_much_the_one_that_holds_most_is_ended() {
        let budget = Budget::new(1000);
        let (small, large) = (budget.open(true), budget.open(true));
        let _held = [(&small, 7), (&large, 95)].map(|(opened, mb)| Hold::new(opened.0.clone(), mb * MB));
        let nothing = budget.open(true);
        assert!(nothing.0.check().is_ok() && !shed(&large)); // it holds nothing itself
        assert!(small.0.check().is_ok());
        assert!(shed(&large) && !shed(&small));
        assert!(small.0.check().is_ok() && !shed(&small)); // it is on its way out
        drop(large);
        assert_eq!(small.0.check().unwrap_err().code, RESOURCE_EXHAUSTED); // now it is the one
    }

    #[test]
    fn strangers_have_a_small_bound_of_their_own_and_end_each_other_alone() {
        let budget = Budget::new(1000);
        let (known, stranger, other) = (budget.open(true), budget.open(false), budget.open(false));
        let [mut a, mut b, mut c] = [&known, &stranger, &other].map(|opened| Unfinished::new(opened.0.clone()));
        b.set(STRANGERS_UNFINISHED).unwrap();
        a.set(10 * STRANGERS_UNFINISHED).unwrap();
        c.set(CALL).unwrap(); // one that holds little is served
        assert_eq!([&known, &stranger, &other].map(shed), [false, true, false]);
        drop((b, c, stranger));
        other.0.know();
        Unfinished::new(other.0.clone()).set(MB).unwrap(); // of the known now, whose bound is reached
        assert_eq!([&known, &other].map(shed), [true, false]);
    }
}
