//! The native transport of digitserve: HTTP/2, decoding, checks, admission, batching and encoding outside the
//! interpreter. Python is asked once a batch for the predictions, and for every message that is not plainly a request
//! for some; it says what each refusal says, and gives the counts their names.

mod auth;
mod body;
mod budget;
mod call;
mod connection;
mod decode;
mod decompression;
mod framing;
mod health;
mod inline;
mod io;
mod metrics;
mod model_version;
mod protobuf;
mod queue;
mod responder;
mod runner;
mod server;
mod server_state;
mod status;
mod stream;
mod sync;

use std::collections::HashMap;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use tokio::sync::watch;

use crate::decode::Serves;
use crate::model_version::{Current, Served};
use crate::protobuf::{Message, Span};
use crate::queue::Item;
use crate::responder::Reply;
use crate::server_state::{Core, Host, Kind, Limits, Phase, Route};

/// A server that is bound to nothing yet.
///
/// `host` is asked for predictions and refusals, `routes` are (path, kind, whether it needs a token, the largest
/// message, bytes by which a reply may grow with each byte of its request) of each RPC. Where one needs a token, nobody
/// is let in before the first `set_tokens`.
#[pyclass(frozen, module = "digitserve_native")]
struct Server {
    core: Arc<Core>,
    listeners: Mutex<Vec<TcpListener>>,
}

