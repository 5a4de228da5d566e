//! The runs of the model that are in progress without Python, for its watchdog.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

/// One slot for each thread that runs the model: the number of its run, 0 between runs.
#[derive(Debug, Default)]
pub struct ActiveRuns {
    slots: Mutex<Vec<Arc<AtomicU64>>>,
    last: AtomicU64,
}

impl ActiveRuns {
    /// A slot for another thread.
    pub fn register(&self) -> Arc<AtomicU64> {
        let slot = Arc::default();
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&slot));
        slot
    }

    /// Calls `run` with its number in the slot. A panic leaves it there, and the thread ends.
    pub fn observe<T>(&self, slot: &AtomicU64, run: impl FnOnce() -> T) -> T {
        slot.store(self.last.fetch_add(1, Relaxed) + 1, Relaxed);
        let result = run();
        slot.store(0, Relaxed);
        result
    }

    /// The numbers of the runs in progress. Each run has another.
    pub fn numbers(&self) -> Vec<u64> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.iter().map(|slot| slot.load(Relaxed)).filter(|number| *number > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_has_a_number_of_its_own_while_it_is_in_progress() {
        let runs = ActiveRuns::default();
        let slots = [runs.register(), runs.register()];
        let first = runs.observe(&slots[0], || runs.numbers());
        let both = runs.observe(&slots[0], || runs.observe(&slots[1], || runs.numbers()));
        assert_eq!((first, both, runs.numbers()), (vec![1], vec![2, 3], vec![]));
    }
}
