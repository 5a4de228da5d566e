//! The listening sockets, the connections that they accept, and the end of both.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::connection::serve_connection;
use crate::drain::{wait_for_drain, Phase};
use crate::inline::run_inline_batches;
use crate::runner::Runner;
use crate::server_state::ServerState;

const BACKLOG: u32 = 1024;
/// Accepted connections that wait for their task.
const ACCEPTED: usize = 64;
/// The pause after a failed accept.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// One, because decompression competes with the model and the I/O thread.
const DECOMPRESSION_THREADS: usize = 1;

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
                listeners.push(listener.into_std()?);
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

/// Serves until a drain has ended: with the last call, or with its grace.
pub fn run(state: Arc<ServerState>, runner: Runner, listeners: Vec<StdListener>) -> io::Result<()> {
    let runtime =
        runtime::Builder::new_current_thread().enable_all().max_blocking_threads(DECOMPRESSION_THREADS).build()?;
    runtime.block_on(async {
        let listeners = listeners.into_iter().map(TcpListener::from_std).collect::<io::Result<Vec<_>>>()?;
        let batches = tokio::spawn(run_inline_batches(state.clone(), runner));
        tokio::select! {
            () = serve(state, listeners) => Ok(()),
            // It ends only by a panic: without it, small requests would be accepted and never answered.
            ended = batches => Err(io::Error::other(format!("small batches are run no more: {ended:?}"))),
        }
    })
}

async fn serve(state: Arc<ServerState>, listeners: Vec<TcpListener>) {
    let mut connections = JoinSet::new();
    let mut phase = state.phase.subscribe();
    let mut accepting = JoinSet::new();
    let (sender, mut accepted) = mpsc::channel(ACCEPTED);
    for listener in listeners {
        accepting.spawn(accept(listener, sender.clone()));
    }
    loop {
        tokio::select! {
            Some(socket) = accepted.recv() => {
                while connections.try_join_next().is_some() {}
                if connections.len() < state.limits.connections {
                    connections.spawn(serve_connection(state.clone(), socket));
                } else {
                    state.connection_metrics.full.add(1); // and the socket is closed at once
                }
            }
            Some(_) = connections.join_next() => {}
            () = wait_for_drain(&mut phase) => break,
        }
    }
    accepting.shutdown().await;
    let Phase::Draining(deadline) = *state.phase.borrow() else { return };
    // The end of the runtime closes the connections that are left at the deadline.
    let drained = async { while connections.join_next().await.is_some() {} };
    drop(tokio::time::timeout_at(deadline.into(), drained).await);
}

async fn accept(listener: TcpListener, sender: mpsc::Sender<TcpStream>) {
    loop {
        match listener.accept().await {
            Ok((socket, _)) => {
                if sender.send(socket).await.is_err() {
                    return;
                }
            }
            // Most likely no file descriptor is free: a connection must end before the next can start.
            Err(_) => tokio::time::sleep(ACCEPT_RETRY).await,
        }
    }
}
