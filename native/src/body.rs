//! The messages of a call's body, as they come or stop coming.

use std::future::{poll_fn, Future};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{ready, Context, Poll};
use std::time::Duration;

use h2::RecvStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, Sleep};

use crate::budget::{Unfinished, Usage, CALL};
use crate::decompression::Inflating;
use crate::framing::{Encoding, Framed, Frames};
use crate::protobuf::Message;
use crate::server_state::Seconds;
use crate::status::{Refusal, DEADLINE_EXCEEDED, INTERNAL};

/// A message that comes slower than this on the whole is given up: bytes a second, past the first `stall` seconds.
const SLOWEST: usize = 16 << 10;

/// What ends a body early.
#[derive(Debug)]
pub enum Broken {
    /// The caller has left, or its connection.
    Gone,
    Refused(Refusal),
}

pub struct Messages {
    body: RecvStream,
    frames: Frames,
    unfinished: Unfinished,
    inflating: Option<JoinHandle<Result<Message, Refusal>>>,
    patience: Patience,
    /// Between its messages a stream may rest for as long as it likes.
    may_rest: bool,
}

impl Messages {
    pub fn new(
        body: RecvStream,
        encoding: Encoding,
        most: usize,
        stall: Seconds,
        may_rest: bool,
        usage: Arc<Usage>,
    ) -> Self {
        let unfinished = Unfinished::new(usage);
        let patience = Patience { time: stall, began: None, since_last: None };
        Self { body, frames: Frames::new(encoding, most), unfinished, inflating: None, patience, may_rest }
    }

    /// The next message; nothing at the end. May be dropped and asked again.
    pub async fn next(&mut self) -> Result<Option<Message>, Broken> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Message>, Broken>> {
        loop {
            if let Some(inflating) = &mut self.inflating {
                let inflated = ready!(Pin::new(inflating).poll(cx));
                self.inflating = None;
                return Poll::Ready(self.whole(inflated.unwrap_or_else(|_| Err(fault())).map_err(Broken::Refused)?));
            }
            match self.frames.take().map_err(Broken::Refused)? {
                Some(Framed::Plain(message)) => return Poll::Ready(self.whole(message)),
                Some(Framed::Compressed(mut inflating)) => {
                    if inflating.is_whole_soon().map_err(Broken::Refused)? {
                        return Poll::Ready(self.whole(inflating.finish().map_err(Broken::Refused)?));
                    }
                    self.unfinished.set(CALL + inflating.input()).map_err(Broken::Refused)?;
                    self.inflating = Some(tokio::spawn(inflate(inflating, self.unfinished.usage.clone())));
                    continue;
                }
                None => {}
            }
            let Poll::Ready(piece) = self.body.poll_data(cx) else {
                if self.may_rest && self.frames.is_empty() {
                    return Poll::Pending;
                }
                self.unfinished.set(CALL + self.frames.len()).map_err(Broken::Refused)?;
                return self.patience.poll_over(cx, self.frames.len()).map(|sentence| Err(Broken::Refused(sentence)));
            };
            self.patience.since_last = None;
            match piece {
                Some(Ok(piece)) => {
                    drop(self.body.flow_control().release_capacity(piece.len()));
                    self.frames.push(piece);
                }
                None if self.frames.is_empty() => return Poll::Ready(Ok(None)),
                None => return Poll::Ready(Err(Broken::Refused(cut_short()))),
                Some(Err(_)) => return Poll::Ready(Err(Broken::Gone)),
            }
        }
    }

    fn whole(&mut self, message: Message) -> Result<Option<Message>, Broken> {
        self.patience = Patience { time: self.patience.time, began: None, since_last: None };
        self.unfinished.set(0).map_err(Broken::Refused)?;
        self.unfinished.usage.whole();
        Ok(Some(message))
    }
}

impl Drop for Messages {
    fn drop(&mut self) {
        if let Some(inflating) = &self.inflating {
            inflating.abort(); // where it has not begun
        }
    }
}

/// On a thread of its own, one of a connection after the other.
async fn inflate(inflating: Inflating, usage: Arc<Usage>) -> Result<Message, Refusal> {
    let _turn = usage.inflating.acquire().await.map_err(|_| fault())?;
    tokio::task::spawn_blocking(|| inflating.finish()).await.unwrap_or_else(|_| Err(fault()))
}

/// How long a message that is due may leave us without another byte, and how long it may take on the whole; where all
/// is here at once, no timer is set.
struct Patience {
    time: Seconds,
    began: Option<Instant>,
    since_last: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    /// `received` bytes of the message are here.
    fn poll_over(&mut self, cx: &mut Context<'_>, received: usize) -> Poll<Refusal> {
        let Some(time) = self.time.bound() else { return Poll::Pending };
        let Self { began, since_last, .. } = self;
        let sleep = since_last.get_or_insert_with(|| {
            let now = Instant::now();
            let whole = time + Duration::from_secs((received / SLOWEST) as u64);
            Box::pin(tokio::time::sleep_until((now + time).min(*began.get_or_insert(now) + whole)))
        });
        ready!(sleep.as_mut().poll(cx));
        Poll::Ready(Refusal::bare(DEADLINE_EXCEEDED, format!("message: not whole after {} seconds", self.time)))
    }
}

fn cut_short() -> Refusal {
    Refusal::bare(INTERNAL, "message: ends before the length that its prefix gives")
}

fn fault() -> Refusal {
    Refusal::bare(INTERNAL, "internal error")
}
