//! The class `Server` that Python starts and stops, and `Handshake`.

use std::net::TcpListener;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use tokio::sync::watch;

use crate::auth::TokenDigests;
use crate::budget::Budget;
use crate::drain::Phase;
use crate::inference::{ModelSpec, PIXELS};
use crate::limits::Limits;
use crate::message::{Message, Span};
use crate::metrics::{ConnectionMetrics, ModelMetrics, RpcMetrics};
use crate::metrics_export::{export_closed, export_model, export_rejected, export_rpc, take_statistics};
use crate::model_version::ModelVersion;
use crate::python_host::PythonHost;
use crate::queue::{BatchQueue, Entry};
use crate::responder::Responder;
use crate::route::{Route, RpcKind};
use crate::runner::Runner;
use crate::server::{listen, run};
use crate::server_state::ServerState;
use crate::swap::Swap;
use crate::tls;

/// The fields of a `_Route` of the native transport's Python side.
#[derive(FromPyObject)]
struct RouteSpec {
    path: String,
    kind: String,
    needs_token: bool,
    max_message_bytes: usize,
    reply_bytes_per_request_byte: usize,
}

impl RouteSpec {
    fn into_route(self, latency_buckets: &[f64]) -> PyResult<Arc<Route>> {
        let Self { path, kind, needs_token, max_message_bytes, reply_bytes_per_request_byte } = self;
        let unknown = || PyValueError::new_err(format!("kind: {kind:?} is unknown; expected a kind of RPC"));
        let kind = RpcKind::from_name(&kind).ok_or_else(unknown)?;
        let metrics = RpcMetrics::new(latency_buckets);
        Ok(Arc::new(Route { path, kind, needs_token, max_message_bytes, reply_bytes_per_request_byte, metrics }))
    }
}

/// The upper bounds of the histograms' buckets, from a dictionary.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct Buckets {
    latency: Vec<f64>,
    inference: Vec<f64>,
    batch_size: Vec<f64>,
    confidence: Vec<f64>,
}

impl Buckets {
    fn model_metrics(&self) -> ModelMetrics {
        ModelMetrics::new(&self.latency, &self.inference, &self.batch_size, &self.confidence)
    }
}

/// A server that is not listening yet.
///
/// `callbacks` is a `PythonCallbacks`. If a route needs a token, its calls are UNAUTHENTICATED until `set_tokens`.
#[pyclass(frozen, module = "digitserve_native")]
pub struct Server {
    state: Arc<ServerState>,
    listeners: Mutex<Vec<TcpListener>>,
}

