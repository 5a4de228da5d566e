//! What every part of the transport shares: routes, the line, the counts, and the Python side.

use std::collections::HashMap;
use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderValue;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use tokio::sync::{oneshot, watch};
use tokio_rustls::TlsAcceptor;

use crate::auth::{Digests, Stranger};
use crate::budget::Budget;
use crate::metrics;
use crate::model_version::{Current, Served};
use crate::queue::Line;
use crate::responder::{Outcome, Trouble};
use crate::status::{self, Refusal};

/// How an RPC is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Predict,
    PredictStream,
    Infer,
    InferStream,
    /// By a Python handler, message by message.
    Unary,
    Stream,
    HealthCheck,
    HealthList,
    HealthWatch,
}

impl Kind {
    pub const fn is_stream(self) -> bool {
        matches!(self, Self::PredictStream | Self::InferStream | Self::Stream)
    }
}

#[derive(Debug)]
pub struct Route {
    pub path: String,
    pub kind: Kind,
    pub needs_token: bool,
    /// Bytes of a request at most.
    pub largest_message: usize,
    /// Bytes by which a reply of Python's may grow with each byte of its request.
    pub reply_per_byte: usize,
    pub counts: metrics::Rpc,
}

/// Where the server is in its life; each state lasts until the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Serving,
    /// No new connections and calls; what runs may end by then.
    Draining(Instant),
}

/// Waits until a drain has begun.
pub async fn draining(phase: &mut watch::Receiver<Phase>) {
    drop(phase.wait_for(|phase| *phase != Phase::Serving).await);
}

/// `service.transports.limits.Limits`, whose fields these are.
#[derive(FromPyObject)]
pub struct Limits {
    pub max_batch_size: usize,
    pub message: usize,
    pub connections: usize,
    pub streams: u32,
    pub connection_age: Seconds,
    pub connection_idle: Seconds,
    pub headers: usize,
    pub stall: Seconds,
    pub keepalive: Seconds,
    pub keepalive_timeout: Seconds,
    pub ping_interval: Seconds,
}

/// A time that has a bound, unless it is 0.
#[derive(Clone, Copy, Debug, FromPyObject)]
#[pyo3(transparent)]
pub struct Seconds(f64);

impl std::fmt::Display for Seconds {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(to)
    }
}

impl Seconds {
    pub fn bound(self) -> Option<Duration> {
        Duration::try_from_secs_f64(self.0).ok().filter(|time| !time.is_zero())
    }

    pub fn times(self, factor: f64) -> Self {
        Self(self.0 * factor)
    }

    /// Never where there is no bound.
    pub async fn pass(self) {
        match self.bound() {
            Some(time) => tokio::time::sleep(time).await,
            None => pending().await,
        }
    }
}

pub struct Core {
    pub served: Current<Served>,
    pub tokens: Current<Digests>,
    /// Nothing where connections are in plain text.
    pub tls: Current<Option<TlsAcceptor>>,
    pub routes: HashMap<String, Arc<Route>>,
    pub ordered: Vec<Arc<Route>>,
    pub line: Line,
    pub model: metrics::Model,
    pub refused: metrics::Refused,
    pub budget: Arc<Budget>,
    pub host: Host,
    pub limits: Limits,
    pub phase: watch::Sender<Phase>,
    pub healthy: watch::Sender<bool>,
    pub health_names: Vec<String>,
}

impl Core {
    /// Whether callers show a token, for some of the RPCs at least.
    pub fn needs_tokens(&self) -> bool {
        self.ordered.iter().any(|route| route.needs_token)
    }
}

/// The Python side: `service.transports.native.Host`.
pub struct Host(Py<PyAny>);

impl Host {
    pub const fn new(object: Py<PyAny>) -> Self {
        Self(object)
    }

