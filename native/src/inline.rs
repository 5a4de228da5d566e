//! The thread that reads, as it runs the model itself.

use std::sync::Arc;

use tokio::task::yield_now;

use crate::runner::Runner;
use crate::server_state::Core;

/// Runs what small requests have gathered: after every task that was ready has had its turn.
pub async fn run_small(core: Arc<Core>, mut runner: Runner) {
    loop {
        core.line.small_waits.notified().await;
        loop {
            let mut batch = core.line.small_batch(&core.model);
            if batch.is_empty() {
                batch = core.line.spare_batch(&core.model);
            }
            if batch.is_empty() {
                break;
            }
            runner.run(batch);
            yield_now().await;
        }
    }
}
