//! One loaded version of the model.

use std::sync::{Arc, OnceLock};

use pyo3::prelude::*;

use crate::inference::ModelSpec;
use crate::metrics::Statistics;
use crate::session::Session;

/// A model and its statistics on one I/O thread. Every request holds the version that it arrived under, and the last one
/// of all threads frees the model.
#[derive(Debug)]
pub struct ModelVersion {
    pub spec: ModelSpec,
    pub statistics: Statistics,
    model: Option<Py<PyAny>>,
    session: OnceLock<Arc<Session>>,
}

impl ModelVersion {
    pub fn new(model: Py<PyAny>, spec: ModelSpec) -> Self {
        Self { spec, statistics: Statistics::default(), model: Some(model), session: OnceLock::new() }
    }

    /// Runs the model without Python, if there is one.
    pub fn session(&self) -> Option<&Session> {
        self.session.get().map(Arc::as_ref)
    }

    pub fn set_session(&self, session: Arc<Session>) {
        drop(self.session.set(session)); // the first one stays
    }

    /// Whether both have the same Python object: each I/O thread has a `ModelVersion` of its own for it.
    pub fn is_same(&self, other: &Self) -> bool {
        self.model.as_ref().map(Py::as_ptr) == other.model.as_ref().map(Py::as_ptr)
    }

    /// The Python object.
    pub fn model(&self) -> Option<&Py<PyAny>> {
        self.model.as_ref()
    }
}

impl Drop for ModelVersion {
    /// Frees the model now. Without the interpreter, `PyO3` would free it at a later call into Python.
    fn drop(&mut self) {
        let model = self.model.take();
        Python::attach(|_| drop(model));
    }
}
