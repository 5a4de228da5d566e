//! Synchronization primitives and the queue's clock. `model-check/` replaces this module with loom's primitives.

pub use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
pub use std::sync::{Condvar, Mutex, MutexGuard, RwLock};
use std::time::{Duration, Instant};

pub use tokio::sync::Notify;

/// How long the I/O thread polls before it sleeps, if the last request came as soon and was alone.
pub const BUSY_POLL: Duration = Duration::from_micros(100);

#[inline]
pub fn now() -> Instant {
    Instant::now()
}
