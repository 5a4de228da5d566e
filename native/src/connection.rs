//! One HTTP/2 connection, from its handshake to its end.

use std::future::poll_fn;
use std::io::ErrorKind;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use h2::server::{Builder, Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::Request;
use tokio::io::BufReader;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::budget::Usage;
use crate::charges::ReplyBuf;
use crate::connection_monitor::{monitor, CloseReason};
use crate::dispatch::serve_call;
use crate::drain::wait_for_drain;
use crate::io::{ConnectionActivity, MaybeTlsStream, ObservedIo, WriteFlusher};
use crate::limits::Limits;
use crate::server_state::ServerState;
use crate::socket::Socket;

/// The flow-control windows: capacity for a large message, and for many small ones.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
const MAX_FRAME_SIZE: u32 = 64 << 10;
/// Bytes of one read from a socket. h2 alone would read half a frame for each system call.
const READ_BUFFER: usize = 32 << 10;
/// Clients whose deadlines pass reset streams in good faith, as many as they have.
const MAX_RESET_STREAMS: usize = 4096;
/// Metadata over the limit is read up to this many times the limit, so that its call ends and not its connection.
///
/// Any peer can make the server hold as much on each of its connections, so it is no larger.
const METADATA_READ_FACTOR: usize = 8;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);
/// The time to flush a last GOAWAY.
const GOAWAY_FLUSH: Duration = Duration::from_secs(1);

type ServerConnection = Connection<ObservedIo, ReplyBuf>;
type AcceptedCall = Result<(Request<RecvStream>, SendResponse<ReplyBuf>), h2::Error>;

/// Serves the calls of one connection until it ends.
pub async fn serve_connection(state: Arc<ServerState>, socket: Socket) {
    let activity = Arc::new(ConnectionActivity::default());
    let registration = state.budget.register(!state.needs_tokens());
    let usage = &registration.0;
    drop(usage.peer.set(socket.peer()));
    let handshake = accept_http2(&state, socket, usage, &activity);
    let Ok(Some((mut connection, flusher))) = timeout(HANDSHAKE_TIMEOUT, handshake).await else { return };
    let (sender, reasons) = mpsc::channel(1);
    let monitoring = connection.ping_pong().map(|ping_pong| {
        let (state, usage) = (state.clone(), usage.clone());
        tokio::spawn(async move { monitor(&state, ping_pong, &activity, &usage, &sender).await })
    });
    serve_calls(&state, connection, &flusher, usage, reasons).await;
    if let Some(monitoring) = monitoring {
        monitoring.abort();
    }
}

/// Serves calls until the connection is closed. Then it is dropped, and each open call sees its stream reset.
async fn serve_calls(
    state: &Arc<ServerState>,
    mut connection: ServerConnection,
    flusher: &WriteFlusher,
    usage: &Arc<Usage>,
    mut reasons: mpsc::Receiver<CloseReason>,
) {
    let mut phase = state.phase.subscribe();
    let mut is_draining = false;
    loop {
        tokio::select! {
            biased;
            () = wait_for_drain(&mut phase), if !is_draining => {
                connection.graceful_shutdown();
                is_draining = true;
            }
            accepted = accept_or_flush(&mut connection, flusher) => match accepted {
                Some(Ok((request, respond))) => {
                    drop(tokio::spawn(serve_call(state.clone(), usage.clone(), request, respond)));
                }
                Some(Err(_)) | None => return,
            },
            Some(reason) = reasons.recv() => match reason {
                CloseReason::Idle | CloseReason::DrainTimeout if connection.has_streams() => {}
                CloseReason::Idle | CloseReason::MaxAge => connection.graceful_shutdown(),
                CloseReason::TooManyPings => return enhance_your_calm(connection).await,
                CloseReason::UnreadReplies => return state.connection_metrics.unread.add(1),
                CloseReason::KeepaliveTimeout | CloseReason::OverBudget | CloseReason::DrainTimeout => return,
            },
        }
    }
}

/// The next call; `None` if the connection has ended. Sends h2's output when h2 has no more to do.
async fn accept_or_flush(connection: &mut ServerConnection, flusher: &WriteFlusher) -> Option<AcceptedCall> {
    poll_fn(|cx| {
        let accepted = connection.poll_accept(cx);
        if accepted.is_pending() && matches!(flusher.poll(cx), Poll::Ready(Err(_))) {
            return Poll::Ready(None);
        }
        accepted
    })
    .await
}

/// Accepts TLS if it is configured, then HTTP/2. `None` if the client fails or leaves.
async fn accept_http2(
    state: &ServerState,
    socket: Socket,
    usage: &Arc<Usage>,
    activity: &Arc<ConnectionActivity>,
) -> Option<(ServerConnection, WriteFlusher)> {
    let stream = accept_tls(state, socket).await?;
    if stream.has_client_certificate() {
        usage.set_authenticated();
    }
    let io = ObservedIo::new(stream, activity.clone(), state.limits.ping_interval, usage.clone());
    let flusher = io.flusher();
    Some((http2_builder(&state.limits).handshake(io).await.ok()?, flusher))
}

/// A Unix domain socket has no TLS: its messages never leave the machine.
async fn accept_tls(state: &ServerState, socket: Socket) -> Option<MaybeTlsStream> {
    let socket = match socket {
        Socket::Tcp(socket) => socket,
        Socket::Unix(socket) => return Some(MaybeTlsStream::Unix(BufReader::with_capacity(READ_BUFFER, socket))),
    };
    drop(socket.set_nodelay(true));
    let socket = BufReader::with_capacity(READ_BUFFER, socket);
    let tls = state.tls.load();
    let Some(acceptor) = tls.as_ref() else { return Some(MaybeTlsStream::Plain(socket)) };
    let peer = socket.get_ref().peer_addr().ok()?;
    match acceptor.accept(socket).await {
        Ok(stream) => Some(MaybeTlsStream::Tls(Box::new(stream))),
        Err(error) => {
            // Any other kind means that the peer left, as a port check does.
            if error.kind() == ErrorKind::InvalidData {
                state.connection_metrics.handshake.add(1);
                state.host.log_failed_handshake(&peer.to_string(), &error.to_string());
            }
            None
        }
    }
}

fn http2_builder(limits: &Limits) -> Builder {
    let max_metadata = limits.max_metadata_bytes.saturating_mul(METADATA_READ_FACTOR);
    let mut builder = Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME_SIZE)
        .max_header_list_size(u32::try_from(max_metadata).unwrap_or(u32::MAX))
        .max_concurrent_streams(limits.streams)
        .max_concurrent_reset_streams(MAX_RESET_STREAMS)
        .max_pending_accept_reset_streams(MAX_RESET_STREAMS);
    builder
}

/// Closes the connection of a client that pings too often.
async fn enhance_your_calm(mut connection: ServerConnection) {
    connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
    // The end of the connection sends the output of its polls.
    drop(timeout(GOAWAY_FLUSH, async { while connection.accept().await.is_some() {} }).await);
}
