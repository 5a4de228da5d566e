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
use crate::encode::{encode_reply, put_values};
use crate::inference::{OutputTensor, Predictions, ResponseFormat, Rows};
use crate::metrics::{nanos, Statistics};
use crate::model_version::ModelVersion;
use crate::region_error::RegionError;
use crate::regions::RegionSlice;
use crate::response::{send_trailers_only, send_unary};

/// Sends the result of one queued request.
pub enum Responder {
    Unary {
        respond: SendResponse<ReplyBuf>,
        call: Call,
        reply: Reply,
    },
    Stream {
        sender: oneshot::Sender<CallResult>,
        reply: Reply,
    },
    /// A `PendingPrediction` of the native transport.
    Python(Py<PyAny>),
}

/// The reply to one request, except for its predictions.
pub struct Reply {
    pub format: ResponseFormat,
    /// The outputs that go into shared memory.
    pub placed: Vec<(OutputTensor, RegionSlice)>,
    pub received_at: Instant,
}

impl Reply {
    /// Writes the outputs into shared memory, and the reply into `out`.
    fn write(
        &self,
        model: &ModelVersion,
        predictions: &Predictions,
        rows: Rows,
        out: &mut BytesMut,
    ) -> Result<(), RegionError> {
        let encoding_at = Instant::now();
        for (output, slice) in &self.placed {
            put_values(out, *output, predictions, rows);
            let written = slice.write(out);
            out.clear();
            written?;
        }
        encode_reply(out, &self.format, predictions, rows, &model.spec);
        record_success(&model.statistics, self.received_at, encoding_at);
        Ok(())
    }
}

/// The result of a run: its arrays, and the Python object if a Python handler needs it.
#[derive(Default)]
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
            Self::Unary { reply, .. } | Self::Stream { reply, .. } => reply.format.needs_hidden_layers(),
            Self::Python(_) => true,
        }
    }

    /// Sends these rows of the output. All requests of a batch encode into the one `buffer`.
    pub fn send(self, model: &ModelVersion, output: &BatchOutput, rows: Rows, buffer: &mut BytesMut) {
        let written = match &self {
            Self::Unary { reply, .. } | Self::Stream { reply, .. } => {
                reply.write(model, &output.predictions, rows, buffer)
            }
            Self::Python(_) => Ok(()),
        };
        if let Err(error) = written {
            return self.fail(CallError::Region(error), &model.statistics);
        }
        match self {
            Self::Unary { respond, call, .. } => {
                call.route.metrics.messages_sent.add(1);
                let reply = ReplyBuf::new(buffer.split().freeze(), call.usage.clone());
                send_unary(respond, reply, call.succeed());
            }
            Self::Stream { sender, .. } => drop(sender.send(Ok(buffer.split().freeze()))),
            Self::Python(pending) => Python::attach(|py| complete(&pending, py, output, rows)),
        }
    }

    pub fn fail(self, error: CallError, statistics: &Statistics) {
        match self {
            Self::Unary { respond, call, reply } => {
                statistics.fail.add(nanos(reply.received_at.elapsed()), 1);
                send_trailers_only(respond, call.fail(&error));
            }
            Self::Stream { sender, reply } => {
                statistics.fail.add(nanos(reply.received_at.elapsed()), 1);
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
            | CallError::Region(_)
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
