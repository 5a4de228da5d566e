//! Why a call fails. Python maps each error to its gRPC status.

use bytes::Bytes;
use pyo3::prelude::*;

use crate::auth::AuthError;
use crate::region_error::RegionError;

#[derive(Debug)]
pub enum CallError {
    DeadlineExceeded,
    /// The queue is full; `retry_after` is in seconds.
    Overloaded {
        queued_images: usize,
        max_queued_images: usize,
        retry_after: f64,
    },
    ServerStopping,
    MalformedMessage,
    Unauthenticated(AuthError),
    /// A tensor in shared memory cannot be read or written.
    Region(RegionError),
    /// An exception that Python raised.
    Exception(Py<PyAny>),
}

impl CallError {
    pub fn clone_ref(&self, py: Python<'_>) -> Self {
        match self {
            Self::DeadlineExceeded => Self::DeadlineExceeded,
            Self::ServerStopping => Self::ServerStopping,
            Self::MalformedMessage => Self::MalformedMessage,
            Self::Unauthenticated(error) => Self::Unauthenticated(*error),
            Self::Region(error) => Self::Region(error.clone()),
            Self::Overloaded { queued_images, max_queued_images, retry_after } => Self::Overloaded {
                queued_images: *queued_images,
                max_queued_images: *max_queued_images,
                retry_after: *retry_after,
            },
            Self::Exception(error) => Self::Exception(error.clone_ref(py)),
        }
    }
}

/// A reply, or why there is none.
pub type CallResult = Result<Bytes, CallError>;
