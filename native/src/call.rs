//! One open call: its RPC, and its single end.

use std::sync::Arc;
use std::time::Instant;

use http::{HeaderMap, HeaderValue};

use crate::budget::Usage;
use crate::call_error::CallError;
use crate::python_host::PythonHost;
use crate::route::Route;
use crate::status::{ok_trailers, Status, CANCELLED, OK};

/// Bytes of most replies of Python handlers, besides those that grow with the request.
const REPLY_OVERHEAD: usize = 16 << 10;

/// Counts an RPC as started when it is created and as ended once: as cancelled when it is dropped without another end.
pub struct Call {
    pub route: Arc<Route>,
    pub usage: Arc<Usage>,
    pub deadline: Option<Instant>,
    host: Arc<PythonHost>,
    request_id: Option<HeaderValue>,
    started_at: Instant,
    is_finished: bool,
}

impl Call {
    pub fn start(
        host: Arc<PythonHost>,
        route: Arc<Route>,
        usage: Arc<Usage>,
        request_id: Option<HeaderValue>,
        started_at: Instant,
        deadline: Option<Instant>,
    ) -> Self {
        route.metrics.started.add(1);
        Self { route, usage, deadline, host, request_id, started_at, is_finished: false }
    }

    /// Ends the call with OK; returns its trailers.
    pub fn succeed(mut self) -> HeaderMap {
        let id = self.request_id.take();
        self.finish(OK, id.as_ref());
        ok_trailers(id)
    }

    /// Ends the call with the status that Python gives the error; returns its trailers.
    pub fn fail(mut self, error: &CallError) -> HeaderMap {
        let status = self.host.to_status(&self.route.path, self.request_id.as_ref(), error);
        self.finish(status.code, status.request_id.as_ref());
        status.into_trailers()
    }

    /// Ends the call with a status of the protocol itself; returns its trailers.
    pub fn fail_with(mut self, mut status: Status) -> HeaderMap {
        status.request_id = self.request_id.take();
        self.finish(status.code, status.request_id.as_ref());
        status.into_trailers()
    }

    /// The largest reply of a Python handler to a request of so many bytes.
    pub fn max_reply_bytes(&self, request_bytes: usize) -> usize {
        REPLY_OVERHEAD + self.route.reply_bytes_per_request_byte.saturating_mul(request_bytes)
    }

    fn finish(&mut self, code: usize, request_id: Option<&HeaderValue>) {
        self.is_finished = true;
        self.route.metrics.record_end(self.started_at, code, request_id.and_then(|id| id.to_str().ok()));
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.is_finished {
            let id = self.request_id.take();
            self.finish(CANCELLED, id.as_ref());
        }
    }
}
