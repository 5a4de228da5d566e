//! The destination of a queued request's result: a unary call, a stream, or a Python handler's prediction.

use std::task::{Context, Waker};
use std::time::Instant;

use bytes::BytesMut;
use h2::server::SendResponse;
use pyo3::prelude::*;
use tokio::sync::oneshot;

use crate::call::Call;
use crate::call_error::{CallError, CallResult};
use crate::charges::ReplyBuf;
use crate::encode::encode_reply;
use crate::inference::{Predictions, ResponseFormat, Rows};
use crate::metrics::{nanos, Statistics};
use crate::model_version::ModelVersion;
use crate::response::{send_trailers_only, send_unary};

/// Sends the result of one queued request.
pub enum Responder {
    Unary {
        respond: SendResponse<ReplyBuf>,
        call: Call,
        format: ResponseFormat,
        received_at: Instant,
    },
    Stream {
        sender: oneshot::Sender<CallResult>,
        format: ResponseFormat,
        received_at: Instant,
    },
    /// A `PendingPrediction` of the native transport.
    Python(Py<PyAny>),
}

/// The result of a run: its arrays, and the Python object if a Python handler needs it.
pub struct BatchOutput {
    pub predictions: Predictions,
    pub object: Option<Py<PyAny>>,
}

impl Responder {
    /// Whether the client has cancelled.
    pub fn is_cancelled(&mut self) -> bool {
        match self {
            Self::Unary { respond, .. } => respond.poll_reset(&mut Context::from_waker(Waker::noop())).is_ready(),
            Self::Stream { sender, .. } => sender.is_closed(),
            Self::Python(_) => false,
        }
    }

    pub fn needs_hidden_layers(&self) -> bool {
        match self {
            Self::Unary { format, .. } | Self::Stream { format, .. } => format.needs_hidden_layers(),
            Self::Python(_) => true,
        }
    }

    /// Sends these rows of the output. All requests of a batch encode into the one `buffer`.
    pub fn send(self, model: &ModelVersion, output: &BatchOutput, rows: Rows, buffer: &mut BytesMut) {
        let encoding_at = Instant::now();
        let ModelVersion { spec, statistics, .. } = model;
        match self {
            Self::Unary { respond, call, format, received_at } => {
                encode_reply(buffer, &format, &output.predictions, rows, spec);
                record_success(statistics, received_at, encoding_at);
                call.route.metrics.messages_sent.add(1);
                let reply = ReplyBuf::new(buffer.split().freeze(), call.usage.clone());
                send_unary(respond, reply, call.succeed());
            }
            Self::Stream { sender, format, received_at } => {
                encode_reply(buffer, &format, &output.predictions, rows, spec);
                record_success(statistics, received_at, encoding_at);
                drop(sender.send(Ok(buffer.split().freeze())));
            }
            Self::Python(pending) => Python::attach(|py| complete(&pending, py, output, rows)),
        }
    }

    pub fn fail(self, error: CallError, statistics: &Statistics) {
        match self {
            Self::Unary { respond, call, received_at, .. } => {
                statistics.fail.add(nanos(received_at.elapsed()), 1);
                send_trailers_only(respond, call.fail(&error));
            }
            Self::Stream { sender, received_at, .. } => {
                statistics.fail.add(nanos(received_at.elapsed()), 1);
                drop(sender.send(Err(error)));
            }
            Self::Python(pending) => Python::attach(|py| fail(&pending, py, error)),
        }
    }
}

fn complete(pending: &Py<PyAny>, py: Python<'_>, output: &BatchOutput, rows: Rows) {
    let object = output.object.as_ref().map(|object| object.bind(py));
    let rows = object.map(|object| object.call_method1("rows", (rows.first, rows.first + rows.images)));
    print_error(
        py,
        match rows.transpose() {
            Ok(rows) => pending.call_method1(py, "complete", (rows,)),
            Err(error) => pending.call_method1(py, "fail", (error.into_value(py).into_any(),)),
        },
    );
}

fn fail(pending: &Py<PyAny>, py: Python<'_>, error: CallError) {
    print_error(
        py,
        match error {
            CallError::Exception(error) => pending.call_method1(py, "fail", (error,)),
            CallError::Overloaded { queued_images, max_queued_images, retry_after } => {
                pending.call_method1(py, "fail_overloaded", (queued_images, max_queued_images, retry_after))
            }
            // A queued request of Python's has no other error.
            CallError::DeadlineExceeded
            | CallError::ServerStopping
            | CallError::MalformedMessage
            | CallError::Unauthenticated(_) => pending.call_method0(py, "fail_deadline_exceeded"),
        },
    );
}

/// An exception in a callback cannot be raised.
fn print_error(py: Python<'_>, result: PyResult<Py<PyAny>>) {
    if let Err(error) = result {
        error.print(py);
    }
}

fn record_success(statistics: &Statistics, received_at: Instant, encoding_at: Instant) {
    let now = Instant::now();
    statistics.compute_output.add(nanos(now - encoding_at), 1);
    statistics.success.add(nanos(now - received_at), 1);
}
