//! Runs of the model on the I/O thread.

use std::sync::Arc;

use tokio::task::yield_now;

use crate::runner::Runner;
use crate::server_state::ServerState;

/// Runs what the queue has gathered for this thread, after every ready task has had its turn.
pub async fn run_inline_batches(state: Arc<ServerState>, mut runner: Runner) {
    loop {
        state.queue.inline_ready.notified().await;
        loop {
            let mut batch = state.queue.small_batch(&state.model_metrics);
            if batch.is_empty() {
                batch = state.queue.inline_large_batch(&state.model_metrics);
            }
            if batch.is_empty() {
                break;
            }
            runner.run(batch);
            yield_now().await;
        }
    }
}
