//! The class `Session` with which Python loads a model for the runs without it.

use std::path::PathBuf;
use std::sync::Arc;

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;

use crate::inference::{CLASSES, HIDDEN, PIXELS};
use crate::session;
use crate::session::OutputRows;

/// A session of ONNX Runtime on the CPU, for a model whose input `pixels` is float.
#[pyclass(frozen, module = "digitserve_native")]
pub struct Session(pub Arc<session::Session>);

#[pymethods]
impl Session {
    /// `library` is ONNX Runtime's shared library; `ValueError` if it or the model cannot be loaded.
    #[new]
    #[allow(clippy::needless_pass_by_value)] // converted from Python
    fn new(py: Python<'_>, library: PathBuf, graph: &[u8]) -> PyResult<Self> {
        let session = py.detach(|| session::Session::load(&library, graph));
        session.map(Arc::new).map(Self).map_err(PyValueError::new_err)
    }

    /// The version of ONNX Runtime.
    #[getter]
    fn version(&self) -> &str {
        self.0.version()
    }

    /// Runs an array of pixels, (n, 784) float32; returns digits, activations and the hidden layers, row by row.
    #[allow(clippy::type_complexity)] // a tuple for Python
    fn run(&self, pixels: &Bound<'_, PyAny>) -> PyResult<(Vec<i64>, Vec<f32>, Vec<f32>, Vec<f32>)> {
        let pixels = PyBuffer::<f32>::get(pixels)?.to_vec(pixels.py())?;
        let images = pixels.len() / PIXELS;
        let (mut digits, mut activations) = (vec![0; images], vec![0.0; images * CLASSES]);
        let (mut layer1, mut layer2) = (vec![0.0; images * HIDDEN], vec![0.0; images * HIDDEN]);
        let hidden_layers = Some([&mut *layer1, &mut *layer2]);
        let outputs = OutputRows { digits: &mut digits, activations: &mut activations, hidden_layers };
        self.0.run(&pixels, outputs).map_err(PyRuntimeError::new_err)?;
        Ok((digits, activations, layer1, layer2))
    }
}
