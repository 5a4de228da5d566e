//! Metrics and statistics as Python dictionaries.

use std::sync::PoisonError;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::metrics::{ConnectionMetrics, Counter, ModelMetrics, RpcMetrics, Statistics};

pub fn export_rpc<'py>(py: Python<'py>, metrics: &RpcMetrics) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    // Read before `started`, so that their difference is never negative.
    dict.set_item("handling", metrics.handling.read())?;
    dict.set_item("started", metrics.started.get())?;
    dict.set_item("messages_received", metrics.messages_received.get())?;
    dict.set_item("messages_sent", metrics.messages_sent.get())?;
    dict.set_item("handled", metrics.handled.each_ref().map(Counter::get).to_vec())?;
    // A copy: Python must not be called with the lock held.
    let exemplars = metrics.exemplars.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let by_code: Vec<_> = exemplars.by_code.iter().map(|(code, (id, now))| (*code, id, *now)).collect();
    dict.set_item("exemplars_by_code", by_code)?;
    let by_bucket: Vec<_> =
        exemplars.by_bucket.iter().map(|(bucket, (id, ns, now))| (*bucket, id, *ns, *now)).collect();
    dict.set_item("exemplars_by_bucket", by_bucket)?;
    Ok(dict)
}

pub fn export_model<'py>(
    py: Python<'py>,
    metrics: &ModelMetrics,
    queued_images: usize,
) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("inference", metrics.inference.read())?;
    dict.set_item("queue", metrics.queue.read())?;
    dict.set_item("batch_size", metrics.batch_size.read())?;
    dict.set_item("confidence", metrics.confidence.read())?;
    dict.set_item("unsure", metrics.unsure.get())?;
    dict.set_item("last_inference_ms", metrics.last_inference_ms.get())?;
    dict.set_item("digits", metrics.digits.each_ref().map(Counter::get).to_vec())?;
    dict.set_item("cancelled", metrics.cancelled.get())?;
    dict.set_item("deadline", metrics.deadline_exceeded.get())?;
    dict.set_item("overloaded", metrics.overloaded.get())?;
    dict.set_item("unauthenticated", metrics.unauthenticated.get())?;
    dict.set_item("queued_images", queued_images)?;
    Ok(dict)
}

/// Connections that ended before a call, by reason.
pub fn export_rejected<'py>(py: Python<'py>, metrics: &ConnectionMetrics) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("full", metrics.full.get())?;
    dict.set_item("handshake", metrics.handshake.get())?;
    Ok(dict)
}

/// Connections closed because of what they made the server hold, by reason.
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

/// Moves what was counted since the last call: durations as (count, ns), and batches by size.
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
