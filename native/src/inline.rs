//! Runs of the model on an I/O thread.

use std::sync::Arc;

use tokio::task::yield_now;

use crate::runner::Runner;
use crate::server_state::ServerState;

/// Runs this thread's queued requests, after every ready task has had its turn.
pub async fn run_inline_batches(state: Arc<ServerState>, mut runner: Runner) {
    let (queue, lane) = (&state.queue, state.io_thread);
    loop {
        queue.inline_ready(lane).await;
        loop {
            let mut batch = queue.small_batch(lane, &state.model_metrics);
            if batch.is_empty() {
                batch = queue.inline_large_batch(lane, &state.model_metrics);
            }
            if batch.is_empty() {
                break;
            }
            runner.run(batch);
            yield_now().await;
        }
    }
}
