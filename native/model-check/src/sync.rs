//! The stand-in of `../src/sync.rs`: loom's primitives, and a clock that stands still.

use std::cell::Cell;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::OnceLock;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

pub use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
pub use loom::sync::{Condvar, Mutex, MutexGuard, RwLock};

/// None: the clock stands still.
pub const BUSY_POLL: Duration = Duration::ZERO;

static EPOCH: OnceLock<Instant> = OnceLock::new();

thread_local! {
    // All of loom's threads run on one thread of the operating system.
    static ELAPSED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

pub fn now() -> Instant {
    *EPOCH.get_or_init(Instant::now) + ELAPSED.get()
}

pub fn set_clock(elapsed: Duration) {
    ELAPSED.set(elapsed);
}

/// As `tokio::sync::Notify`, but `notify_waiters` wakes only waiters that have been polled or enabled.
#[derive(Debug, Default)]
pub struct Notify(Mutex<Waiters>);

#[derive(Debug, Default)]
struct Waiters {
    has_permit: bool,
    next_id: u64,
    queue: VecDeque<Waiter>,
}

#[derive(Debug)]
struct Waiter {
    id: u64,
    waker: Option<Waker>,
    is_notified: bool,
}

impl Notify {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn notify_one(&self) {
        let mut waiters = self.0.lock().unwrap();
        let Some(first) = waiters.queue.iter_mut().find(|waiter| !waiter.is_notified) else {
            waiters.has_permit = true;
            return;
        };
        first.is_notified = true;
        let waker = first.waker.take();
        drop(waiters);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub fn notify_waiters(&self) {
        let mut wakers = Vec::new();
        for waiter in &mut self.0.lock().unwrap().queue {
            waiter.is_notified = true;
            wakers.extend(waiter.waker.take());
        }
        wakers.into_iter().for_each(Waker::wake);
    }

    pub fn notified(&self) -> Notified<'_> {
        Notified { notify: self, id: None }
    }
}

pub struct Notified<'a> {
    notify: &'a Notify,
    id: Option<u64>,
}

impl Notified<'_> {
    pub fn enable(self: Pin<&mut Self>) -> bool {
        self.get_mut().check(None)
    }

    fn check(&mut self, waker: Option<Waker>) -> bool {
        let mut waiters = self.notify.0.lock().unwrap();
        if let Some(id) = self.id {
            let place = waiters.queue.iter().position(|waiter| waiter.id == id).expect("it is queued");
            if waiters.queue[place].is_notified {
                waiters.queue.remove(place);
                self.id = None;
                return true;
            }
            waiters.queue[place].waker = waker;
        } else if std::mem::take(&mut waiters.has_permit) {
            return true;
        } else {
            waiters.next_id += 1;
            let id = waiters.next_id;
            waiters.queue.push_back(Waiter { id, waker, is_notified: false });
            self.id = Some(id);
        }
        false
    }
}

impl Future for Notified<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.get_mut().check(Some(cx.waker().clone())) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

impl Drop for Notified<'_> {
    fn drop(&mut self) {
        let Some(id) = self.id else { return };
        if let Ok(mut waiters) = self.notify.0.lock() {
            waiters.queue.retain(|waiter| waiter.id != id);
        }
    }
}
