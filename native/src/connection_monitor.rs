//! When a connection must be closed: its age, idleness, keepalive, pings, unread replies, the memory budget, a drain.

use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::Ordering::Relaxed;

use h2::{Ping, PingPong};
use tokio::sync::mpsc;

use crate::budget::Usage;
use crate::drain::{wait_for_drain_write_timeout, DRAIN_WRITE_TIMEOUT};
use crate::io::ConnectionActivity;
use crate::limits::{Limits, Timeout};
use crate::server_state::ServerState;

/// While replies are unread, a client must read this many bytes of them within `message_timeout`.
const MIN_READ: u64 = 64 << 10;
/// Checks of that within the timeout.
const CHECKS: u32 = 8;

pub enum CloseReason {
    /// Close once the open calls have ended.
    MaxAge,
    /// Close unless there are open calls.
    Idle,
    TooManyPings,
    KeepaliveTimeout,
    /// The client has had the time to confirm the GOAWAY of a drain. Close unless there are open calls.
    DrainTimeout,
    UnreadReplies,
    /// The connection holds most of the process's memory budget.
    OverBudget,
}

/// Sends the reasons to close the connection as they arise.
pub async fn monitor(
    state: &ServerState,
    ping_pong: PingPong,
    activity: &ConnectionActivity,
    usage: &Usage,
    reasons: &mpsc::Sender<CloseReason>,
) {
    let limits = &state.limits;
    tokio::join!(
        send_after(keepalive_timeout(ping_pong, limits), CloseReason::KeepaliveTimeout, reasons),
        send_after(limits.connection_age.scaled(jitter()).sleep(), CloseReason::MaxAge, reasons),
        send_after(activity.too_many_pings.notified(), CloseReason::TooManyPings, reasons),
        send_after(unread_replies(limits.message_timeout, usage), CloseReason::UnreadReplies, reasons),
        send_after(usage.shed.notified(), CloseReason::OverBudget, reasons),
        send_when_idle(limits, activity, reasons),
        send_during_drain(state, usage, reasons),
    );
}

/// A send fails only if the connection has ended, which needs no reason.
async fn send_after(event: impl Future<Output = ()>, reason: CloseReason, reasons: &mpsc::Sender<CloseReason>) {
    event.await;
    drop(reasons.send(reason).await);
}

/// Sends `Idle` after each interval without an event.
async fn send_when_idle(limits: &Limits, activity: &ConnectionActivity, reasons: &mpsc::Sender<CloseReason>) {
    let mut previous = 0;
    loop {
        limits.connection_idle.sleep().await;
        let headers = activity.headers.load(Relaxed);
        if headers == previous {
            drop(reasons.send(CloseReason::Idle).await);
        }
        previous = headers;
    }
}

/// During a drain, sends `DrainTimeout`, and `UnreadReplies` when the client does not read.
async fn send_during_drain(state: &ServerState, usage: &Usage, reasons: &mpsc::Sender<CloseReason>) {
    wait_for_drain_write_timeout(&mut state.phase.subscribe()).await;
    let (mut was_stalled, mut sent) = (false, usage.sent());
    loop {
        tokio::time::sleep(DRAIN_WRITE_TIMEOUT).await;
        let is_stalled = usage.unsent() > 0 && usage.sent() == sent;
        if is_stalled && was_stalled {
            drop(reasons.send(CloseReason::UnreadReplies).await);
        }
        (was_stalled, sent) = (is_stalled, usage.sent());
        drop(reasons.send(CloseReason::DrainTimeout).await);
    }
}

/// Returns when replies have been unread for the timeout, and the client has read less than `MIN_READ` of them.
async fn unread_replies(timeout: Timeout, usage: &Usage) {
    let (mut checks, mut sent) = (0, usage.sent());
    loop {
        timeout.scaled(1.0 / f64::from(CHECKS)).sleep().await;
        if usage.unsent() == 0 {
            (checks, sent) = (0, usage.sent());
        } else if checks < CHECKS {
            checks += 1;
        } else if usage.sent() - sent < MIN_READ {
            return;
        } else {
            (checks, sent) = (1, usage.sent());
        }
    }
}

/// A factor of 0.9 to 1.1 for the age, so that the clients of many servers do not reconnect at the same time.
fn jitter() -> f64 {
    #[allow(clippy::cast_precision_loss)] // a fraction needs no more precision
    let random = RandomState::new().hash_one(()) as f64 / u64::MAX as f64;
    0.9 + 0.2 * random
}

/// Returns when the client does not answer a keepalive ping in time.
async fn keepalive_timeout(mut ping_pong: PingPong, limits: &Limits) {
    loop {
        limits.keepalive.sleep().await;
        tokio::select! {
            biased; // after a suspend both are ready: an answer that has arrived counts
            answer = ping_pong.ping(Ping::opaque()) => if answer.is_err() { return },
            () = limits.keepalive_timeout.sleep() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_spreads_ages_by_a_tenth() {
        let factors: Vec<_> = (0..100).map(|_| jitter()).collect();
        assert!(factors.iter().all(|factor| (0.9..=1.1).contains(factor)));
        assert!(factors.iter().any(|factor| *factor < 0.98) && factors.iter().any(|factor| *factor > 1.02));
    }
}
