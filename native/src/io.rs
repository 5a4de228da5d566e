//! A connection as its bytes go by: plain or under TLS, with a look at which frames they are.
//!
//! h2 answers pings without a word to us, so they are counted here, as the C core of gRPC counts them. Nothing is kept
//! or changed: of each frame its first five bytes are read.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;
use std::task::{ready, Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::BufReader;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_rustls::server::TlsStream;

use crate::budget::Usage;
use crate::server_state::Seconds;

const MOST_STRIKES: u32 = 2;

const PREFACE: usize = 24;
const FRAME_HEAD: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const ACK: u8 = 1;

pub enum Socket {
    Plain(BufReader<TcpStream>),
    Tls(Box<TlsStream<BufReader<TcpStream>>>),
}

impl Socket {
    /// Whether the peer has shown a certificate that is known here.
    pub fn has_certificate(&self) -> bool {
        matches!(self, Self::Tls(socket) if socket.get_ref().1.peer_certificates().is_some())
    }
}

/// What has been seen of a peer, for those who decide whether its connection goes on.
#[derive(Debug, Default)]
pub struct Conduct {
    /// Calls that began and replies that ended: whether anything happens here.
    pub headers: AtomicU64,
    pub pings_too_often: Notify,
}

pub struct Peer {
    socket: Socket,
    received: Frames,
    sent: Frames,
    pings: Pings,
    conduct: Arc<Conduct>,
    usage: Arc<Usage>,
}

impl Peer {
    pub fn new(socket: Socket, conduct: Arc<Conduct>, ping_interval: Seconds, usage: Arc<Usage>) -> Self {
        let received = Frames { skip: PREFACE, ..Frames::default() };
        Self {
            socket,
            received,
            sent: Frames::default(),
            pings: Pings::new(ping_interval.bound().unwrap_or_default()),
            conduct,
            usage,
        }
    }

    fn receive(&mut self, bytes: &[u8]) {
        let (conduct, pings) = (&self.conduct, &mut self.pings);
        self.received.pass(bytes, |kind, flags, _| match kind {
            HEADERS => drop(conduct.headers.fetch_add(1, Relaxed)),
            PING if flags & ACK == 0 && pings.one_more(Instant::now()) => conduct.pings_too_often.notify_one(),
            _ => {}
        });
    }

    fn send(&mut self, bytes: &[u8]) {
        let (conduct, pings) = (&self.conduct, &mut self.pings);
        let mut replied = 0;
        self.sent.pass(bytes, |kind, _, len| {
            match kind {
                HEADERS => drop(conduct.headers.fetch_add(1, Relaxed)),
                DATA => replied += len,
                _ => {}
            }
            if matches!(kind, DATA | HEADERS | WINDOW_UPDATE) {
                pings.forgive();
            }
        });
        if replied > 0 {
            self.usage.send(replied);
        }
    }
}

/// Pings of one peer that came too soon; the intervals and their forgiveness are those of gRPC's C core.
#[derive(Debug)]
struct Pings {
    /// Between two pings, with nothing sent to the peer in between.
    interval: Duration,
    last: Option<Instant>,
    strikes: u32,
}

impl Pings {
    fn new(interval: Duration) -> Self {
        Self { interval, last: None, strikes: 0 }
    }

    /// Whether it is one too many.
    fn one_more(&mut self, now: Instant) -> bool {
        let is_early = self.last.replace(now).is_some_and(|last| now - last < self.interval);
        self.strikes += u32::from(is_early);
        is_early && self.strikes > MOST_STRIKES
    }

    fn forgive(&mut self) {
        (self.last, self.strikes) = (None, 0);
    }
}

/// Finds the frames of one direction.
#[derive(Debug, Default)]
struct Frames {
    skip: usize,
    head: [u8; FRAME_HEAD],
    len: usize,
}

impl Frames {
    /// Goes through the next bytes; `seen` hears of each frame's type, flags and length.
    fn pass(&mut self, mut bytes: &[u8], mut seen: impl FnMut(u8, u8, usize)) {
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let (taken, rest) = bytes.split_at(bytes.len().min(FRAME_HEAD - self.len));
            self.head[self.len..][..taken.len()].copy_from_slice(taken);
            self.len += taken.len();
            if self.len < FRAME_HEAD {
                return;
            }
            let [a, b, c, kind, flags, ..] = self.head;
            self.skip = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
            self.len = 0;
            bytes = rest;
            seen(kind, flags, self.skip);
        }
    }
}

impl AsyncRead for Peer {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(match &mut self.socket {
            Socket::Plain(socket) => Pin::new(socket).poll_read(cx, buf),
            Socket::Tls(socket) => Pin::new(socket).poll_read(cx, buf),
        })?;
        self.receive(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Peer {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(match &mut self.socket {
            Socket::Plain(socket) => Pin::new(socket).poll_write(cx, buf),
            Socket::Tls(socket) => Pin::new(socket).poll_write(cx, buf),
        })?;
        self.send(&buf[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(match &mut self.socket {
            Socket::Plain(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
            Socket::Tls(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
        })?;
        let mut rest = written;
        for buf in bufs {
            let n = rest.min(buf.len());
            self.send(&buf[..n]);
            rest -= n;
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.socket {
            Socket::Plain(socket) => socket.is_write_vectored(),
            Socket::Tls(socket) => socket.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Socket::Plain(socket) => Pin::new(socket).poll_flush(cx),
            Socket::Tls(socket) => Pin::new(socket).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Socket::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Socket::Tls(socket) => Pin::new(socket).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_frame_is_seen_however_the_bytes_are_cut(
            frames in prop::collection::vec((any::<u8>(), any::<u8>(), 0..70_000usize), 0..8),
            size in 1..20_000usize,
        ) {
            let mut bytes = Vec::new();
            for (kind, flags, len) in &frames {
                bytes.extend_from_slice(&u32::try_from(*len).unwrap().to_be_bytes()[1..]);
                bytes.extend_from_slice(&[*kind, *flags, 0, 0, 0, 1]);
                bytes.resize(bytes.len() + len, 0xaa);
            }
            let (mut found, mut walker) = (Vec::new(), Frames::default());
            for piece in bytes.chunks(size) {
                walker.pass(piece, |kind, flags, _| found.push((kind, flags)));
            }
            let expected: Vec<_> = frames.iter().map(|(kind, flags, _)| (*kind, *flags)).collect();
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn pings_are_held_against_a_peer_where_they_come_too_often_and_nothing_is_sent_between() {
        let (mut pings, start) = (Pings::new(Duration::from_secs(10)), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!([0, 10, 20, 30, 40].iter().all(|seconds| !pings.one_more(at(*seconds))));
        assert_eq!([41, 42, 43].map(|seconds| pings.one_more(at(seconds))), [false, false, true]);
        pings.forgive();
        assert_eq!([44, 45, 46, 47].map(|seconds| pings.one_more(at(seconds))), [false, false, false, true]);
    }
}
