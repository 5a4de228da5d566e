//! Searches the schedules of the transport's threads with loom: the queue, the calls into Python, the memory budget.
//!
//! The modules in which threads meet are the crate's own, with loom's primitives in `sync`. Python, h2 and the model are
//! stand-ins that take the same locks: the interpreter's, and one for each connection.
#![allow(dead_code, unused_mut, unused_variables)] // the modules have more than is searched, and some a mistake

#[path = "../../src/aligned.rs"]
pub mod aligned;
#[path = "../../src/call_error.rs"]
pub mod call_error;
#[path = "../../src/encode.rs"]
pub mod encode;
#[path = "../../src/histogram.rs"]
pub mod histogram;
#[path = "../../src/inference.rs"]
pub mod inference;
#[path = "../../src/message.rs"]
pub mod message;
#[path = "../../src/metrics.rs"]
pub mod metrics;
#[path = "../../src/model_version.rs"]
pub mod model_version;
#[path = "../../src/prefix.rs"]
pub mod prefix;
#[path = "../../src/protobuf.rs"]
pub mod protobuf;
#[path = "../../src/region_error.rs"]
pub mod region_error;
#[path = "../../src/route.rs"]
pub mod route;
#[path = "../../src/status.rs"]
pub mod status;
#[path = "../../src/swap.rs"]
pub mod swap;

pub mod auth;
pub mod prelude;
pub mod server;
pub mod session;
pub mod sync;

// `h2::server` and `pyo3::prelude` are the stand-ins.
extern crate self as h2;
extern crate self as pyo3;

include!(concat!(env!("OUT_DIR"), "/variants.rs"));

/// Runs `scenario` once for each schedule with at most so many preemptions; panics if one of them panics or deadlocks.
pub fn search(preemptions: usize, scenario: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 20_000;
    builder.check(move || {
        sync::set_clock(std::time::Duration::ZERO);
        scenario();
    });
}
