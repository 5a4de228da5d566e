//! The parts of `server_state.rs` that the searched modules use.

use std::sync::Arc;

use crate::budget::Budget;
use crate::metrics::ModelMetrics;
use crate::python_host::PythonHost;
use crate::queue::BatchQueue;

pub struct ServerState {
    pub io_thread: usize,
    pub queue: Arc<BatchQueue>,
    pub model_metrics: ModelMetrics,
    pub budget: Arc<Budget>,
    pub host: Arc<PythonHost>,
}
