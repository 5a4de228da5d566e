//! Where an answer goes: to a unary call, into a stream, or to a Python handler that asked on a caller's behalf.

use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Response};
use pyo3::prelude::*;
use tokio::sync::oneshot;

use crate::auth::Stranger;
use crate::budget::{Unsent, Usage};
use crate::decode::{put_reply, Form, Predictions, Rows};
use crate::metrics::{nanos, Statistics};
use crate::model_version::Served;
use crate::server_state::{Core, Route};
use crate::status::{self, Refusal};

/// Why the model gave no answer; Python makes the sentence.
#[derive(Debug)]
pub enum Trouble {
    Late,
    Overloaded { waiting: usize, max_queued_images: usize, retry_after: f64 },
    Stopping,
    Malformed,
    Stranger(Stranger),
    Failed(Py<PyAny>),
}

impl Trouble {
    pub fn duplicate(&self, py: Python<'_>) -> Self {
        match self {
            Self::Late => Self::Late,
            Self::Stopping => Self::Stopping,
            Self::Malformed => Self::Malformed,
            Self::Stranger(who) => Self::Stranger(*who),
            Self::Overloaded { waiting, max_queued_images, retry_after } => {
                Self::Overloaded { waiting: *waiting, max_queued_images: *max_queued_images, retry_after: *retry_after }
            }
            Self::Failed(error) => Self::Failed(error.clone_ref(py)),
        }
    }
}

pub type Outcome = Result<Bytes, Trouble>;

/// One RPC under way: it is counted as begun now and as ended once, as cancelled where nothing else was said.
pub struct Call {
    pub core: Arc<Core>,
    pub route: Arc<Route>,
    pub usage: Arc<Usage>,
    pub request_id: Option<HeaderValue>,
    pub since: Instant,
    pub deadline: Option<Instant>,
    is_over: bool,
}

impl Call {
    pub fn begin(
        core: Arc<Core>,
        route: Arc<Route>,
        usage: Arc<Usage>,
        request_id: Option<HeaderValue>,
        since: Instant,
        deadline: Option<Instant>,
    ) -> Self {
        route.counts.started.add(1);
        Self { core, route, usage, request_id, since, deadline, is_over: false }
    }

    /// Counts the end; the trailers that say so.
    pub fn succeed(mut self) -> HeaderMap {
        let id = self.request_id.take();
        self.over(status::OK, id.as_ref());
        status::success(id)
    }

    /// Counts the end; the trailers that say so.
    pub fn refuse(mut self, trouble: &Trouble) -> HeaderMap {
        let refusal = self.core.host.refusal(&self.route.path, self.request_id.as_ref(), trouble);
        self.over(refusal.code, refusal.request_id.as_ref());
        refusal.trailers()
    }

    /// As `refuse`, for what a protocol below ours has to say.
    pub fn end(mut self, mut refusal: Refusal) -> HeaderMap {
        refusal.request_id = self.request_id.take();
        self.over(refusal.code, refusal.request_id.as_ref());
        refusal.trailers()
    }

    fn over(&mut self, code: usize, request_id: Option<&HeaderValue>) {
        self.is_over = true;
        self.route.counts.finish(self.since, code, request_id.and_then(|id| id.to_str().ok()));
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.is_over {
            let id = self.request_id.take();
            self.over(status::CANCELLED, id.as_ref());
        }
    }
}

/// The way back of one request for predictions.
pub enum Reply {
    Unary { respond: SendResponse<Unsent>, call: Call, form: Form, arrived: Instant },
    Stream { sender: oneshot::Sender<Outcome>, form: Form, arrived: Instant },
    Python(Py<PyAny>),
}

/// What the batch's run gave: the arrays read, and as Python has them.
pub struct Found {
    pub predictions: Predictions,
    pub object: Option<Py<PyAny>>,
}

impl Reply {
    /// Whether the caller has left.
    pub fn is_gone(&mut self) -> bool {
        match self {
            Self::Unary { respond, .. } => respond.poll_reset(&mut Context::from_waker(Waker::noop())).is_ready(),
            Self::Stream { sender, .. } => sender.is_closed(),
            Self::Python(_) => false,
        }
    }

