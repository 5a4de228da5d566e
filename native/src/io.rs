//! The byte stream of a connection, plain or TLS, and a scan of its frames.
//!
//! h2 answers pings without reporting them, so they are counted here, in the same way as in gRPC's C core. The scan reads
//! the first five bytes of each frame without a change.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;
use std::task::{ready, Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::BufReader;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;
use tokio_rustls::server::TlsStream;

use crate::authority::AuthorityFilter;
use crate::budget::Usage;
use crate::limits::Timeout;

const MAX_PING_STRIKES: u32 = 2;

const PREFACE: usize = 24;
const FRAME_HEADER: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
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
}

/// The findings of the scan, for the monitor of the connection.
#[derive(Debug, Default)]
pub struct ConnectionActivity {
    /// HEADERS frames of both directions: calls that started, and replies that started or ended.
    pub headers: AtomicU64,
    pub too_many_pings: Notify,
}

pub struct ObservedIo {
    stream: MaybeTlsStream,
    received: FrameScanner,
    sent: FrameScanner,
    /// Of a Unix domain socket.
    authority: Option<AuthorityFilter>,
    pings: PingPolicy,
    activity: Arc<ConnectionActivity>,
    usage: Arc<Usage>,
}

impl ObservedIo {
    pub fn new(
        stream: MaybeTlsStream,
        activity: Arc<ConnectionActivity>,
        ping_interval: Timeout,
        usage: Arc<Usage>,
    ) -> Self {
        let received = FrameScanner { skip: PREFACE, ..FrameScanner::default() };
        let authority = matches!(stream, MaybeTlsStream::Unix(_)).then(AuthorityFilter::default);
        Self {
            stream,
            received,
            sent: FrameScanner::default(),
            authority,
            pings: PingPolicy::new(ping_interval.duration().unwrap_or_default()),
            activity,
            usage,
        }
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

/// Limits a client's pings, by the rules of gRPC's C core.
#[derive(Debug)]
struct PingPolicy {
    /// The minimum between two pings, unless something was sent to the client between them.
    interval: Duration,
    last: Option<Instant>,
    strikes: u32,
}

impl PingPolicy {
    fn new(interval: Duration) -> Self {
        Self { interval, last: None, strikes: 0 }
    }

    /// Counts a ping; returns whether it is one too many.
    fn record(&mut self, now: Instant) -> bool {
        let is_early = self.last.replace(now).is_some_and(|last| now - last < self.interval);
        self.strikes += u32::from(is_early);
        is_early && self.strikes > MAX_PING_STRIKES
    }

    fn reset(&mut self) {
        (self.last, self.strikes) = (None, 0);
    }
}

/// Finds the frames of one direction.
#[derive(Debug, Default)]
struct FrameScanner {
    skip: usize,
    header: [u8; FRAME_HEADER],
    len: usize,
}

impl FrameScanner {
    /// Scans the next bytes; calls `on_frame` with each frame's type, flags and length.
    fn scan(&mut self, mut bytes: &[u8], mut on_frame: impl FnMut(u8, u8, usize)) {
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let (header, rest) = bytes.split_at(bytes.len().min(FRAME_HEADER - self.len));
            self.header[self.len..][..header.len()].copy_from_slice(header);
            self.len += header.len();
            if self.len < FRAME_HEADER {
                return;
            }
            let [a, b, c, kind, flags, ..] = self.header;
            self.skip = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
            self.len = 0;
            bytes = rest;
            on_frame(kind, flags, self.skip);
        }
    }
}

impl AsyncRead for ObservedIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(match &mut self.stream {
            MaybeTlsStream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            MaybeTlsStream::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            MaybeTlsStream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        })?;
        if let Some(filter) = &mut self.authority {
            filter.rewrite(&mut buf.filled_mut()[before..]);
        }
        self.scan_received(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ObservedIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(match &mut self.stream {
            MaybeTlsStream::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            MaybeTlsStream::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            MaybeTlsStream::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        })?;
        self.scan_sent(&buf[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(match &mut self.stream {
            MaybeTlsStream::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            MaybeTlsStream::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            MaybeTlsStream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        })?;
        let mut rest = written;
        for buf in bufs {
            let n = rest.min(buf.len());
            self.scan_sent(&buf[..n]);
            rest -= n;
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            MaybeTlsStream::Plain(stream) => stream.is_write_vectored(),
            MaybeTlsStream::Unix(stream) => stream.is_write_vectored(),
            MaybeTlsStream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            MaybeTlsStream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            MaybeTlsStream::Unix(stream) => Pin::new(stream).poll_flush(cx),
            MaybeTlsStream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            MaybeTlsStream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            MaybeTlsStream::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            MaybeTlsStream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_frame_is_found_whatever_the_chunks(
            frames in prop::collection::vec((any::<u8>(), any::<u8>(), 0..70_000usize), 0..8),
            size in 1..20_000usize,
        ) {
            let mut bytes = Vec::new();
            for (kind, flags, len) in &frames {
                bytes.extend_from_slice(&u32::try_from(*len).unwrap().to_be_bytes()[1..]);
                bytes.extend_from_slice(&[*kind, *flags, 0, 0, 0, 1]);
                bytes.resize(bytes.len() + len, 0xaa);
            }
            let (mut found, mut scanner) = (Vec::new(), FrameScanner::default());
            for chunk in bytes.chunks(size) {
                scanner.scan(chunk, |kind, flags, _| found.push((kind, flags)));
            }
            let expected: Vec<_> = frames.iter().map(|(kind, flags, _)| (*kind, *flags)).collect();
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn frequent_pings_are_too_many_unless_something_is_sent_between_them() {
        let (mut pings, start) = (PingPolicy::new(Duration::from_secs(10)), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!([0, 10, 20, 30, 40].iter().all(|seconds| !pings.record(at(*seconds))));
        assert_eq!([41, 42, 43].map(|seconds| pings.record(at(seconds))), [false, false, true]);
        pings.reset();
        assert_eq!([44, 45, 46, 47].map(|seconds| pings.record(at(seconds))), [false, false, false, true]);
    }
}
