//! One run of the model: a batch becomes one bytes object, Python predicts, the arrays are read, each caller answered.

use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;
use pyo3::buffer::{Element, PyBuffer};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};

use crate::asked::{Predictions, Rows, PIXELS};
use crate::core::Core;
use crate::counts::nanos;
use crate::line::Item;
use crate::reply::{Found, Trouble};

/// Answers every caller of the batch, or fails every one.
pub fn run(core: &Arc<Core>, batch: Vec<Item>) {
    if batch.is_empty() {
        return;
    }
    match predict(core, &batch) {
        Ok(found) => answer(core, batch, &found),
        Err(error) => Python::attach(|py| {
            let error = Trouble::Failed(error.into_value(py).into_any());
            for item in batch {
                item.reply.fail(error.duplicate(py), &core.model);
            }
        }),
    }
}

fn answer(core: &Arc<Core>, batch: Vec<Item>, found: &Found) {
    let mut out = BytesMut::with_capacity(batch.len() * 64);
    let mut first = 0;
    for item in batch {
        let rows = Rows { first, images: item.images };
        first += item.images;
        item.reply.answer(core, found, rows, &mut out);
    }
}

fn predict(core: &Arc<Core>, batch: &[Item]) -> PyResult<Found> {
    let images: usize = batch.iter().map(|item| item.images).sum();
    let hidden = batch.iter().any(|item| item.reply.needs_hidden());
    let for_python = batch.iter().any(|item| matches!(item.reply, crate::reply::Reply::Python(_)));
    Python::attach(|py| {
        let pixels = gathered(py, batch, images)?;
        let began = Instant::now();
        let object = core.host.predict(pixels)?;
        let took = began.elapsed();
        let predictions = read(object.cast::<PyTuple>()?, images, hidden)?;
        core.model.ran(&predictions, batch.len(), took);
        core.line.took(nanos(took), images);
        Ok(Found { predictions, object: for_python.then(|| object.unbind()) })
    })
}

/// The pixels of all, one image after the other: their one copy, from the frames that brought them.
fn gathered<'py>(py: Python<'py>, batch: &[Item], images: usize) -> PyResult<Bound<'py, PyBytes>> {
    PyBytes::new_with(py, images * PIXELS, |mut out| {
        for item in batch {
            let (mine, rest) = out.split_at_mut(item.span.len);
            item.message.copy(item.span, mine);
            out = rest;
        }
        Ok(())
    })
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
