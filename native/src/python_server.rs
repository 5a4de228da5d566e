//! The class `Server` that Python starts and stops, and `Handshake`.

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyDict;
use tokio::sync::mpsc;

use crate::auth::TokenDigests;
use crate::connection_slots::ConnectionSlots;
use crate::inference::{ModelSpec, PIXELS};
use crate::io_threads::{Buckets, DrainOnExit, IoThreads, RouteSpec, ServerParts};
use crate::lane::Entry;
use crate::limits::Limits;
use crate::message::{Message, Span};
use crate::metrics_export::{export_closed, export_model, export_rejected, export_rpc, take_statistics};
use crate::pixels::Pixels;
use crate::python_session::Session;
use crate::queue::BatchQueue;
use crate::regions::Region;
use crate::responder::Responder;
use crate::runner::Runner;
use crate::server::{listen, run, Accepted, Acceptor, BACKLOG};
use crate::socket::{listen_unix, StdListener};
use crate::tls;

/// A server that is not listening yet.
///
/// `callbacks` is a `PythonCallbacks`. If a route needs a token, its calls are UNAUTHENTICATED until `set_tokens`.
#[pyclass(frozen, module = "digitserve_native")]
pub struct Server {
    threads: IoThreads,
    slots: Arc<ConnectionSlots>,
    /// By I/O thread.
    senders: Vec<mpsc::UnboundedSender<Accepted>>,
    /// The parameters of `run`: the accepted connections of each I/O thread, and the sockets that accept them.
    receivers: Mutex<Vec<Option<mpsc::UnboundedReceiver<Accepted>>>>,
    listeners: Mutex<Vec<StdListener>>,
}