#[pymethods]
impl Server {
    #[new]
    #[pyo3(signature = (host, routes, *, model, model_name, model_version, limits, max_queued_images, inline, latency_buckets,
                        inference_buckets, batch_buckets, confidence_buckets, health_names))]
    #[allow(clippy::too_many_arguments, clippy::needless_pass_by_value)] // every one by keyword, as Python has it
    fn new(
        host: Py<PyAny>,
        routes: Vec<(String, String, bool, usize, usize)>,
        model: Py<PyAny>,
        model_name: String,
        model_version: String,
        limits: Limits,
        max_queued_images: usize,
        inline: usize,
        latency_buckets: Vec<f64>,
        inference_buckets: Vec<f64>,
        batch_buckets: Vec<f64>,
        confidence_buckets: Vec<f64>,
        health_names: Vec<String>,
    ) -> PyResult<Self> {
        let ordered = routes
            .into_iter()
            .map(|(path, kind, needs_token, largest_message, reply_per_byte)| {
                let (kind, counts) = (named(&kind)?, metrics::Rpc::new(&latency_buckets));
                Ok(Arc::new(Route { path, kind, needs_token, largest_message, reply_per_byte, counts }))
            })
            .collect::<PyResult<Vec<Arc<Route>>>>()?;
        let routes: HashMap<_, _> = ordered.iter().map(|route| (route.path.clone(), route.clone())).collect();
        let serves = Serves { name: model_name, version: model_version, max_batch_size: limits.max_batch_size };
        let core = Core {
            served: Current::new(Served::new(model, serves)),
            tokens: Current::new(auth::Digests::new()),
            tls: Current::new(None),
            routes,
            ordered,
            line: queue::Line::new(max_queued_images, limits.max_batch_size, inline),
            model: metrics::Model::new(&latency_buckets, &inference_buckets, &batch_buckets, &confidence_buckets),
            refused: metrics::Refused::default(),
            budget: budget::Budget::new(limits.message),
            host: Host::new(host),
            limits,
            phase: watch::channel(Phase::Serving).0,
            healthy: watch::channel(false).0,
            health_names,
        };
        Ok(Self { core: Arc::new(core), listeners: Mutex::default() })
    }

    /// Binds and listens; the port.
    fn listen(&self, host: &str, port: u16) -> PyResult<u16> {
        let (listeners, port) = server::listen(host, port).map_err(|error| PyOSError::new_err(error.to_string()))?;
        *self.listeners.lock().unwrap_or_else(PoisonError::into_inner) = listeners;
        Ok(port)
    }

    /// Serves on this thread until a drain is over.
    fn run(&self, py: Python<'_>) -> PyResult<()> {
        let listeners = std::mem::take(&mut *self.listeners.lock().unwrap_or_else(PoisonError::into_inner));
        let core = self.core.clone();
        py.detach(|| {
            let runner = runner::Runner::new(core.clone())?;
            server::run(core, runner, listeners).map_err(|error| PyRuntimeError::new_err(error.to_string()))
        })
    }

    /// Lets another model answer whoever comes from now on; those who are here are answered by the one before.
    fn set_model(&self, model: Py<PyAny>, name: String, version: String) {
        let serves = Serves { name, version, max_batch_size: self.core.limits.max_batch_size };
        self.core.served.set(Served::new(model, serves));
    }

    /// Lets in calls whose token has one of these SHA-256 digests.
    fn set_tokens(&self, digests: auth::Digests) {
        self.core.tokens.set(digests);
    }

    /// Gives connections that begin from now on TLS with these, in PEM; `ValueError` where they cannot be used.
    fn set_tls(&self, chain: &[u8], key: &[u8], client_ca: Option<&[u8]>) -> PyResult<()> {
        let config = auth::tls(chain, key, client_ca).map_err(PyValueError::new_err)?;
        self.core.tls.set(Some(Arc::new(config).into()));
        Ok(())
    }

    /// Runs large batches on this thread until `close`.
    fn run_model(&self, py: Python<'_>) -> PyResult<()> {
        let core = self.core.clone();
        py.detach(|| {
            let mut runner = runner::Runner::new(core.clone())?;
            while let Some(batch) = core.line.large_batch(&core.model) {
                runner.run(batch);
            }
            Ok(())
        })
    }

    /// Puts n x 784 bytes in line on a Python caller's behalf, who has so many seconds; `callback` hears of the end.
    fn submit(&self, pixels: &[u8], remaining: Option<f64>, callback: Py<PyAny>) {
        let now = Instant::now();
        let remaining = remaining.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let item = Item {
            message: Message::from(Bytes::copy_from_slice(pixels)),
            span: Span { start: 0, len: pixels.len() },
            images: pixels.len() / decode::PIXELS,
            since: now,
            deadline: remaining.and_then(|remaining| now.checked_add(remaining)),
            served: self.core.served.get(),
            reply: Reply::Python(callback),
        };
        self.core.line.push(item, &self.core.model);
    }

    /// Says SERVING, or not, to those who ask for health and to those who watch it.
    fn set_healthy(&self, healthy: bool) {
        self.core.healthy.send_replace(healthy);
    }

    /// Takes no new connections and calls, ends idle streams; `run` returns after the last call, or after the grace.
    fn drain(&self, grace: f64) {
        self.core.phase.send_replace(Phase::Draining(server::until(grace)));
    }

    /// Lets the threads of `run_model` end once nobody waits.
    fn close(&self) {
        self.core.line.close();
    }

    /// Each RPC's counts, in the order of the routes.
    fn rpcs<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        self.core
            .ordered
            .iter()
            .map(|route| {
                let (counts, dict) = (&route.counts, PyDict::new(py));
                // Read before those begun, so that their difference is never negative.
                dict.set_item("handling", counts.handling.read())?;
                dict.set_item("started", counts.started.get())?;
                dict.set_item("received", counts.received.get())?;
                dict.set_item("sent", counts.sent.get())?;
                dict.set_item("handled", counts.handled.each_ref().map(metrics::Counter::get).to_vec())?;
                // A copy: Python must not be asked for anything with the lock held.
                let exemplars = counts.exemplars.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let by_code: Vec<_> = exemplars.by_code.iter().map(|(code, (id, now))| (*code, id, *now)).collect();
                dict.set_item("exemplars_by_code", by_code)?;
                let by_bucket: Vec<_> =
                    exemplars.by_bucket.iter().map(|(bucket, (id, ns, now))| (*bucket, id, *ns, *now)).collect();
                dict.set_item("exemplars_by_bucket", by_bucket)?;
                Ok(dict)
            })
            .collect()
    }

    /// The model's counts.
    fn model<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (counts, dict) = (&self.core.model, PyDict::new(py));
        dict.set_item("inference", counts.inference.read())?;
        dict.set_item("queue", counts.queue.read())?;
        dict.set_item("batch_size", counts.batch_size.read())?;
        dict.set_item("confidence", counts.confidence.read())?;
        dict.set_item("last_inference_ms", counts.last_ms.get())?;
        dict.set_item("digits", counts.digits.each_ref().map(metrics::Counter::get).to_vec())?;
        dict.set_item("cancelled", counts.cancelled.get())?;
        dict.set_item("deadline", counts.late.get())?;
        dict.set_item("overloaded", counts.overloaded.get())?;
        dict.set_item("unauthenticated", counts.unauthenticated.get())?;
        dict.set_item("waiting", self.core.line.images())?;
        Ok(dict)
    }

    /// Connections that ended before there was a call, by reason.
    fn connections_refused<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (refused, dict) = (&self.core.refused, PyDict::new(py));
        dict.set_item("full", refused.full.get())?;
        dict.set_item("handshake", refused.handshake.get())?;
        Ok(dict)
    }

    /// Connections that were ended because of what they had the server hold, by reason.
    fn connections_ended<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        dict.set_item("unread", self.core.refused.unread.get())?;
        dict.set_item("memory", self.core.budget.shed.get())?;
        Ok(dict)
    }

    /// What Triton's statistics of the model that serves gained since this was last asked: each as (count, ns), and
    /// batches by size.
    fn take_statistics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (served, dict) = (self.core.served.get(), PyDict::new(py));
        let counts = &served.statistics;
        for (name, total) in [
            ("success", &counts.success),
            ("fail", &counts.fail),
            ("queue", &counts.queued),
            ("compute_input", &counts.decoded),
            ("compute_infer", &counts.ran),
            ("compute_output", &counts.encoded),
        ] {
            dict.set_item(name, total.take())?;
        }
        let batches = std::mem::take(&mut *counts.batches.lock().unwrap_or_else(PoisonError::into_inner));
        dict.set_item("batches", batches)?;
        dict.set_item("last_inference_ms", counts.last_ms.get())?;
        Ok(dict)
    }
}

