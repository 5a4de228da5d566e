//! One connection, from its handshake to its end, and who ends it: a drain, its age, nothing to do, or its conduct.

use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::io::ErrorKind;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;
use std::time::Duration;

use h2::server::{Builder, Connection};
use h2::{Ping, PingPong, Reason};
use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::budget::{Unsent, Usage};
use crate::call;
use crate::io::{Conduct, Peer, Socket};
use crate::server_state::{draining, Core, Limits, Seconds};

/// What a peer may send before it is read: room for a large message and a deep line of small ones.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
const FRAME: u32 = 64 << 10;
/// Bytes that one read of a socket takes; h2 alone would ask for half a frame at a time, a system call each.
const READ: usize = 32 << 10;
/// Callers that set deadlines reset streams in good faith, as many as they have.
const RESETS: usize = 4096;
/// Headers over the limit are read up to so many times of it, so that their call ends and not its connection.
///
/// A peer of whom nothing is known may have us hold as much on each of its connections, so it is no more than that.
const HEADERS_READ: usize = 8;
const HANDSHAKE: Duration = Duration::from_secs(20);
/// During a drain replies are given up whose caller has not let a byte through for so long.
pub const LAST_BYTES: Duration = Duration::from_secs(1);
/// What one who is told to go has to take the last word.
const LAST_WORD: Duration = Duration::from_secs(1);

/// While replies wait a peer reads at least so many bytes of them within the time that a stall may last.
const LEAST_READ: u64 = 64 << 10;
/// So often in that time it is looked at.
const LOOKS: u32 = 8;

/// Why a connection should end.
enum End {
    /// Once the calls on it have ended.
    OfAge,
    /// As it is, unless there are calls on it.
    Idle,
    PingsTooOften,
    /// Its peer does not answer.
    Gone,
    /// It has been told of a drain, and has had the time to hear of it.
    Drained,
    /// Its peer does not read its replies.
    Unread,
    /// It holds most of what the process has room for.
    Shed,
}

/// Serves the calls of one connection until it ends.
pub async fn serve(core: Arc<Core>, socket: TcpStream) {
    let conduct = Arc::new(Conduct::default());
    let opened = core.budget.open(!core.needs_tokens());
    let usage = &opened.0;
    let handshake = async {
        let socket = secured(&core, socket).await?;
        if socket.has_certificate() {
            usage.know();
        }
        let peer = Peer::new(socket, conduct.clone(), core.limits.ping_interval, usage.clone());
        builder(&core.limits).handshake::<_, Unsent>(peer).await.ok()
    };
    let Ok(Some(mut connection)) = timeout(HANDSHAKE, handshake).await else { return };
    let (ends, mut ended) = mpsc::channel(1);
    let watching = connection.ping_pong().map(|ping_pong| {
        let (core, usage) = (core.clone(), usage.clone());
        tokio::spawn(async move { watch(&core, ping_pong, &conduct, &usage, &ends).await })
    });
    let mut phase = core.phase.subscribe();
    let mut told = false;
    loop {
        tokio::select! {
            biased;
            () = draining(&mut phase), if !told => {
                connection.graceful_shutdown();
                told = true;
            }
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => drop({
                    tokio::spawn(call::serve(core.clone(), usage.clone(), request, respond))
                }),
                Some(Err(_)) | None => break,
            },
            Some(end) = ended.recv() => match end {
                End::Idle | End::Drained if connection.has_streams() => {}
                End::Idle | End::OfAge => connection.graceful_shutdown(),
                End::PingsTooOften => {
                    calm_down(connection).await;
                    break;
                }
                End::Unread => {
                    core.refused.unread.add(1);
                    break;
                }
                End::Gone | End::Shed | End::Drained => break,
            },
        }
    }
    if let Some(watching) = watching {
        watching.abort();
    }
    // The connection is dropped here: each of its calls that still waits sees its stream reset.
}

/// The socket, under TLS where that is asked for.
async fn secured(core: &Arc<Core>, socket: TcpStream) -> Option<Socket> {
    drop(socket.set_nodelay(true));
    let socket = BufReader::with_capacity(READ, socket);
    let tls = core.tls.get();
    let Some(acceptor) = tls.as_ref() else { return Some(Socket::Plain(socket)) };
    let peer = socket.get_ref().peer_addr().ok()?;
    match acceptor.accept(socket).await {
        Ok(socket) => Some(Socket::Tls(Box::new(socket))),
        Err(error) => {
            // Any other kind is a peer that went away, as one does that asks whether the port is open.
            if error.kind() == ErrorKind::InvalidData {
                core.refused.handshake.add(1);
                core.host.handshake_failed(&peer.to_string(), &error.to_string());
            }
            None
        }
    }
}

