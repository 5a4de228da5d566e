//! What all connections and threads of the server share.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::auth::TokenDigests;
use crate::budget::Budget;
use crate::drain::Phase;
use crate::limits::Limits;
use crate::metrics::{ConnectionMetrics, ModelMetrics};
use crate::model_version::ModelVersion;
use crate::python_host::PythonHost;
use crate::queue::BatchQueue;
use crate::route::Route;
use crate::swap::Swap;

pub struct ServerState {
    pub model: Swap<ModelVersion>,
    pub tokens: Swap<TokenDigests>,
    /// `None` for plain-text connections.
    pub tls: Swap<Option<TlsAcceptor>>,
    pub routes: HashMap<String, Arc<Route>>,
    /// The same in the order in which Python passed them.
    pub ordered_routes: Vec<Arc<Route>>,
    pub queue: BatchQueue,
    pub model_metrics: ModelMetrics,
    pub connection_metrics: ConnectionMetrics,
    pub budget: Arc<Budget>,
    pub host: Arc<PythonHost>,
    pub limits: Limits,
    pub phase: watch::Sender<Phase>,
    pub is_healthy: watch::Sender<bool>,
    /// The services that grpc.health.v1 knows.
    pub health_services: Vec<String>,
}

impl ServerState {
    /// Whether any RPC needs a token.
    pub fn needs_tokens(&self) -> bool {
        self.ordered_routes.iter().any(|route| route.needs_token)
    }
}