#[pymethods]
impl Server {
    #[new]
    #[pyo3(signature = (callbacks, routes, *, model, model_name, model_version, limits, io_threads,
                        max_queued_images, inline_images, buckets, health_services, regions_user))]
    #[allow(clippy::too_many_arguments, clippy::needless_pass_by_value)] // keywords, converted from Python
    fn new(
        py: Python<'_>,
        callbacks: Py<PyAny>,
        routes: Vec<RouteSpec>,
        model: Py<PyAny>,
        model_name: String,
        model_version: String,
        limits: Limits,
        io_threads: NonZeroUsize,
        max_queued_images: usize,
        inline_images: usize,
        buckets: Buckets,
        health_services: Vec<String>,
        regions_user: Option<u32>,
    ) -> PyResult<Self> {
        let max_batch_size = limits.max_batch_size;
        let queue = BatchQueue::new(io_threads.get(), max_queued_images, max_batch_size, inline_images);
        let slots = ConnectionSlots::new(io_threads.get(), limits.connections);
        let spec = ModelSpec { name: model_name, version: model_version, max_batch_size };
        let parts = ServerParts { callbacks, routes, model, spec, limits, buckets, health_services, regions_user };
        let threads = IoThreads::new(py, &parts, io_threads, queue)?;
        let (senders, receivers): (_, Vec<_>) = (0..io_threads.get()).map(|_| mpsc::unbounded_channel()).unzip();
        let receivers = Mutex::new(receivers.into_iter().map(Some).collect());
        Ok(Self { threads, slots, senders, receivers, listeners: Mutex::default() })
    }

    /// Listens on a host and port; returns the port. `OSError` if it cannot.
    fn listen(&self, host: &str, port: u16) -> PyResult<u16> {
        let (listeners, port) = listen(host, port).map_err(|error| PyOSError::new_err(error.to_string()))?;
        *lock(&self.listeners) = listeners;
        Ok(port)
    }

    /// Listens on a Unix domain socket too; `OSError` if it cannot.
    fn listen_unix(&self, path: &str) -> PyResult<()> {
        let listener = listen_unix(path, BACKLOG).map_err(|error| PyOSError::new_err(error.to_string()))?;
        lock(&self.listeners).push(listener);
        Ok(())
    }

    /// Serves on this thread, the I/O thread of that index, until a drain has ended. The first one also accepts.
    fn run(&self, py: Python<'_>, io_thread: usize) -> PyResult<()> {
        let state = self.threads.get(io_thread).clone();
        let accepted = lock(&self.receivers)[io_thread].take();
        let accepted = accepted.ok_or_else(|| PyRuntimeError::new_err("I/O thread: it has run already"))?;
        let acceptor = (io_thread == 0).then(|| Acceptor {
            listeners: std::mem::take(&mut *lock(&self.listeners)),
            slots: self.slots.clone(),
            senders: self.senders.clone(),
        });
        let _drain = DrainOnExit(&self.threads);
        py.detach(|| {
            let runner = Runner::new(state.clone())?;
            run(state, runner, accepted, acceptor).map_err(|error| PyRuntimeError::new_err(error.to_string()))
        })
    }

    /// Runs large batches on this thread until `close`. Their metrics are counted with those of an I/O thread.
    fn run_large_batches(&self, py: Python<'_>, io_thread: usize) -> PyResult<()> {
        let state = self.threads.get(io_thread).clone();
        py.detach(|| {
            let mut runner = Runner::new(state.clone())?;
            while let Some(batch) = state.queue.large_batch(&state.model_metrics) {
                runner.run(batch);
            }
            Ok(())
        })
    }

    /// Replaces the model for requests that arrive from now on. Earlier ones are answered by the previous model.
    #[allow(clippy::needless_pass_by_value)] // as Python passes it
    fn set_model(&self, py: Python<'_>, model: Py<PyAny>, name: String, version: String) {
        let max_batch_size = self.threads.limits.max_batch_size;
        self.threads.set_model(py, &model, &ModelSpec { name, version, max_batch_size });
    }

    /// Lets `session` run `model`, unless another model serves by now; a batch in progress is not affected.
    #[allow(clippy::needless_pass_by_value)] // as Python passes it
    fn set_session(&self, model: Py<PyAny>, session: PyRef<'_, Session>) {
        self.threads.set_session(&model, &session.0);
    }

    /// Whether the model that serves runs without Python.
    #[getter]
    fn has_session(&self) -> bool {
        self.threads.iter().all(|state| state.model.load().session().is_some())
    }

    /// Replaces the valid tokens, as SHA-256 digests.
    #[allow(clippy::needless_pass_by_value)] // converted from Python
    fn set_tokens(&self, digests: TokenDigests) {
        self.threads.set_tokens(&digests);
    }

    /// Replaces the TLS configuration of new connections, from PEM; `ValueError` if it cannot be used.
    fn set_tls(&self, chain: &[u8], key: &[u8], client_ca: Option<&[u8]>) -> PyResult<()> {
        let config = tls::server_config(chain, key, client_ca).map_err(PyValueError::new_err)?;
        self.threads.set_tls(&Arc::new(config).into());
        Ok(())
    }

    /// Lets requests of `owner` use a region, and duplicates its `descriptor`; `OSError` if it cannot.
    fn add_region(&self, owner: u32, name: String, descriptor: RawFd, offset: u64, byte_size: u64) -> PyResult<()> {
        // SAFETY: Python holds it open during this call.
        #[allow(unsafe_code)]
        let file = unsafe { BorrowedFd::borrow_raw(descriptor) }.try_clone_to_owned()?;
        self.threads.add_region(owner, Region::new(name, File::from(file), offset, byte_size));
        Ok(())
    }

    /// Forgets a region; waits for writes into it.
    fn remove_region(&self, py: Python<'_>, owner: u32, name: &str) {
        py.detach(|| self.threads.remove_region(owner, name));
    }

    /// Queues n x 784 bytes for a Python handler, with its deadline in seconds. `pending` is a `PendingPrediction`.
    ///
    /// The queue holds the bytes object itself: its only copy is into the array of the batch.
    fn submit(&self, pixels: PyBackedBytes, remaining: Option<f64>, pending: Py<PyAny>) {
        let now = Instant::now();
        let remaining = remaining.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let lane = self.threads.queue.least_loaded_lane();
        let state = self.threads.get(lane);
        let span = Span { start: 0, len: pixels.len() };
        let entry = Entry {
            images: pixels.len() / PIXELS,
            pixels: Pixels::Message(Message::from(Bytes::from_owner(pixels)), span),
            enqueued_at: now,
            deadline: remaining.and_then(|remaining| now.checked_add(remaining)),
            model: state.model.load(),
            responder: Responder::Python(pending),
        };
        state.queue.push(lane, entry, &state.model_metrics);
    }

    /// Sets the health of all services to SERVING or `NOT_SERVING`.
    fn set_serving(&self, is_serving: bool) {
        self.threads.set_serving(is_serving);
    }

    /// Stops accepting connections and calls; `run` returns after the last call, or after `grace` seconds.
    fn drain(&self, grace: f64) {
        self.threads.drain(grace);
    }

    /// Lets `run_large_batches` return once the queue is empty.
    fn close(&self) {
        self.threads.queue.close();
    }

    /// The metrics of each RPC, in the order of the routes.
    fn rpc_metrics<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let export = |route: usize| {
            let parts = self.threads.iter().map(|state| &state.ordered_routes[route].metrics);
            export_rpc(py, &parts.collect::<Vec<_>>())
        };
        (0..self.threads.ordered_routes.len()).map(export).collect()
    }

    fn model_metrics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let parts: Vec<_> = self.threads.iter().map(|state| &state.model_metrics).collect();
        export_model(py, &parts, self.threads.queue.queued_images())
    }

    /// The open connections of each I/O thread.
    fn connections(&self) -> Vec<usize> {
        self.slots.open()
    }

    /// The numbers of the runs in progress without Python; each run has another.
    fn active_runs(&self) -> Vec<u64> {
        self.threads.active_runs.numbers()
    }

    /// Connections that ended before a call, by reason.
    fn rejected_connections<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        export_rejected(py, &self.threads.connection_metrics)
    }

    /// Connections closed because of their memory in the server, by reason.
    fn closed_connections<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        export_closed(py, &self.threads.connection_metrics, self.threads.budget.shed_connections())
    }

    /// The statistics that the current model has gained since the last call, one dictionary for each I/O thread.
    fn take_statistics<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        self.threads.iter().map(|state| take_statistics(py, &state.model.load().statistics)).collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
