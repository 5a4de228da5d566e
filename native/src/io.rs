//! The byte stream of a connection, plain or TLS, and a scan of its frames.
//!
//! h2 answers pings without reporting them, so they are counted here, in the same way as in gRPC's C core. The scan reads
//! the first five bytes of each frame without a change.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{ready, Context, Poll};
use std::time::Instant;

use bytes::{Buf, BytesMut};
use tokio::io::BufReader;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;
use tokio_rustls::server::TlsStream;

use crate::authority::AuthorityFilter;
use crate::budget::Usage;
use crate::frame_scanner::{FrameScanner, PingPolicy, HEADERS};
use crate::limits::Timeout;

/// Unsent bytes above which writes wait; one write may exceed it by `MAX_WRITE`.
const MAX_UNSENT: usize = 48 << 10;
const MAX_WRITE: usize = 32 << 10;
const DATA: u8 = 0;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const ACK: u8 = 1;

pub enum MaybeTlsStream {
    Plain(BufReader<TcpStream>),
    Unix(BufReader<UnixStream>),
    Tls(Box<TlsStream<BufReader<TcpStream>>>),
}

impl MaybeTlsStream {
    /// Whether the client has presented a valid certificate.
    pub fn has_client_certificate(&self) -> bool {
        matches!(self, Self::Tls(stream) if stream.get_ref().1.peer_certificates().is_some())
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }
}

/// The findings of the scan, for the monitor of the connection.
#[derive(Debug, Default)]
pub struct ConnectionActivity {
    /// HEADERS frames of both directions: calls that started, and replies that started or ended.
    pub headers: AtomicU64,
    pub too_many_pings: Notify,
}

/// The stream of h2. If there is a `WriteFlusher`, its poll sends h2's writes. h2 alone makes a system call for each reply
/// of more than 256 bytes, and for each frame of a long one.
pub struct ObservedIo(Arc<Mutex<ObservedStream>>);

impl ObservedIo {
    pub fn new(
        stream: MaybeTlsStream,
        activity: Arc<ConnectionActivity>,
        ping_interval: Timeout,
        usage: Arc<Usage>,
    ) -> Self {
        let authority = matches!(stream, MaybeTlsStream::Unix(_)).then(AuthorityFilter::default);
        Self(Arc::new(Mutex::new(ObservedStream {
            stream,
            unsent: BytesMut::new(),
            is_corked: false,
            received: FrameScanner::after_preface(),
            sent: FrameScanner::default(),
            authority,
            pings: PingPolicy::new(ping_interval.duration().unwrap_or_default()),
            activity,
            usage,
        })))
    }

    /// From its first poll on, only its polls send, unless more than `MAX_UNSENT` is written.
    pub fn flusher(&self) -> WriteFlusher {
        WriteFlusher(self.0.clone())
    }

    fn lock(&self) -> MutexGuard<'_, ObservedStream> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends the output of h2.
pub struct WriteFlusher(Arc<Mutex<ObservedStream>>);

impl WriteFlusher {
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        stream.is_corked = true;
        stream.poll_send(cx)
    }
}

struct ObservedStream {
    stream: MaybeTlsStream,
    /// Written by h2 and not yet to the stream.
    unsent: BytesMut,
    is_corked: bool,
    received: FrameScanner,
    sent: FrameScanner,
    /// Of a Unix domain socket.
    authority: Option<AuthorityFilter>,
    pings: PingPolicy,
    activity: Arc<ConnectionActivity>,
    usage: Arc<Usage>,
}

