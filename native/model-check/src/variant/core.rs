//! The parts of `core.rs` that the searched modules use.

use std::sync::Arc;

use http::HeaderValue;

use crate::budget::Budget;
use crate::counts;
use crate::line::Line;
use crate::prelude::Python;
use crate::reply::Trouble;
use crate::status::{Refusal, RESOURCE_EXHAUSTED};

pub struct Core {
    pub line: Line,
    pub model: counts::Model,
    pub budget: Arc<Budget>,
    pub host: Host,
}

pub struct Route {
    pub path: String,
    pub counts: counts::Rpc,
}

pub struct Host;

impl Host {
    /// Python words it.
    pub fn refusal(&self, _: &str, _: Option<&HeaderValue>, _: &Trouble) -> Refusal {
        Python::attach(|_| Refusal::bare(RESOURCE_EXHAUSTED, "refused"))
    }
}
