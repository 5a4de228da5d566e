//! The calls into Python: runs of the model, handlers, and the status of errors.

use std::io;
use std::time::Instant;

use bytes::Bytes;
use http::HeaderValue;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use tokio::sync::oneshot;

use crate::auth::AuthError;
use crate::call_error::{CallError, CallResult};
use crate::region_error::{Problem, RegionError};
use crate::status::{Status, CODES, INTERNAL};

/// The Python object that the server calls: `PythonCallbacks` of the native transport.
pub struct PythonHost(Py<PyAny>);

impl PythonHost {
    pub const fn new(callbacks: Py<PyAny>) -> Self {
        Self(callbacks)
    }

    /// A new array for a batch of so many images, (n, 784) uint8.
    pub fn allocate_batch<'py>(&self, py: Python<'py>, images: usize) -> PyResult<Bound<'py, PyAny>> {
        self.0.bind(py).call_method1(intern!(py, "allocate_batch"), (images,))
    }

    /// Runs a model on the first `images` images of the array.
    pub fn predict<'py>(
        &self,
        model: Option<&Py<PyAny>>,
        array: &Bound<'py, PyAny>,
        images: usize,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = array.py();
        self.0.bind(py).call_method1(intern!(py, "predict"), (model, array, images))
    }

    /// Logs a failed TLS handshake.
    pub fn log_failed_handshake(&self, peer: &str, reason: &str) {
        Python::attach(|py| {
            if let Err(error) = self.0.call_method1(py, intern!(py, "log_failed_handshake"), (peer, reason)) {
                error.print(py); // the metric counts the handshake all the same
            }
        });
    }

    /// Passes a message to the Python handler of `path`, or to its alternative. The receiver gets the result.
    pub fn call_handler(
        &self,
        path: &str,
        message: &Bytes,
        deadline: Option<Instant>,
        use_alternative: bool,
        peer: &str,
    ) -> oneshot::Receiver<CallResult> {
        let (sender, receiver) = oneshot::channel();
        let remaining = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()).as_secs_f64());
        Python::attach(|py| {
            let reply = ReplyHandle(Some(sender));
            let arguments = (path, PyBytes::new(py, message), remaining, use_alternative, peer, reply);
            if let Err(error) = self.0.call_method1(py, intern!(py, "call_handler"), arguments) {
                error.print(py); // the dropped handle ends the call with INTERNAL
            }
        });
        receiver
    }

    /// The status of an error, which Python logs.
    pub fn to_status(&self, path: &str, request_id: Option<&HeaderValue>, error: &CallError) -> Status {
        let id = request_id.and_then(|value| value.to_str().ok());
        Python::attach(|py| {
            let exception = self.exception(py, error)?;
            let status = self.0.call_method1(py, intern!(py, "to_status"), (path, id, exception))?;
            let (code, message, details, id): (usize, String, Vec<u8>, String) = status.extract(py)?;
            PyResult::Ok(Status {
                code: if code < CODES { code } else { INTERNAL },
                message,
                details: Bytes::from(details),
                request_id: HeaderValue::try_from(id).ok(),
            })
        })
        .unwrap_or_else(|error| {
            Python::attach(|py| error.print(py));
            Status::internal()
        })
    }

    /// The message of an error for a reply within a stream; `None` for an internal error.
    pub fn stream_error_message(&self, error: &CallError) -> Option<String> {
        Python::attach(|py| {
            let exception = self.exception(py, error)?;
            self.0.call_method1(py, intern!(py, "stream_error_message"), (exception,))?.extract(py)
        })
        .unwrap_or(None)
    }

    fn exception(&self, py: Python<'_>, error: &CallError) -> PyResult<Py<PyAny>> {
        match error {
            CallError::DeadlineExceeded => self.0.call_method0(py, intern!(py, "deadline_exceeded")),
            CallError::ServerStopping => self.0.call_method0(py, intern!(py, "server_stopping")),
            CallError::MalformedMessage => self.0.call_method0(py, intern!(py, "malformed_message")),
            CallError::Unauthenticated(error) => {
                let is_missing = *error == AuthError::MissingToken;
                self.0.call_method1(py, intern!(py, "unauthenticated"), (is_missing,))
            }
            CallError::Overloaded { queued_images, max_queued_images, retry_after } => {
                let arguments = (*queued_images, *max_queued_images, *retry_after);
                self.0.call_method1(py, intern!(py, "overloaded"), arguments)
            }
            CallError::Region(error) => self.region_exception(py, error),
            CallError::Exception(error) => Ok(error.clone_ref(py)),
        }
    }

    fn region_exception(&self, py: Python<'_>, error: &RegionError) -> PyResult<Py<PyAny>> {
        let RegionError { tensor, region, problem } = error;
        match *problem {
            Problem::TooShort { available, expected } => {
                self.0.call_method1(py, intern!(py, "region_too_short"), (tensor, region, available, expected))
            }
            Problem::Unregistered => self.0.call_method1(py, intern!(py, "region_unknown"), (tensor, region)),
            Problem::Truncated => self.0.call_method1(py, intern!(py, "region_truncated"), (tensor, region)),
            Problem::NotWritten => self.0.call_method1(py, intern!(py, "region_not_written"), (tensor, region)),
            Problem::Os(errno) => Ok(PyErr::from(io::Error::from_raw_os_error(errno)).into_value(py).into_any()),
        }
    }
}

/// Receives a Python handler's result, once.
#[pyclass(module = "digitserve_native")]
pub struct ReplyHandle(Option<oneshot::Sender<CallResult>>);

#[pymethods]
impl ReplyHandle {
    /// Completes the call with the reply's bytes.
    fn complete(&mut self, message: &[u8]) {
        if let Some(sender) = self.0.take() {
            drop(sender.send(Ok(Bytes::copy_from_slice(message))));
        }
    }

    /// Fails the call with the exception that the handler raised.
    fn fail(&mut self, error: Py<PyAny>) {
        if let Some(sender) = self.0.take() {
            drop(sender.send(Err(CallError::Exception(error))));
        }
    }

    /// Whether the call has ended already.
    fn is_cancelled(&self) -> bool {
        self.0.as_ref().is_none_or(oneshot::Sender::is_closed)
    }
}