fn named(kind: &str) -> PyResult<Kind> {
    Ok(match kind {
        "predict" => Kind::Predict,
        "predict-stream" => Kind::PredictStream,
        "infer" => Kind::Infer,
        "infer-stream" => Kind::InferStream,
        "unary" => Kind::Unary,
        "stream" => Kind::Stream,
        "health-check" => Kind::HealthCheck,
        "health-list" => Kind::HealthList,
        "health-watch" => Kind::HealthWatch,
        _ => return Err(PyValueError::new_err(format!("there is no kind of RPC {kind:?}"))),
    })
}

/// A handshake of TLS with one client, to try a certificate on before it is put in force.
#[pyclass(module = "digitserve_native")]
struct Handshake(auth::Handshake);

#[pymethods]
impl Handshake {
    /// `ValueError` where the files cannot be used.
    #[new]
    fn new(chain: &[u8], key: &[u8]) -> PyResult<Self> {
        auth::Handshake::new(chain, key).map(Self).map_err(PyValueError::new_err)
    }

    /// What goes to the client after these bytes of its; `OSError` where the handshake fails.
    fn answer(&mut self, received: &[u8]) -> PyResult<Vec<u8>> {
        self.0.answer(received).map_err(|error| PyOSError::new_err(error.to_string()))
    }
}

#[pymodule]
fn digitserve_native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<Handshake>()?;
    module.add_class::<Server>()
}