    /// A new array for so many images, (n, 784) uint8.
    pub fn array<'py>(&self, py: Python<'py>, images: usize) -> PyResult<Bound<'py, PyAny>> {
        self.0.bind(py).call_method1(intern!(py, "array"), (images,))
    }

    /// Runs a model on the first images of the array.
    pub fn predict<'py>(
        &self,
        model: Option<&Py<PyAny>>,
        array: &Bound<'py, PyAny>,
        images: usize,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = array.py();
        self.0.bind(py).call_method1(intern!(py, "predict"), (model, array, images))
    }

    /// Tells of a handshake that failed.
    pub fn handshake_failed(&self, peer: &str, reason: &str) {
        Python::attach(|py| {
            if let Err(error) = self.0.call_method1(py, intern!(py, "handshake_failed"), (peer, reason)) {
                error.print(py); // it is counted all the same
            }
        });
    }

    /// Hands a message to the Python handler of that path, or to its alternative; the answer comes later.
    pub fn ask(
        &self,
        path: &str,
        message: &Bytes,
        deadline: Option<Instant>,
        alternative: bool,
    ) -> oneshot::Receiver<Outcome> {
        let (sender, receiver) = oneshot::channel();
        let remaining = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()).as_secs_f64());
        Python::attach(|py| {
            let reply = Answering(Some(sender));
            let message = PyBytes::new(py, message);
            if let Err(error) =
                self.0.call_method1(py, intern!(py, "ask"), (path, message, remaining, alternative, reply))
            {
                error.print(py); // the dropped reply ends the call as a fault of ours
            }
        });
        receiver
    }

    /// What the caller hears of a trouble, logged.
    pub fn refusal(&self, path: &str, request_id: Option<&HeaderValue>, trouble: &Trouble) -> Refusal {
        let id = request_id.and_then(|value| value.to_str().ok());
        Python::attach(|py| {
            let error = self.error(py, trouble)?;
            let found = self.0.call_method1(py, intern!(py, "refuse"), (path, id, error))?;
            let (code, sentence, details, id): (usize, String, Vec<u8>, String) = found.extract(py)?;
            PyResult::Ok(Refusal {
                code: if code < metrics::CODES { code } else { status::INTERNAL },
                sentence,
                details: Bytes::from(details),
                request_id: HeaderValue::try_from(id).ok(),
            })
        })
        .unwrap_or_else(|error| {
            Python::attach(|py| error.print(py));
            Refusal::bare(status::INTERNAL, "internal error")
        })
    }

    /// The sentence of a trouble that the caller may hear of within a stream; nothing where it is a fault of ours.
    pub fn sentence(&self, trouble: &Trouble) -> Option<String> {
        Python::attach(|py| {
            let error = self.error(py, trouble)?;
            self.0.call_method1(py, intern!(py, "sentence"), (error,))?.extract(py)
        })
        .unwrap_or(None)
    }

    fn error(&self, py: Python<'_>, trouble: &Trouble) -> PyResult<Py<PyAny>> {
        match trouble {
            Trouble::Late => self.0.call_method0(py, intern!(py, "late")),
            Trouble::Stopping => self.0.call_method0(py, intern!(py, "stopping")),
            Trouble::Malformed => self.0.call_method0(py, intern!(py, "malformed")),
            Trouble::Stranger(who) => self.0.call_method1(py, intern!(py, "stranger"), (*who == Stranger::Silent,)),
            Trouble::Overloaded { waiting, max_queued_images, retry_after } => {
                self.0.call_method1(py, intern!(py, "overloaded"), (*waiting, *max_queued_images, *retry_after))
            }
            Trouble::Failed(error) => Ok(error.clone_ref(py)),
        }
    }
}

/// Takes a Python handler's answer, once.
#[pyclass]
pub struct Answering(Option<oneshot::Sender<Outcome>>);

#[pymethods]
impl Answering {
    /// The reply's bytes.
    fn answer(&mut self, message: &[u8]) {
        if let Some(sender) = self.0.take() {
            drop(sender.send(Ok(Bytes::copy_from_slice(message))));
        }
    }

    /// The exception that was raised instead.
    fn fail(&mut self, error: Py<PyAny>) {
        if let Some(sender) = self.0.take() {
            drop(sender.send(Err(Trouble::Failed(error))));
        }
    }

    /// Whether nobody waits for the answer any more.
    fn is_gone(&self) -> bool {
        self.0.as_ref().is_none_or(oneshot::Sender::is_closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_no_clock_can_wait_for_has_no_bound() {
        for seconds in [0.0, -0.0, -1.0, f64::NAN, f64::INFINITY, 1e300] {
            assert_eq!(Seconds(seconds).bound(), None, "{seconds}");
        }
        assert_eq!(Seconds(0.5).times(1.1).bound(), Some(Duration::from_millis(550)));
    }
}
