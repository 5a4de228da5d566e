//! The sockets that the server listens on and accepts: TCP, and Unix domain sockets.

use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener, TcpStream as StdTcpStream};
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixSocket, UnixStream};
use tokio::runtime;

/// A listening socket that belongs to no runtime yet.
#[derive(Debug)]
pub enum StdListener {
    Tcp(StdTcpListener),
    Unix(StdUnixListener),
}

#[derive(Debug)]
pub enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// An accepted connection.
#[derive(Debug)]
pub enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Listener {
    /// Registers the socket with the current runtime.
    pub fn from_std(listener: StdListener) -> io::Result<Self> {
        Ok(match listener {
            StdListener::Tcp(listener) => Self::Tcp(TcpListener::from_std(listener)?),
            StdListener::Unix(listener) => Self::Unix(UnixListener::from_std(listener)?),
        })
    }

    pub async fn accept(&self) -> io::Result<Socket> {
        Ok(match self {
            Self::Tcp(listener) => Socket::Tcp(listener.accept().await?.0),
            Self::Unix(listener) => Socket::Unix(listener.accept().await?.0),
        })
    }
}

/// An accepted connection on its way to its I/O thread.
#[derive(Debug)]
pub enum StdSocket {
    Tcp(StdTcpStream),
    Unix(StdUnixStream),
}

impl Socket {
    pub fn into_std(self) -> io::Result<StdSocket> {
        Ok(match self {
            Self::Tcp(socket) => StdSocket::Tcp(socket.into_std()?),
            Self::Unix(socket) => StdSocket::Unix(socket.into_std()?),
        })
    }

    /// Registers the socket with the current runtime.
    pub fn from_std(socket: StdSocket) -> io::Result<Self> {
        Ok(match socket {
            StdSocket::Tcp(socket) => Self::Tcp(TcpStream::from_std(socket)?),
            StdSocket::Unix(socket) => Self::Unix(UnixStream::from_std(socket)?),
        })
    }

    /// The client as gRPC writes it; of a Unix domain socket `unix:uid=` and the user, by the kernel's word.
    pub fn peer(&self) -> String {
        match self {
            Self::Tcp(socket) => match socket.peer_addr() {
                Ok(SocketAddr::V4(address)) => format!("ipv4:{address}"),
                Ok(SocketAddr::V6(address)) => format!("ipv6:[{}]:{}", address.ip(), address.port()),
                Err(_) => String::new(),
            },
            Self::Unix(socket) => socket.peer_cred().map_or_else(
                |_| String::new(), // no client whose user is unknown is taken for the server's
                |credentials| format!("unix:uid={}", credentials.uid()),
            ),
        }
    }
}

/// Listens on a path, which must be free.
pub fn listen_unix(path: &str, backlog: u32) -> io::Result<StdListener> {
    let runtime = runtime::Builder::new_current_thread().enable_io().build()?;
    let _guard = runtime.enter();
    let socket = UnixSocket::new_stream()?;
    socket.bind(path)?;
    Ok(StdListener::Unix(socket.listen(backlog)?.into_std()?))
}
