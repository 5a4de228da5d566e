//! The state that the connections of one I/O thread share, and the part that all threads share.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::active_runs::ActiveRuns;
use crate::auth::TokenDigests;
use crate::budget::Budget;
use crate::drain::{Drained, Phase};
use crate::limits::Limits;
use crate::metrics::{ConnectionMetrics, ModelMetrics};
use crate::model_version::ModelVersion;
use crate::python_host::PythonHost;
use crate::queue::BatchQueue;
use crate::regions::Regions;
use crate::route::Route;
use crate::swap::Swap;

/// Every call uses only the thread's own fields, without an atomic that another thread writes to.
#[repr(align(128))]
pub struct ServerState {
    /// The thread's index, and that of its lane of the queue.
    pub io_thread: usize,
    pub model: Swap<ModelVersion>,
    pub tokens: Swap<TokenDigests>,
    /// `None` for plain-text connections.
    pub tls: Swap<Option<TlsAcceptor>>,
    /// Of shared memory.
    pub regions: Swap<Regions>,
    /// The user of the server, whose regions all clients over loopback use; `None` if shared memory is off.
    pub regions_user: Option<u32>,
    pub routes: HashMap<String, Arc<Route>>,
    /// The same in the order in which Python passed them.
    pub ordered_routes: Vec<Arc<Route>>,
    pub model_metrics: ModelMetrics,
    pub host: Arc<PythonHost>,
    pub limits: Limits,
    pub phase: watch::Sender<Phase>,
    pub is_healthy: watch::Sender<bool>,
    /// The services that grpc.health.v1 knows.
    pub health_services: Vec<String>,
    // The server's, for all threads.
    pub queue: Arc<BatchQueue>,
    pub active_runs: Arc<ActiveRuns>,
    pub budget: Arc<Budget>,
    pub connection_metrics: Arc<ConnectionMetrics>,
    pub drained: Arc<Drained>,
}

impl ServerState {
    /// Whether any RPC needs a token.
    pub fn needs_tokens(&self) -> bool {
        self.ordered_routes.iter().any(|route| route.needs_token)
    }
}
