//! The server's lifecycle: it serves, then drains.

use std::time::{Duration, Instant};

use tokio::sync::watch;

/// During a drain a reply is abandoned after its client has not read a byte for this long.
pub const DRAIN_WRITE_TIMEOUT: Duration = Duration::from_secs(1);
/// The grace of a drain if the requested one is not a valid duration.
const DEFAULT_GRACE: Duration = Duration::from_secs(3600);

/// Each phase lasts until the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Serving,
    /// No new connections or calls; open calls may run until this time.
    Draining(Instant),
}

impl Phase {
    /// A drain that starts now and lasts `grace` seconds at most.
    pub fn draining_for(grace: f64) -> Self {
        Self::Draining(Instant::now() + Duration::try_from_secs_f64(grace).unwrap_or(DEFAULT_GRACE))
    }
}

/// Returns once a drain has started.
pub async fn wait_for_drain(phase: &mut watch::Receiver<Phase>) {
    drop(phase.wait_for(|phase| *phase != Phase::Serving).await);
}

/// Returns `DRAIN_WRITE_TIMEOUT` after a drain has started.
pub async fn wait_for_drain_write_timeout(phase: &mut watch::Receiver<Phase>) {
    wait_for_drain(phase).await;
    tokio::time::sleep(DRAIN_WRITE_TIMEOUT).await;
}

/// Counts the I/O threads whose connections have ended in a drain.
///
/// A thread serves its lane of the queue until all are complete: a call on one thread can wait for another's lane.
pub struct Drained {
    threads: usize,
    complete: watch::Sender<usize>,
}

impl Drained {
    pub fn new(threads: usize) -> Self {
        Self { threads, complete: watch::channel(0).0 }
    }

    /// Counts one thread, and returns once all are counted.
    pub async fn complete_one(&self) {
        let mut complete = self.complete.subscribe();
        self.complete.send_modify(|complete| *complete += 1);
        drop(complete.wait_for(|complete| *complete == self.threads).await);
    }
}
