//! The open connections of each I/O thread: a new one goes to the thread with the fewest, and all together are limited.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;

use crate::aligned::Aligned;
use crate::sync::AtomicUsize;

pub struct ConnectionSlots {
    /// By I/O thread.
    open: Vec<Aligned<AtomicUsize>>,
    max: usize,
}

/// The place of one connection on an I/O thread, until it is dropped.
pub struct ConnectionSlot {
    slots: Arc<ConnectionSlots>,
    pub io_thread: usize,
}

impl ConnectionSlots {
    pub fn new(io_threads: usize, max: usize) -> Arc<Self> {
        Arc::new(Self { open: (0..io_threads).map(|_| Aligned::default()).collect(), max })
    }

    /// A slot on the thread with the fewest connections; `None` if there are as many as the limit allows.
    ///
    /// One thread accepts all connections, so that none is added between the count and the addition.
    pub fn acquire(self: &Arc<Self>) -> Option<ConnectionSlot> {
        let open = self.open();
        if open.iter().sum::<usize>() >= self.max {
            return None;
        }
        let (io_thread, _) = open.into_iter().enumerate().min_by_key(|(_, open)| *open)?;
        self.open[io_thread].fetch_add(1, Relaxed);
        Some(ConnectionSlot { slots: self.clone(), io_thread })
    }

    /// The open connections of each I/O thread.
    pub fn open(&self) -> Vec<usize> {
        self.open.iter().map(|open| open.load(Relaxed)).collect()
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.slots.open[self.io_thread].fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_goes_to_the_thread_with_the_fewest_and_none_is_beyond_the_limit() {
        let slots = ConnectionSlots::new(3, 7);
        let mut open: Vec<_> = std::iter::from_fn(|| slots.acquire()).collect();
        assert_eq!(slots.open(), [3, 2, 2]);
        open.retain(|slot| slot.io_thread != 1);
        assert_eq!(slots.open(), [3, 0, 2]);
        open.extend(std::iter::from_fn(|| slots.acquire()));
        assert_eq!(slots.open(), [3, 2, 2]);
        drop(open);
        assert_eq!(slots.open(), [0, 0, 0]);
    }
}
