//! Runs of the model on an I/O thread.

use std::sync::Arc;
use std::thread;
use std::time::Instant;

use tokio::task::yield_now;

use crate::queue::BatchQueue;
use crate::runner::Runner;
use crate::server_state::ServerState;
use crate::sync::{now, BUSY_POLL};

/// Runs this thread's queued requests, after every ready task has had its turn.
pub async fn run_inline_batches(state: Arc<ServerState>, mut runner: Runner) {
    let (queue, lane) = (&state.queue, state.io_thread);
    let mut expects_request = false;
    loop {
        let idle_since = now();
        if expects_request {
            busy_poll(queue, lane, idle_since).await;
        }
        queue.inline_ready(lane).await;
        let is_soon = now() - idle_since < BUSY_POLL;
        expects_request = run_queued(&state, &mut runner).await == 1 && is_soon;
    }
}

/// Polls the sockets for a client that sends one request after another: for both, a sleep and a wake would take longer
/// than the call. Other threads of the machine go first.
async fn busy_poll(queue: &BatchQueue, lane: usize, idle_since: Instant) {
    while !queue.has_inline_requests(lane) && now() - idle_since < BUSY_POLL {
        thread::yield_now();
        yield_now().await;
    }
}

/// Runs batches until none is left for this thread; returns the number of their requests.
async fn run_queued(state: &ServerState, runner: &mut Runner) -> usize {
    let (queue, lane, mut requests) = (&state.queue, state.io_thread, 0);
    loop {
        let mut batch = queue.small_batch(lane, &state.model_metrics);
        if batch.is_empty() {
            batch = queue.inline_large_batch(lane, &state.model_metrics);
        }
        if batch.is_empty() {
            return requests;
        }
        requests += batch.len();
        runner.run(batch);
        if !queue.has_inline_requests(lane) {
            return requests; // without a turn of the event loop, which polls the sockets once more
        }
        yield_now().await;
    }
}
