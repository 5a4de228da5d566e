//! Metrics and statistics as Python dictionaries.

use std::sync::PoisonError;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::histogram::{Counter, Histogram};
use crate::inference::CLASSES;
use crate::metrics::{ConnectionMetrics, Exemplars, ModelMetrics, RpcMetrics, Statistics};
use crate::status::CODES;

/// The series of one RPC, of which each I/O thread has its part.
pub fn export_rpc<'py>(py: Python<'py>, parts: &[&RpcMetrics]) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    // Read before `started`, so that their difference is never negative.
    dict.set_item("handling", Histogram::read_all(parts.iter().map(|part| &part.handling)))?;
    dict.set_item("started", sum(parts, |part| &part.started))?;
    dict.set_item("messages_received", sum(parts, |part| &part.messages_received))?;
    dict.set_item("messages_sent", sum(parts, |part| &part.messages_sent))?;
    dict.set_item("handled", (0..CODES).map(|code| sum(parts, |part| &part.handled[code])).collect::<Vec<_>>())?;
    // A copy: Python must not be called with a lock held.
    let exemplars = Exemplars::latest(parts);
    let by_code: Vec<_> = exemplars.by_code.iter().map(|(code, (id, now))| (*code, id, *now)).collect();
    dict.set_item("exemplars_by_code", by_code)?;
    let by_bucket: Vec<_> =
        exemplars.by_bucket.iter().map(|(bucket, (id, ns, now))| (*bucket, id, *ns, *now)).collect();
    dict.set_item("exemplars_by_bucket", by_bucket)?;
    Ok(dict)
}

/// The series of the model, of which each I/O thread has its part.
pub fn export_model<'py>(
    py: Python<'py>,
    parts: &[&ModelMetrics],
    queued_images: usize,
) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("inference", Histogram::read_all(parts.iter().map(|part| &part.inference)))?;
    dict.set_item("queue", Histogram::read_all(parts.iter().map(|part| &part.queue)))?;
    dict.set_item("batch_size", Histogram::read_all(parts.iter().map(|part| &part.batch_size)))?;
    dict.set_item("confidence", Histogram::read_all(parts.iter().map(|part| &part.confidence)))?;
    dict.set_item("unsure", sum(parts, |part| &part.unsure))?;
    dict.set_item("last_inference_ms", parts.iter().map(|part| part.last_inference_ms.get()).max())?;
    dict.set_item("digits", (0..CLASSES).map(|digit| sum(parts, |part| &part.digits[digit])).collect::<Vec<_>>())?;
    dict.set_item("cancelled", sum(parts, |part| &part.cancelled))?;
    dict.set_item("deadline", sum(parts, |part| &part.deadline_exceeded))?;
    dict.set_item("overloaded", sum(parts, |part| &part.overloaded))?;
    dict.set_item("unauthenticated", sum(parts, |part| &part.unauthenticated))?;
    dict.set_item("queued_images", queued_images)?;
    Ok(dict)
}

fn sum<T>(parts: &[&T], counter: impl Fn(&T) -> &Counter) -> u64 {
    parts.iter().map(|part| counter(part).get()).sum()
}

/// Connections that ended before a call, by reason.
pub fn export_rejected<'py>(py: Python<'py>, metrics: &ConnectionMetrics) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("full", metrics.full.get())?;
    dict.set_item("handshake", metrics.handshake.get())?;
    Ok(dict)
}

/// Connections closed because of their memory in the server, by reason.
pub fn export_closed<'py>(
    py: Python<'py>,
    metrics: &ConnectionMetrics,
    shed_connections: u64,
) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("unread", metrics.unread.get())?;
    dict.set_item("memory", shed_connections)?;
    Ok(dict)
}

/// Moves the counts since the last call: durations as (count, ns), and batches by size.
pub fn take_statistics<'py>(py: Python<'py>, statistics: &Statistics) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (name, total) in [
        ("success", &statistics.success),
        ("fail", &statistics.fail),
        ("queue", &statistics.queue),
        ("compute_input", &statistics.compute_input),
        ("compute_infer", &statistics.compute_infer),
        ("compute_output", &statistics.compute_output),
    ] {
        dict.set_item(name, total.take())?;
    }
    let batches = std::mem::take(&mut *statistics.batches.lock().unwrap_or_else(PoisonError::into_inner));
    dict.set_item("batches", batches)?;
    dict.set_item("last_inference_ms", statistics.last_inference_ms.get())?;
    Ok(dict)
}
