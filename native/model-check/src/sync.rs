//! Loom's primitives, and a clock that stands still, in the place of `../src/sync.rs`.

use std::cell::Cell;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::OnceLock;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

pub use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
pub use loom::sync::{Condvar, Mutex, MutexGuard, RwLock};

static BEGAN: OnceLock<Instant> = OnceLock::new();

thread_local! {
    // Loom's threads share one of the system's.
    static PASSED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

pub fn now() -> Instant {
    *BEGAN.get_or_init(Instant::now) + PASSED.get()
}

pub fn set_clock(passed: Duration) {
    PASSED.set(passed);
}

/// As `tokio::sync::Notify`, but that `notify_waiters` wakes those alone who have been polled or enabled.
#[derive(Debug, Default)]
pub struct Notify(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    has_permit: bool,
    next: u64,
    line: VecDeque<Waiter>,
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
        let mut waiting = self.0.lock().unwrap();
        let Some(first) = waiting.line.iter_mut().find(|waiter| !waiter.is_notified) else {
            waiting.has_permit = true;
            return;
        };
        first.is_notified = true;
        let waker = first.waker.take();
        drop(waiting);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub fn notify_waiters(&self) {
        let mut wakers = Vec::new();
        for waiter in &mut self.0.lock().unwrap().line {
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
        self.get_mut().look(None)
    }

    fn look(&mut self, waker: Option<Waker>) -> bool {
        let mut waiting = self.notify.0.lock().unwrap();
        if let Some(id) = self.id {
            let place = waiting.line.iter().position(|waiter| waiter.id == id).expect("it is in line");
            if waiting.line[place].is_notified {
                waiting.line.remove(place);
                self.id = None;
                return true;
            }
            waiting.line[place].waker = waker;
        } else if std::mem::take(&mut waiting.has_permit) {
            return true;
        } else {
            waiting.next += 1;
            let id = waiting.next;
            waiting.line.push_back(Waiter { id, waker, is_notified: false });
            self.id = Some(id);
        }
        false
    }
}

impl Future for Notified<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.get_mut().look(Some(cx.waker().clone())) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

impl Drop for Notified<'_> {
    fn drop(&mut self) {
        let Some(id) = self.id else { return };
        if let Ok(mut waiting) = self.notify.0.lock() {
            waiting.line.retain(|waiter| waiter.id != id);
        }
    }
}
