//! The primitives by which threads meet, and the clock that the line goes by: `model-check/` puts its own in their place,
//! with which it tries the schedules that there are.

pub use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
pub use std::sync::{Condvar, Mutex, MutexGuard, RwLock};
use std::time::Instant;

pub use tokio::sync::Notify;

#[inline]
pub fn now() -> Instant {
    Instant::now()
}
