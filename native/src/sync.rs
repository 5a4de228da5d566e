//! Synchronization primitives and the queue's clock. `model-check/` replaces this module with loom's primitives.

pub use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
pub use std::sync::{Condvar, Mutex, MutexGuard, RwLock};
use std::time::Instant;

pub use tokio::sync::Notify;

#[inline]
pub fn now() -> Instant {
    Instant::now()
}
