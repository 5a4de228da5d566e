//! One run of the model: a batch is gathered in an array, Python predicts, its arrays are read, each caller answered.

use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;
use pyo3::buffer::{Element, PyBuffer};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::decode::{Predictions, Rows};
use crate::metrics::nanos;
use crate::queue::Item;
use crate::responder::{Found, Reply, Trouble};
use crate::server_state::Core;

/// The model as one thread has it: with an array of its own, (max batch, 784) uint8, to gather pixels in.
///
/// It is there for good: a new one for every large batch costs page faults, and zeros that nobody reads.
pub struct Runner {
    core: Arc<Core>,
    array: Py<PyAny>,
    pixels: PyBuffer<u8>,
}

impl Runner {
    pub fn new(core: Arc<Core>) -> PyResult<Self> {
        Python::attach(|py| {
            let array = core.host.array(py, core.limits.max_batch_size)?;
            let pixels = PyBuffer::get(&array)?;
            if pixels.readonly() {
                return Err(PyValueError::new_err("an array to gather pixels in must be writable"));
            }
            Ok(Self { core, array: array.unbind(), pixels })
        })
    }

    /// Answers every caller of the batch, or fails every one.
    pub fn run(&mut self, batch: Vec<Item>) {
        if batch.is_empty() {
            return;
        }
        match self.predict(&batch) {
            Ok(found) => answer(batch, &found),
            Err(error) => Python::attach(|py| {
                let error = Trouble::Failed(error.into_value(py).into_any());
                for item in batch {
                    item.fail(error.duplicate(py));
                }
            }),
        }
    }

    fn predict(&mut self, batch: &[Item]) -> PyResult<Found> {
        let (core, served) = (self.core.clone(), batch[0].served.clone());
        let images: usize = batch.iter().map(|item| item.images).sum();
        let hidden = batch.iter().any(|item| item.reply.needs_hidden());
        let for_python = batch.iter().any(|item| matches!(item.reply, Reply::Python(_)));
        Python::attach(|py| {
            self.gather(py, batch)?;
            let began = Instant::now();
            let object = core.host.predict(served.model(), self.array.bind(py), images)?;
            let took = began.elapsed();
            let predictions = read(object.cast::<PyTuple>()?, images, hidden)?;
            core.model.ran(&predictions, took);
            served.statistics.ran(images, batch.len(), took);
            core.line.took(nanos(took), images);
            Ok(Found { predictions, object: for_python.then(|| object.unbind()) })
        })
    }

    /// The pixels of all, one image after the other: their one copy, from the frames that brought them.
    fn gather(&mut self, _attached: Python<'_>, batch: &[Item]) -> PyResult<()> {
        let mut all = self.pixels.as_slice_ptr().ok_or_else(|| PyValueError::new_err("an array that is not plain"))?;
        // SAFETY: the array is writable (`new` has looked), and it stays where it is while `self.pixels` exports it.
        // It was made for this runner, which is borrowed mutably here; Python sees it within `predict` alone, which
        // is not running now, and this thread is attached, so that nobody else reads or writes it meanwhile.
        #[allow(unsafe_code)]
        let mut room = unsafe { all.as_mut() };
        for item in batch {
            let (mine, rest) = room
                .split_at_mut_checked(item.span.len)
                .ok_or_else(|| PyValueError::new_err("a batch larger than the largest"))?;
            item.message.copy(item.span, mine);
            room = rest;
        }
        Ok(())
    }
}

fn answer(batch: Vec<Item>, found: &Found) {
    let mut out = BytesMut::with_capacity(batch.len() * 64);
    let mut first = 0;
    for item in batch {
        let rows = Rows { first, images: item.images };
        first += item.images;
        item.reply.answer(&item.served, found, rows, &mut out);
    }
}

/// The arrays of `service.model.Predictions`: digit, activations, layer1, layer2.
fn read(arrays: &Bound<'_, PyTuple>, images: usize, hidden: bool) -> PyResult<Predictions> {
    let digits: Vec<i64> = array(arrays, 0, images)?;
    let digits = digits.into_iter().map(|digit| u8::try_from(digit).ok().filter(|digit| *digit < 10));
    let digits = digits.collect::<Option<Vec<u8>>>().ok_or_else(|| PyValueError::new_err("a digit beyond 0..9"))?;
    let mut found = Predictions { digits, activations: array(arrays, 1, images * 10)?, ..Predictions::default() };
    if hidden {
        found.layer1 = array(arrays, 2, images * 16)?;
        found.layer2 = array(arrays, 3, images * 16)?;
    }
    Ok(found)
}

fn array<T: Element>(arrays: &Bound<'_, PyTuple>, index: usize, len: usize) -> PyResult<Vec<T>> {
    let values = PyBuffer::<T>::get(&arrays.get_item(index)?)?.to_vec(arrays.py())?;
    if values.len() == len {
        Ok(values)
    } else {
        Err(PyValueError::new_err(format!("output {index} holds {} values, not {len}", values.len())))
    }
}
