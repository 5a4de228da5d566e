//! The listening sockets, the I/O threads that serve the connections, and the end of both.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::connection::serve_connection;
use crate::connection_slots::{ConnectionSlot, ConnectionSlots};
use crate::drain::{wait_for_drain, Phase};
use crate::inline::run_inline_batches;
use crate::runner::Runner;
use crate::server_state::ServerState;
use crate::socket::{Listener, Socket, StdListener, StdSocket};

pub const BACKLOG: u32 = 1024;
/// The pause after a failed accept.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// Listens on every address of the host, all with one port; port 0 means a free one. Returns the port.
pub fn listen(host: &str, port: u16) -> io::Result<(Vec<StdListener>, u16)> {
    let mut listeners = Vec::new();
    let mut bound_port = port;
    let runtime = runtime::Builder::new_current_thread().enable_io().build()?;
    let _guard = runtime.enter();
    for mut address in (host, port).to_socket_addrs()? {
        address.set_port(bound_port);
        match bind(address) {
            Ok(listener) => {
                bound_port = listener.local_addr()?.port();
                listeners.push(StdListener::Tcp(listener.into_std()?));
            }
            // A name such as localhost can have an address that this machine does not have.
            Err(_) if !listeners.is_empty() => {}
            Err(error) => return Err(error),
        }
    }
    Ok((listeners, bound_port))
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Accepts connections for all I/O threads; it belongs to the first of them.
pub struct Acceptor {
    pub listeners: Vec<StdListener>,
    pub slots: Arc<ConnectionSlots>,
    /// By I/O thread.
    pub senders: Vec<mpsc::UnboundedSender<Accepted>>,
}

/// An accepted connection on its way to its I/O thread. The limit on connections limits these too.
pub struct Accepted {
    socket: StdSocket,
    slot: ConnectionSlot,
}

/// Serves the connections that this I/O thread gets, until the drain of all threads has ended: with the last call, or with
/// its grace.
pub fn run(
    state: Arc<ServerState>,
    runner: Runner,
    accepted: mpsc::UnboundedReceiver<Accepted>,
    acceptor: Option<Acceptor>,
) -> io::Result<()> {
    let runtime = runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build()?;
    runtime.block_on(async {
        let mut accepting = JoinSet::new();
        if let Some(Acceptor { listeners, slots, senders }) = acceptor {
            for listener in listeners {
                let listener = Listener::from_std(listener)?;
                accepting.spawn(accept(state.clone(), listener, slots.clone(), senders.clone()));
            }
        }
        let batches = tokio::spawn(run_inline_batches(state.clone(), runner));
        tokio::select! {
            () = serve(state, accepted, accepting) => Ok(()),
            // It ends only by a panic: without it, small requests would be accepted and never answered.
            ended = batches => Err(io::Error::other(format!("small batches are run no more: {ended:?}"))),
        }
    })
}

async fn serve(state: Arc<ServerState>, mut accepted: mpsc::UnboundedReceiver<Accepted>, mut accepting: JoinSet<()>) {
    let mut connections = JoinSet::new();
    let mut phase = state.phase.subscribe();
    loop {
        tokio::select! {
            Some(Accepted { socket, slot }) = accepted.recv() => {
                while connections.try_join_next().is_some() {}
                if let Ok(socket) = Socket::from_std(socket) {
                    let state = state.clone();
                    connections.spawn(async move {
                        serve_connection(state, socket).await;
                        drop(slot);
                    });
                }
            }
            Some(_) = connections.join_next() => {}
            () = wait_for_drain(&mut phase) => break,
        }
    }
    accepting.shutdown().await;
    drop(accepted);
    let Phase::Draining(deadline) = *state.phase.borrow() else { return };
    // The end of the runtime closes the connections that are left at the deadline.
    let drained = async {
        while connections.join_next().await.is_some() {}
        state.drained.complete_one().await;
    };
    drop(tokio::time::timeout_at(deadline.into(), drained).await);
}

async fn accept(
    state: Arc<ServerState>,
    listener: Listener,
    slots: Arc<ConnectionSlots>,
    senders: Vec<mpsc::UnboundedSender<Accepted>>,
) {
    loop {
        match listener.accept().await {
            Ok(socket) => match slots.acquire() {
                Some(slot) => {
                    // Without a receiver, that thread drains already and the socket is closed.
                    if let Ok(socket) = socket.into_std() {
                        drop(senders[slot.io_thread].send(Accepted { socket, slot }));
                    }
                }
                None => state.connection_metrics.full.add(1), // and the socket is closed at once
            },
            // Most likely no file descriptor is free: a connection must end before the next can start.
            Err(_) => tokio::time::sleep(ACCEPT_RETRY).await,
        }
    }
}
