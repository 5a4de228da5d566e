//! Limits on connections and calls, and the timeouts among them.

use std::future::pending;
use std::time::{Duration, Instant};

use pyo3::prelude::*;

/// The fields of `service.transports.limits.Limits`.
#[derive(Clone, FromPyObject)]
pub struct Limits {
    pub max_batch_size: usize,
    pub max_message_bytes: usize,
    pub connections: usize,
    pub streams: u32,
    pub connection_age: Timeout,
    pub connection_idle: Timeout,
    pub max_metadata_bytes: usize,
    pub message_timeout: Timeout,
    pub keepalive: Timeout,
    pub keepalive_timeout: Timeout,
    pub ping_interval: Timeout,
}

/// A timeout in seconds; 0 disables it.
#[derive(Clone, Copy, Debug, Default, FromPyObject)]
#[pyo3(transparent)]
pub struct Timeout(f64);

impl std::fmt::Display for Timeout {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(formatter)
    }
}

impl Timeout {
    /// `None` if the timeout is disabled, or longer than the clock can represent.
    pub fn duration(self) -> Option<Duration> {
        Duration::try_from_secs_f64(self.0).ok().filter(|duration| !duration.is_zero())
    }

    pub fn scaled(self, factor: f64) -> Self {
        Self(self.0 * factor)
    }

    /// Returns after the timeout; never if it is disabled.
    pub async fn sleep(self) {
        match self.duration() {
            Some(duration) => tokio::time::sleep(duration).await,
            None => pending().await,
        }
    }
}

/// Returns at the deadline; never without one.
pub async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_that_the_clock_cannot_represent_is_disabled() {
        for seconds in [0.0, -0.0, -1.0, f64::NAN, f64::INFINITY, 1e300] {
            assert_eq!(Timeout(seconds).duration(), None, "{seconds}");
        }
        assert_eq!(Timeout(0.5).scaled(1.1).duration(), Some(Duration::from_millis(550)));
    }
}