    pub fn needs_hidden(&self) -> bool {
        match self {
            Self::Unary { form, .. } | Self::Stream { form, .. } => form.hidden(),
            Self::Python(_) => true,
        }
    }

    /// Sends these rows of what was found; `out` is room to write in that a batch shares.
    pub fn answer(self, served: &Served, found: &Found, rows: Rows, out: &mut BytesMut) {
        let began = Instant::now();
        let Served { serves, statistics, .. } = served;
        match self {
            Self::Unary { respond, call, form, arrived } => {
                put_reply(out, &form, &found.predictions, rows, serves);
                count_success(statistics, arrived, began);
                call.route.counts.sent.add(1);
                let reply = Unsent::new(out.split().freeze(), call.usage.clone());
                send(respond, reply, call.succeed());
            }
            Self::Stream { sender, form, arrived } => {
                put_reply(out, &form, &found.predictions, rows, serves);
                count_success(statistics, arrived, began);
                drop(sender.send(Ok(out.split().freeze())));
            }
            Self::Python(callback) => {
                Python::attach(|py| {
                    let object = found.object.as_ref().map(|object| object.bind(py));
                    let rows = object.map(|object| object.call_method1("rows", (rows.first, rows.first + rows.images)));
                    match rows.transpose() {
                        Ok(rows) => call_back(&callback, py, rows, None),
                        Err(error) => call_back(&callback, py, None, Some(error.into_value(py).into_any())),
                    }
                });
            }
        }
    }

    pub fn fail(self, trouble: Trouble, statistics: &Statistics) {
        match self {
            Self::Unary { respond, call, arrived, .. } => {
                statistics.fail.add(nanos(arrived.elapsed()), 1);
                send_end(respond, call.refuse(&trouble));
            }
            Self::Stream { sender, arrived, .. } => {
                statistics.fail.add(nanos(arrived.elapsed()), 1);
                drop(sender.send(Err(trouble)));
            }
            Self::Python(callback) => Python::attach(|py| {
                // The callback knows these two by name; only a failed run has an error of its own.
                match trouble {
                    Trouble::Failed(error) => call_back(&callback, py, None, Some(error)),
                    Trouble::Overloaded { waiting, max_queued_images, retry_after } => {
                        report(py, callback.call_method1(py, "overloaded", (waiting, max_queued_images, retry_after)));
                    }
                    Trouble::Late | Trouble::Stopping | Trouble::Malformed | Trouble::Stranger(_) => {
                        report(py, callback.call_method0(py, "late"));
                    }
                }
            }),
        }
    }
}

fn call_back(callback: &Py<PyAny>, py: Python<'_>, rows: Option<Bound<'_, PyAny>>, error: Option<Py<PyAny>>) {
    report(py, callback.call_method1(py, "done", (rows, error)));
}

/// What goes wrong in a callback has nobody to go to but standard error.
fn report(py: Python<'_>, result: PyResult<Py<PyAny>>) {
    if let Err(error) = result {
        error.print(py);
    }
}

fn count_success(statistics: &Statistics, arrived: Instant, began: Instant) {
    let now = Instant::now();
    statistics.encoded.add(nanos(now - began), 1);
    statistics.success.add(nanos(now - arrived), 1);
}

pub fn head() -> Response<()> {
    let mut response = Response::new(());
    let headers = response.headers_mut();
    headers.reserve(4);
    headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(status::GRPC_ACCEPT_ENCODING, HeaderValue::from_static("identity, deflate, gzip"));
    response
}

/// Head, one message and trailers. An error here means that the caller has left, who needs no answer.
pub fn send(mut respond: SendResponse<Unsent>, message: Unsent, trailers: HeaderMap) {
    if let Ok(mut stream) = respond.send_response(head(), false) {
        drop(stream.send_data(message, false));
        drop(stream.send_trailers(trailers));
    }
}

/// A refusal before any message: trailers alone.
pub fn send_end(mut respond: SendResponse<Unsent>, trailers: HeaderMap) {
    let mut response = head();
    response.headers_mut().extend(trailers);
    drop(respond.send_response(response, true));
}
