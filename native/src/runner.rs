//! One run of the model: gathers a batch in an array, calls Python to predict, reads its arrays, sends the replies.

use std::sync::atomic::AtomicU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use pyo3::buffer::{Element, PyBuffer};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::call_error::CallError;
use crate::float_batch::{FloatBatch, Unread};
use crate::inference::{to_digit, Predictions, Rows, CLASSES, HIDDEN, PIXELS};
use crate::lane::Entry;
use crate::metrics::nanos;
use crate::model_version::ModelVersion;
use crate::responder::{BatchOutput, Responder};
use crate::server_state::ServerState;
use crate::session::Session;

/// Bytes of a reply for one image, to size the buffer of a batch.
const REPLY_BYTES: usize = 64;

/// Runs batches on one thread, with an array of its own, (max batch, 784) uint8.
///
/// The array is reused: a new one for every large batch would cost page faults and zeroing.
pub struct Runner {
    state: Arc<ServerState>,
    array: Py<PyAny>,
    pixels: PyBuffer<u8>,
    floats: FloatBatch,
    /// For the watchdog: its number in `ActiveRuns`.
    active_run: Arc<AtomicU64>,
}

impl Runner {
    pub fn new(state: Arc<ServerState>) -> PyResult<Self> {
        Python::attach(|py| {
            let array = state.host.allocate_batch(py, state.limits.max_batch_size)?;
            let pixels = PyBuffer::get(&array)?;
            if pixels.readonly() {
                return Err(PyValueError::new_err("batch array: read-only; expected a writable array"));
            }
            let active_run = state.active_runs.register();
            Ok(Self { state, array: array.unbind(), pixels, floats: FloatBatch::new(), active_run })
        })
    }

    /// Answers every request of the batch, or fails every one.
    pub fn run(&mut self, mut batch: Vec<Entry>) {
        if batch.is_empty() {
            return;
        }
        match self.predict(&mut batch) {
            Ok(output) => send_replies(batch, &output),
            Err(error) => Python::attach(|py| {
                let error = CallError::Exception(error.into_value(py).into_any());
                for entry in batch {
                    entry.fail(error.clone_ref(py));
                }
            }),
        }
    }

    /// Fails and removes the requests that cannot be read.
    fn predict(&mut self, batch: &mut Vec<Entry>) -> PyResult<BatchOutput> {
        let model = batch[0].model.clone();
        let images: usize = batch.iter().map(|entry| entry.images).sum();
        let needs_hidden_layers = batch.iter().any(|entry| entry.responder.needs_hidden_layers());
        let needs_object = batch.iter().any(|entry| matches!(entry.responder, Responder::Python(_)));
        let Run { output, duration, unread } = match model.session() {
            Some(session) if !needs_object => self.predict_natively(session, batch, images, needs_hidden_layers)?,
            _ => self.predict_by_python(&model, batch, needs_hidden_layers, needs_object)?,
        };
        for (at, error) in unread.into_iter().rev() {
            batch.remove(at).fail(CallError::Region(error));
        }
        let images = output.predictions.digits.len();
        if images > 0 {
            self.state.model_metrics.record_run(&output.predictions, duration);
            model.statistics.record_run(images, batch.len(), duration);
            self.state.queue.record_run(nanos(duration), images);
        }
        Ok(output)
    }

    fn predict_natively(
        &mut self,
        session: &Session,
        batch: &[Entry],
        images: usize,
        needs_hidden_layers: bool,
    ) -> PyResult<Run> {
        let started_at = Instant::now();
        let Self { state, floats, active_run, .. } = self;
        let run = || floats.predict(session, batch, images, needs_hidden_layers);
        let (predictions, unread) = state.active_runs.observe(active_run, run).map_err(PyRuntimeError::new_err)?;
        let output = BatchOutput { predictions, object: None };
        Ok(Run { output, duration: started_at.elapsed(), unread })
    }

