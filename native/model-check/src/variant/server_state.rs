//! The parts of `server_state.rs` that the searched modules use.

use std::sync::Arc;

use http::HeaderValue;

use crate::budget::Budget;
use crate::metrics;
use crate::queue::Line;
use crate::prelude::Python;
use crate::responder::Trouble;
use crate::status::{Refusal, RESOURCE_EXHAUSTED};

pub struct Core {
    pub line: Line,
    pub model: metrics::Model,
    pub budget: Arc<Budget>,
    pub host: Host,
}

pub struct Route {
    pub path: String,
    pub counts: metrics::Rpc,
}

pub struct Host;

impl Host {
    /// Python words it.
    pub fn refusal(&self, _: &str, _: Option<&HeaderValue>, _: &Trouble) -> Refusal {
        Python::attach(|_| Refusal::bare(RESOURCE_EXHAUSTED, "refused"))
    }
}