impl ObservedStream {
    /// Writes all that is unsent.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            let written = ready!(self.stream.poll_write(cx, &self.unsent))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let mut unsent = std::mem::take(&mut self.unsent);
            self.scan_sent(&unsent[..written]);
            unsent.advance(written);
            if !unsent.is_empty() {
                self.unsent = unsent; // otherwise it is freed: an idle connection holds no buffer
            }
        }
        self.stream.poll_flush(cx)
    }

    fn scan_received(&mut self, bytes: &[u8]) {
        let (activity, pings) = (&self.activity, &mut self.pings);
        self.received.scan(bytes, |kind, flags, _| match kind {
            HEADERS => drop(activity.headers.fetch_add(1, Relaxed)),
            PING if flags & ACK == 0 && pings.record(Instant::now()) => activity.too_many_pings.notify_one(),
            _ => {}
        });
    }

    fn scan_sent(&mut self, bytes: &[u8]) {
        let (activity, pings) = (&self.activity, &mut self.pings);
        let mut reply_bytes = 0;
        self.sent.scan(bytes, |kind, _, len| {
            match kind {
                HEADERS => drop(activity.headers.fetch_add(1, Relaxed)),
                DATA => reply_bytes += len,
                _ => {}
            }
            if matches!(kind, DATA | HEADERS | WINDOW_UPDATE) {
                pings.reset();
            }
        });
        if reply_bytes > 0 {
            self.usage.record_sent(reply_bytes);
        }
    }
}

impl AsyncRead for ObservedIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let mut stream = self.lock();
        ready!(match &mut stream.stream {
            MaybeTlsStream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            MaybeTlsStream::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            MaybeTlsStream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        })?;
        if let Some(filter) = &mut stream.authority {
            filter.rewrite(&mut buf.filled_mut()[before..]);
        }
        stream.scan_received(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ObservedIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut stream = self.lock();
        if stream.unsent.len() >= MAX_UNSENT {
            ready!(stream.poll_send(cx))?;
        }
        let mut written = 0;
        for buf in bufs {
            let n = buf.len().min(MAX_WRITE - written);
            stream.unsent.extend_from_slice(&buf[..n]);
            written += n;
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut stream = self.lock();
        if stream.is_corked {
            return Poll::Ready(Ok(()));
        }
        stream.poll_send(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut stream = self.lock();
        ready!(stream.poll_send(cx))?;
        match &mut stream.stream {
            MaybeTlsStream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            MaybeTlsStream::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            MaybeTlsStream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;
    use std::future::poll_fn;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// A stream as h2 has it, and its peer.
    async fn connect() -> (ObservedIo, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let stream = MaybeTlsStream::Plain(BufReader::new(listener.accept().await.unwrap().0));
        let usage = Budget::new(0).register(true).0.clone();
        (ObservedIo::new(stream, Arc::default(), Timeout::default(), usage), peer)
    }

    async fn read(peer: &mut TcpStream, len: usize) -> Vec<u8> {
        let mut received = vec![0; len];
        peer.read_exact(&mut received).await.unwrap();
        received
    }

    #[tokio::test]
    async fn writes_are_sent_together_once_there_is_a_flusher() {
        let (mut io, mut peer) = connect().await;
        io.write_all(b"at once").await.unwrap();
        io.flush().await.unwrap();
        assert_eq!(read(&mut peer, 7).await, b"at once");
        let flusher = io.flusher();
        poll_fn(|cx| flusher.poll(cx)).await.unwrap();
        for part in [b"one", b"two"] {
            io.write_all(part).await.unwrap();
            io.flush().await.unwrap();
        }
        assert_eq!(io.lock().unsent, &b"onetwo"[..]);
        poll_fn(|cx| flusher.poll(cx)).await.unwrap();
        assert_eq!(read(&mut peer, 6).await, b"onetwo");
        assert_eq!(io.lock().unsent.capacity(), 0);
    }

    #[tokio::test]
    async fn no_more_is_kept_than_allowed_and_the_end_sends_all() {
        let (mut io, mut peer) = connect().await;
        let flusher = io.flusher();
        poll_fn(|cx| flusher.poll(cx)).await.unwrap();
        let reader = tokio::spawn(async move {
            let mut received = Vec::new();
            peer.read_to_end(&mut received).await.unwrap();
            received
        });
        let sent: Vec<u8> = (0..=250).cycle().take(5_000_000).collect();
        for part in sent.chunks(MAX_WRITE) {
            io.write_all(part).await.unwrap();
            assert!(io.lock().unsent.len() <= MAX_UNSENT + MAX_WRITE);
        }
        io.shutdown().await.unwrap();
        drop((io, flusher));
        assert_eq!(reader.await.unwrap(), sent);
    }
}
