//! The listener, its connections, and their end.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::runtime;
use tokio::task::JoinSet;

use crate::connection;
use crate::inline::run_small;
use crate::runner::Runner;
use crate::server_state::{draining, Core, Phase};

const BACKLOG: u32 = 1024;
/// Threads that inflate what is compressed: one, for it competes with the model and with the thread that reads.
const INFLATING: usize = 1;

/// Listens on every address that the host has, all on one port; 0 takes a free one.
pub fn listen(host: &str, port: u16) -> io::Result<(Vec<StdListener>, u16)> {
    let addresses: Vec<SocketAddr> = std::net::ToSocketAddrs::to_socket_addrs(&(host, port))?.collect();
    let mut listeners = Vec::new();
    let mut bound = port;
    let driver = runtime::Builder::new_current_thread().enable_io().build()?;
    let _guard = driver.enter();
    for mut address in addresses {
        address.set_port(bound);
        let socket = if address.is_ipv4() { tokio::net::TcpSocket::new_v4() } else { tokio::net::TcpSocket::new_v6() }?;
        #[cfg(unix)]
        socket.set_reuseaddr(true)?;
        match socket.bind(address).and_then(|()| socket.listen(BACKLOG)) {
            Ok(listener) => {
                bound = listener.local_addr()?.port();
                listeners.push(listener.into_std()?);
            }
            // A name such as localhost may stand for an address that this machine has not.
            Err(_) if !listeners.is_empty() => {}
            Err(error) => return Err(error),
        }
    }
    Ok((listeners, bound))
}

/// Serves until the phase is Draining and the last call has ended, or the grace has.
pub fn run(core: Arc<Core>, runner: Runner, listeners: Vec<StdListener>) -> io::Result<()> {
    let runtime = runtime::Builder::new_current_thread().enable_all().max_blocking_threads(INFLATING).build()?;
    runtime.block_on(async {
        let listeners = listeners.into_iter().map(TcpListener::from_std).collect::<io::Result<Vec<_>>>()?;
        let small = tokio::spawn(run_small(core.clone(), runner));
        tokio::select! {
            () = serve(core, listeners) => Ok(()),
            // It never ends by itself: without it small requests would wait for ever behind a door that is open.
            ended = small => Err(io::Error::other(format!("small batches are run no more: {ended:?}"))),
        }
    })
}

async fn serve(core: Arc<Core>, listeners: Vec<TcpListener>) {
    let mut connections = JoinSet::new();
    let mut phase = core.phase.subscribe();
    let mut accepting = JoinSet::new();
    let (sender, mut accepted) = tokio::sync::mpsc::channel(64);
    for listener in listeners {
        accepting.spawn(accept(listener, sender.clone()));
    }
    loop {
        tokio::select! {
            Some(socket) = accepted.recv() => {
                while connections.try_join_next().is_some() {}
                if connections.len() < core.limits.connections {
                    connections.spawn(connection::serve(core.clone(), socket));
                } else {
                    core.refused.full.add(1); // and it is closed at once
                }
            }
            Some(_) = connections.join_next() => {}
            () = draining(&mut phase) => break,
        }
    }
    accepting.shutdown().await;
    let Phase::Draining(until) = *core.phase.borrow() else { return };
    // Whoever is left when the grace has run out is cut off with the runtime.
    drop(tokio::time::timeout_at(until.into(), async { while connections.join_next().await.is_some() {} }).await);
}

async fn accept(listener: TcpListener, sender: tokio::sync::mpsc::Sender<TcpStream>) {
    loop {
        match listener.accept().await {
            Ok((socket, _)) => {
                if sender.send(socket).await.is_err() {
                    return;
                }
            }
            // Out of file descriptors, most likely: others must end before the next can begin.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// When a drain that begins now must be over.
pub fn until(grace: f64) -> Instant {
    Instant::now() + Duration::try_from_secs_f64(grace).unwrap_or(Duration::from_secs(3600))
}