    fn predict_by_python(
        &mut self,
        model: &ModelVersion,
        batch: &[Entry],
        needs_hidden_layers: bool,
        needs_object: bool,
    ) -> PyResult<Run> {
        Python::attach(|py| {
            let (images, unread) = self.gather(py, batch)?;
            if images == 0 {
                return Ok(Run { unread, ..Run::default() });
            }
            let started_at = Instant::now();
            let object = self.state.host.predict(model.model(), self.array.bind(py), images)?;
            let duration = started_at.elapsed();
            let predictions = read_predictions(object.cast::<PyTuple>()?, images, needs_hidden_layers)?;
            let output = BatchOutput { predictions, object: needs_object.then(|| object.unbind()) };
            Ok(Run { output, duration, unread })
        })
    }

    /// Copies the pixels of all requests into the array: their only copy, from the frames that carried them or from shared
    /// memory. Returns the number of images, and the requests that are not among them.
    fn gather(&mut self, _attached: Python<'_>, batch: &[Entry]) -> PyResult<(usize, Vec<Unread>)> {
        let array = self.pixels.as_slice_ptr();
        let mut array = array.ok_or_else(|| PyValueError::new_err("batch array: expected C-contiguous uint8"))?;
        // SAFETY: the array is writable (checked in `new`), and it does not move while `self.pixels` exports it. It was
        // made for this runner, which is borrowed mutably here. Python reads it only within `predict`, which is not
        // running now. This thread is attached to the interpreter, so no other thread reads or writes it meanwhile.
        #[allow(unsafe_code)]
        let free = unsafe { array.as_mut() };
        let (mut images, mut unread) = (0, Vec::new());
        for (at, entry) in batch.iter().enumerate() {
            let own = free.get_mut(images * PIXELS..(images + entry.images) * PIXELS);
            let own = own.ok_or_else(|| PyValueError::new_err("batch: larger than max_batch_size"))?;
            match entry.pixels.copy_to(own) {
                Ok(()) => images += entry.images,
                Err(error) => unread.push((at, error)),
            }
        }
        Ok((images, unread))
    }
}

/// The result of a run, which has rows for all requests of the batch but the unread ones.
#[derive(Default)]
struct Run {
    output: BatchOutput,
    duration: Duration,
    unread: Vec<Unread>,
}

fn send_replies(batch: Vec<Entry>, output: &BatchOutput) {
    let mut buffer = BytesMut::with_capacity(batch.len() * REPLY_BYTES);
    let mut first = 0;
    for entry in batch {
        let rows = Rows { first, images: entry.images };
        first += entry.images;
        entry.responder.send(&entry.model, output, rows, &mut buffer);
    }
}

/// Reads the arrays of `service.model.Predictions`: digit, activations, layer1, layer2.
fn read_predictions(arrays: &Bound<'_, PyTuple>, images: usize, with_hidden_layers: bool) -> PyResult<Predictions> {
    let digits: Vec<i64> = read_array(arrays, 0, images)?;
    let digits = digits.into_iter().map(to_digit).collect::<Option<Vec<u8>>>();
    let digits = digits.ok_or_else(|| PyValueError::new_err("output 0: a digit out of range; expected 0 to 9"))?;
    let activations = read_array(arrays, 1, images * CLASSES)?;
    let mut predictions = Predictions { digits, activations, ..Predictions::default() };
    if with_hidden_layers {
        predictions.layer1 = read_array(arrays, 2, images * HIDDEN)?;
        predictions.layer2 = read_array(arrays, 3, images * HIDDEN)?;
    }
    Ok(predictions)
}

fn read_array<T: Element>(arrays: &Bound<'_, PyTuple>, index: usize, len: usize) -> PyResult<Vec<T>> {
    let values = PyBuffer::<T>::get(&arrays.get_item(index)?)?.to_vec(arrays.py())?;
    if values.len() == len {
        Ok(values)
    } else {
        Err(PyValueError::new_err(format!("output {index}: {} values; expected {len}", values.len())))
    }
}
