//! The model that serves, which may change while it does: whoever came under one is answered by it.

use std::sync::{Arc, PoisonError};

use pyo3::prelude::*;

use crate::decode::Serves;
use crate::metrics::Statistics;
use crate::sync::RwLock;

/// What may be replaced while others use it: they go on with what they got.
#[derive(Debug)]
pub struct Current<T>(RwLock<Arc<T>>);

impl<T> Current<T> {
    pub fn new(first: T) -> Self {
        Self(RwLock::new(Arc::new(first)))
    }

    pub fn get(&self) -> Arc<T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set(&self, next: T) {
        let next = Arc::new(next);
        let before = std::mem::replace(&mut *self.0.write().unwrap_or_else(PoisonError::into_inner), next);
        drop(before); // with the lock free again, for that may take long
    }
}

/// A model and the counts of what it ran. Every request holds the one that it came under, and the last lets it go.
#[derive(Debug)]
pub struct Served {
    pub serves: Serves,
    pub statistics: Statistics,
    model: Option<Py<PyAny>>,
}

impl Served {
    pub fn new(model: Py<PyAny>, serves: Serves) -> Self {
        Self { serves, statistics: Statistics::default(), model: Some(model) }
    }

    /// The model as Python has it.
    pub fn model(&self) -> Option<&Py<PyAny>> {
        self.model.as_ref()
    }
}

impl Drop for Served {
    /// Frees the model now. By itself Python would hear of it when it is next called, which may be much later.
    fn drop(&mut self) {
        let model = self.model.take();
        Python::attach(|_| drop(model));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_replaced_lives_as_long_as_somebody_uses_it() {
        let current = Current::new(vec![1]);
        let first = current.get();
        let weak = Arc::downgrade(&first);
        current.set(vec![2]);
        assert_eq!((&*first, &*current.get()), (&vec![1], &vec![2]));
        drop(first);
        assert!(weak.upgrade().is_none());
    }
}
