//! The native transport of digitserve: HTTP/2, decoding, admission, batching and encoding outside the interpreter.
//!
//! Python is called for each message that is not a plain request for predictions, and for each batch unless the CPU runs
//! the model. It maps errors to statuses and exports the metrics.
//!
//! The modules below are in layers: a module uses those of its own layer and of the layers above it in this list.

// Primitives.
mod aligned;
mod auth;
mod authority;
mod drain;
mod frame_scanner;
mod histogram;
mod limits;
mod message;
mod onnxruntime;
mod prefix;
mod protobuf;
mod region_error;
mod socket;
mod status;
mod swap;
mod sync;
mod tls;

// Messages.
mod decode;
mod decompression;
mod encode;
mod framing;
mod inference;
mod pixels;
mod regions;
mod session;

// Accounting.
mod budget;
mod charges;
mod connection_slots;
mod metrics;
mod model_version;

// Calls and the queue.
mod body;
mod call;
mod call_error;
mod lane;
mod python_host;
mod queue;
mod responder;
mod response;
mod response_sink;
mod route;

// The server's shared state, and runs of the model.
mod active_runs;
mod float_batch;
mod inline;
mod io_threads;
mod runner;
mod server_state;

// RPCs.
mod admission;
mod dispatch;
mod fast_path;
mod health;
mod pending_replies;
mod request;
mod stream;
mod unary;

// Connections.
mod connection;
mod connection_monitor;
mod io;
mod server;

// The Python module.
mod metrics_export;
mod python_server;
mod python_session;

use pyo3::prelude::*;

#[pymodule]
fn digitserve_native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<python_server::Handshake>()?;
    module.add_class::<python_session::Session>()?;
    module.add_class::<python_server::Server>()
}
