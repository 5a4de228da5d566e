//! The state of every I/O thread, from Python's parameters, and the changes to all of them.

use std::num::NonZeroUsize;
use std::ops::Deref;
use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::active_runs::ActiveRuns;
use crate::auth::TokenDigests;
use crate::budget::Budget;
use crate::drain::{Drained, Phase};
use crate::inference::ModelSpec;
use crate::limits::Limits;
use crate::metrics::{ConnectionMetrics, ModelMetrics, RpcMetrics};
use crate::model_version::ModelVersion;
use crate::python_host::PythonHost;
use crate::queue::BatchQueue;
use crate::regions::{Region, Regions};
use crate::route::{Route, RpcKind};
use crate::server_state::ServerState;
use crate::session::Session;
use crate::swap::Swap;

/// The fields of a `Route` of the native transport's Python side.
#[derive(FromPyObject)]
pub struct RouteSpec {
    path: String,
    kind: String,
    needs_token: bool,
    max_message_bytes: usize,
    reply_bytes_per_request_byte: usize,
}

impl RouteSpec {
    /// The route for one I/O thread.
    fn route(&self, latency_buckets: &[f64]) -> PyResult<Arc<Route>> {
        let unknown = || PyValueError::new_err(format!("kind: {:?} is unknown; expected a kind of RPC", self.kind));
        Ok(Arc::new(Route {
            path: self.path.clone(),
            kind: RpcKind::from_name(&self.kind).ok_or_else(unknown)?,
            needs_token: self.needs_token,
            max_message_bytes: self.max_message_bytes,
            reply_bytes_per_request_byte: self.reply_bytes_per_request_byte,
            metrics: RpcMetrics::new(latency_buckets),
        }))
    }
}

/// The upper bounds of the histograms' buckets, from a dictionary.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub struct Buckets {
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

/// The parameters of the I/O threads.
pub struct ServerParts {
    pub callbacks: Py<PyAny>,
    pub routes: Vec<RouteSpec>,
    pub model: Py<PyAny>,
    pub spec: ModelSpec,
    pub limits: Limits,
    pub buckets: Buckets,
    pub health_services: Vec<String>,
    pub regions_user: Option<u32>,
}

/// By index. It derefs to the state of the first, for common fields.
pub struct IoThreads(Vec<Arc<ServerState>>);

impl IoThreads {
    /// So many threads with one queue.
    pub fn new(py: Python<'_>, parts: &ServerParts, threads: NonZeroUsize, queue: BatchQueue) -> PyResult<Self> {
        let threads = threads.get();
        let (queue, budget) = (Arc::new(queue), Budget::new(parts.limits.max_message_bytes));
        let (connection_metrics, drained) = (Arc::<ConnectionMetrics>::default(), Arc::new(Drained::new(threads)));
        let active_runs = Arc::<ActiveRuns>::default();
        let state = |io_thread| {
            let ordered_routes = parts.routes.iter().map(|route| route.route(&parts.buckets.latency));
            let ordered_routes = ordered_routes.collect::<PyResult<Vec<_>>>()?;
            PyResult::Ok(Arc::new(ServerState {
                io_thread,
                model: Swap::new(ModelVersion::new(parts.model.clone_ref(py), parts.spec.clone())),
                tokens: Swap::new(TokenDigests::new()),
                tls: Swap::new(None),
                regions: Swap::new(Regions::default()),
                regions_user: parts.regions_user,
                routes: ordered_routes.iter().map(|route| (route.path.clone(), route.clone())).collect(),
                ordered_routes,
                model_metrics: parts.buckets.model_metrics(),
                host: Arc::new(PythonHost::new(parts.callbacks.clone_ref(py))),
                limits: parts.limits.clone(),
                phase: watch::channel(Phase::Serving).0,
                is_healthy: watch::channel(false).0,
                health_services: parts.health_services.clone(),
                queue: queue.clone(),
                active_runs: active_runs.clone(),
                budget: budget.clone(),
                connection_metrics: connection_metrics.clone(),
                drained: drained.clone(),
            }))
        };
        Ok(Self((0..threads).map(state).collect::<PyResult<_>>()?))
    }

    pub fn get(&self, io_thread: usize) -> &Arc<ServerState> {
        &self.0[io_thread]
    }

    pub fn iter(&self) -> impl Iterator<Item = &ServerState> {
        self.0.iter().map(Arc::as_ref)
    }

    /// Call it with the interpreter, which the first run of a new model needs: no thread runs the model until every thread
    /// has it. No client receives a reply of the new model and then, to a later request, one of the old.
    pub fn set_model(&self, py: Python<'_>, model: &Py<PyAny>, spec: &ModelSpec) {
        let replace = |state: &ServerState| state.model.replace(ModelVersion::new(model.clone_ref(py), spec.clone()));
        drop(self.iter().map(replace).collect::<Vec<_>>());
    }

    /// Lets `session` run `model` on each thread that serves it.
    pub fn set_session(&self, model: &Py<PyAny>, session: &Arc<Session>) {
        for version in self.iter().map(|state| state.model.load()) {
            if version.model().is_some_and(|serving| serving.is(model)) {
                version.set_session(session.clone());
            }
        }
    }

    pub fn set_tokens(&self, digests: &TokenDigests) {
        self.iter().for_each(|state| state.tokens.store(digests.clone()));
    }

    pub fn set_tls(&self, acceptor: &TlsAcceptor) {
        self.iter().for_each(|state| state.tls.store(Some(acceptor.clone())));
    }

    pub fn add_region(&self, owner: u32, region: Region) {
        let region = Arc::new(region);
        for state in self.iter() {
            let mut regions = Regions::clone(&state.regions.load());
            regions.insert(owner, region.clone());
            state.regions.store(regions);
        }
    }

    /// After its return no thread writes into the region.
    pub fn remove_region(&self, owner: u32, name: &str) {
        for state in self.iter() {
            let mut regions = Regions::clone(&state.regions.load());
            let region = regions.remove(owner, name);
            state.regions.store(regions);
            if let Some(region) = region {
                region.unregister();
            }
        }
    }

    pub fn set_serving(&self, is_serving: bool) {
        for state in self.iter() {
            state.is_healthy.send_replace(is_serving);
        }
    }

    pub fn drain(&self, grace: f64) {
        let phase = Phase::draining_for(grace);
        for state in self.iter() {
            state.phase.send_replace(phase);
        }
    }
}

impl Deref for IoThreads {
    type Target = ServerState;

    fn deref(&self) -> &ServerState {
        &self.0[0]
    }
}

/// Ends all I/O threads, at once, with one that ends before a drain: its connections would not be served.
pub struct DrainOnExit<'a>(pub &'a IoThreads);

impl Drop for DrainOnExit<'_> {
    fn drop(&mut self) {
        if *self.0.phase.borrow() == Phase::Serving {
            self.0.drain(0.0);
        }
    }
}
