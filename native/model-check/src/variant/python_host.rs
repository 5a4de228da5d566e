//! The parts of `python_host.rs` that the searched modules use.

use http::HeaderValue;

use crate::call_error::CallError;
use crate::prelude::Python;
use crate::status::{Status, RESOURCE_EXHAUSTED};

pub struct PythonHost;

impl PythonHost {
    /// Calls Python, as the real one does.
    pub fn to_status(&self, _: &str, _: Option<&HeaderValue>, _: &CallError) -> Status {
        Python::attach(|_| Status::new(RESOURCE_EXHAUSTED, "rejected"))
    }
}
