//! A value that can be replaced while it is in use.

use std::sync::{Arc, PoisonError};

use crate::sync::RwLock;

/// A shared value. A reader keeps the value that it loaded; a store affects later loads only.
#[derive(Debug)]
pub struct Swap<T>(RwLock<Arc<T>>);

impl<T> Swap<T> {
    pub fn new(value: T) -> Self {
        Self(RwLock::new(Arc::new(value)))
    }

    pub fn load(&self) -> Arc<T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the previous value: dropping it can take long.
    pub fn replace(&self, value: T) -> Arc<T> {
        let value = Arc::new(value);
        std::mem::replace(&mut *self.0.write().unwrap_or_else(PoisonError::into_inner), value)
    }

    pub fn store(&self, value: T) {
        drop(self.replace(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_value_is_dropped_with_its_last_reader() {
        let swap = Swap::new(vec![1]);
        let first = swap.load();
        let weak = Arc::downgrade(&first);
        swap.store(vec![2]);
        assert_eq!((&*first, &*swap.load()), (&vec![1], &vec![2]));
        drop(first);
        assert!(weak.upgrade().is_none());
    }
}