#[pymethods]
impl Server {
    #[new]
    #[pyo3(signature = (callbacks, routes, *, model, model_name, model_version, limits, max_queued_images,
                        inline_images, buckets, health_services))]
    #[allow(clippy::too_many_arguments, clippy::needless_pass_by_value)] // keywords, converted from Python
    fn new(
        callbacks: Py<PyAny>,
        routes: Vec<RouteSpec>,
        model: Py<PyAny>,
        model_name: String,
        model_version: String,
        limits: Limits,
        max_queued_images: usize,
        inline_images: usize,
        buckets: Buckets,
        health_services: Vec<String>,
    ) -> PyResult<Self> {
        let ordered_routes = routes.into_iter().map(|route| route.into_route(&buckets.latency));
        let ordered_routes = ordered_routes.collect::<PyResult<Vec<_>>>()?;
        let spec = ModelSpec { name: model_name, version: model_version, max_batch_size: limits.max_batch_size };
        let state = ServerState {
            model: Swap::new(ModelVersion::new(model, spec)),
            tokens: Swap::new(TokenDigests::new()),
            tls: Swap::new(None),
            routes: ordered_routes.iter().map(|route| (route.path.clone(), route.clone())).collect(),
            ordered_routes,
            queue: BatchQueue::new(max_queued_images, limits.max_batch_size, inline_images),
            model_metrics: buckets.model_metrics(),
            connection_metrics: ConnectionMetrics::default(),
            budget: Budget::new(limits.max_message_bytes),
            host: Arc::new(PythonHost::new(callbacks)),
            limits,
            phase: watch::channel(Phase::Serving).0,
            is_healthy: watch::channel(false).0,
            health_services,
        };
        Ok(Self { state: Arc::new(state), listeners: Mutex::default() })
    }

    /// Listens on a host and port; returns the port. `OSError` if it cannot.
    fn listen(&self, host: &str, port: u16) -> PyResult<u16> {
        let (listeners, port) = listen(host, port).map_err(|error| PyOSError::new_err(error.to_string()))?;
        *self.listeners.lock().unwrap_or_else(PoisonError::into_inner) = listeners;
        Ok(port)
    }

    /// Serves on this thread until a drain has ended.
    fn run(&self, py: Python<'_>) -> PyResult<()> {
        let listeners = std::mem::take(&mut *self.listeners.lock().unwrap_or_else(PoisonError::into_inner));
        let state = self.state.clone();
        py.detach(|| {
            let runner = Runner::new(state.clone())?;
            run(state, runner, listeners).map_err(|error| PyRuntimeError::new_err(error.to_string()))
        })
    }

    /// Runs large batches on this thread until `close`.
    fn run_large_batches(&self, py: Python<'_>) -> PyResult<()> {
        let state = self.state.clone();
        py.detach(|| {
            let mut runner = Runner::new(state.clone())?;
            while let Some(batch) = state.queue.large_batch(&state.model_metrics) {
                runner.run(batch);
            }
            Ok(())
        })
    }

    /// Replaces the model for requests that arrive from now on. Earlier ones are answered by the previous model.
    fn set_model(&self, model: Py<PyAny>, name: String, version: String) {
        let spec = ModelSpec { name, version, max_batch_size: self.state.limits.max_batch_size };
        self.state.model.store(ModelVersion::new(model, spec));
    }

    /// Replaces the valid tokens, as SHA-256 digests.
    fn set_tokens(&self, digests: TokenDigests) {
        self.state.tokens.store(digests);
    }

    /// Replaces the TLS configuration of new connections, from PEM; `ValueError` if it cannot be used.
    fn set_tls(&self, chain: &[u8], key: &[u8], client_ca: Option<&[u8]>) -> PyResult<()> {
        let config = tls::server_config(chain, key, client_ca).map_err(PyValueError::new_err)?;
        self.state.tls.store(Some(Arc::new(config).into()));
        Ok(())
    }

    /// Queues n x 784 bytes for a Python handler, with its deadline in seconds. `pending` is a `PendingPrediction`.
    fn submit(&self, pixels: &[u8], remaining: Option<f64>, pending: Py<PyAny>) {
        let now = Instant::now();
        let remaining = remaining.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let entry = Entry {
            message: Message::from(Bytes::copy_from_slice(pixels)),
            pixels: Span { start: 0, len: pixels.len() },
            images: pixels.len() / PIXELS,
            enqueued_at: now,
            deadline: remaining.and_then(|remaining| now.checked_add(remaining)),
            model: self.state.model.load(),
            responder: Responder::Python(pending),
        };
        self.state.queue.push(entry, &self.state.model_metrics);
    }

    /// Sets the health of all services to SERVING or `NOT_SERVING`.
    fn set_serving(&self, is_serving: bool) {
        self.state.is_healthy.send_replace(is_serving);
    }

    /// Stops accepting connections and calls; `run` returns after the last call, or after `grace` seconds.
    fn drain(&self, grace: f64) {
        self.state.phase.send_replace(Phase::draining_for(grace));
    }

    /// Lets `run_large_batches` return once the queue is empty.
    fn close(&self) {
        self.state.queue.close();
    }

    /// The metrics of each RPC, in the order of the routes.
    fn rpc_metrics<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        self.state.ordered_routes.iter().map(|route| export_rpc(py, &route.metrics)).collect()
    }

    fn model_metrics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        export_model(py, &self.state.model_metrics, self.state.queue.queued_images())
    }

    /// Connections that ended before a call, by reason.
    fn rejected_connections<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        export_rejected(py, &self.state.connection_metrics)
    }

    /// Connections closed because of what they made the server hold, by reason.
    fn closed_connections<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        export_closed(py, &self.state.connection_metrics, self.state.budget.shed_connections())
    }

    /// The statistics that the current model has gained since the last call.
    fn take_statistics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        take_statistics(py, &self.state.model.load().statistics)
    }
}

/// The server's side of one TLS handshake, to verify a certificate before it takes effect.
#[pyclass(module = "digitserve_native")]
pub struct Handshake(tls::Handshake);

#[pymethods]
impl Handshake {
    /// `ValueError` if the certificate or key cannot be used.
    #[new]
    fn new(chain: &[u8], key: &[u8]) -> PyResult<Self> {
        tls::Handshake::new(chain, key).map(Self).map_err(PyValueError::new_err)
    }

    /// Returns the bytes to send to the client after these were received; `OSError` if the handshake fails.
    fn process(&mut self, received: &[u8]) -> PyResult<Vec<u8>> {
        self.0.process(received).map_err(|error| PyOSError::new_err(error.to_string()))
    }
}