fn builder(limits: &Limits) -> Builder {
    let mut builder = Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_header_list_size(u32::try_from(limits.headers.saturating_mul(HEADERS_READ)).unwrap_or(u32::MAX))
        .max_concurrent_streams(limits.streams)
        .max_concurrent_reset_streams(RESETS)
        .max_pending_accept_reset_streams(RESETS);
    builder
}

/// Tells one who pings too often to go, and goes.
async fn calm_down(mut connection: Connection<Peer, Unsent>) {
    connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
    drop(timeout(LAST_WORD, async { while connection.accept().await.is_some() {} }).await);
}

/// Says when a connection should end.
async fn watch(core: &Core, ping_pong: PingPong, conduct: &Conduct, usage: &Usage, ends: &mpsc::Sender<End>) {
    let limits = &core.limits;
    tokio::join!(
        say(End::Gone, keep_alive(ping_pong, limits), ends),
        say(End::OfAge, limits.connection_age.times(a_tenth_more_or_less()).pass(), ends),
        say(End::PingsTooOften, conduct.pings_too_often.notified(), ends),
        say(End::Unread, unread(limits.stall, usage), ends),
        say(End::Shed, usage.shed.notified(), ends),
        idle(limits, conduct, ends),
        drained(core, usage, ends),
    );
}

/// Says it when that has come true; of no use to a connection that has ended.
async fn say(end: End, when: impl Future<Output = ()>, ends: &mpsc::Sender<End>) {
    when.await;
    drop(ends.send(end).await);
}

/// Says it each time that nothing has happened for as long as a connection may be idle.
async fn idle(limits: &Limits, conduct: &Conduct, ends: &mpsc::Sender<End>) {
    let mut before = 0;
    loop {
        limits.connection_idle.pass().await;
        let now = conduct.headers.load(Relaxed);
        if now == before {
            drop(ends.send(End::Idle).await);
        }
        before = now;
    }
}

/// Says during a drain that the peer has had its time to hear of it, and when it does not read its replies.
async fn drained(core: &Core, usage: &Usage, ends: &mpsc::Sender<End>) {
    draining(&mut core.phase.subscribe()).await;
    tokio::time::sleep(LAST_BYTES).await;
    let (mut waits, mut sent) = (false, usage.sent());
    loop {
        tokio::time::sleep(LAST_BYTES).await;
        let is_stuck = usage.unsent() > 0 && usage.sent() == sent;
        if is_stuck && waits {
            drop(ends.send(End::Unread).await);
        }
        (waits, sent) = (is_stuck, usage.sent());
        drop(ends.send(End::Drained).await);
    }
}

/// Returns where replies have waited for so long, and the peer has let through next to nothing of them.
async fn unread(time: Seconds, usage: &Usage) {
    let (mut waits, mut sent) = (0, usage.sent());
    loop {
        time.times(1.0 / f64::from(LOOKS)).pass().await;
        if usage.unsent() == 0 {
            (waits, sent) = (0, usage.sent());
        } else if waits < LOOKS {
            waits += 1;
        } else if usage.sent() - sent < LEAST_READ {
            return;
        } else {
            (waits, sent) = (1, usage.sent());
        }
    }
}

/// A factor for ages, so that callers of many servers do not all come back at once.
fn a_tenth_more_or_less() -> f64 {
    #[allow(clippy::cast_precision_loss)] // a fraction, however exact
    let random = RandomState::new().hash_one(()) as f64 / u64::MAX as f64;
    0.9 + 0.2 * random
}

/// Returns where a peer has vanished without a word.
async fn keep_alive(mut ping_pong: PingPong, limits: &Limits) {
    loop {
        limits.keepalive.pass().await;
        tokio::select! {
            biased; // on a machine that was asleep both are ready: an answer that is there counts
            answer = ping_pong.ping(Ping::opaque()) => if answer.is_err() { return },
            () = limits.keepalive_timeout.pass() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_spread_by_a_tenth() {
        let ages: Vec<_> = (0..100).map(|_| a_tenth_more_or_less()).collect();
        assert!(ages.iter().all(|age| (0.9..=1.1).contains(age)));
        assert!(ages.iter().any(|age| *age < 0.98) && ages.iter().any(|age| *age > 1.02));
    }
}
