//! The messages of a call's body, as they come or stop coming.

use std::future::{poll_fn, Future};
use std::pin::Pin;
use std::task::{ready, Context, Poll};

use h2::RecvStream;
use tokio::time::Sleep;

use crate::core::{Limits, Seconds};
use crate::frames::{Encoding, Frames};
use crate::status::{Refusal, DEADLINE_EXCEEDED};
use crate::wire::Message;

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
    patience: Patience,
    /// Between its messages a stream may rest for as long as it likes.
    may_rest: bool,
}

impl Messages {
    pub const fn new(body: RecvStream, encoding: Encoding, limits: &Limits, may_rest: bool) -> Self {
        let frames = Frames::new(encoding, limits.message);
        Self { body, frames, patience: Patience { time: limits.stall, since_last: None }, may_rest }
    }

    /// The next message; nothing at the end. May be dropped and asked again.
    pub async fn next(&mut self) -> Result<Option<Message>, Broken> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Message>, Broken>> {
        loop {
            if let Some(message) = self.frames.take().map_err(Broken::Refused)? {
                return Poll::Ready(Ok(Some(message)));
            }
            let Poll::Ready(piece) = self.body.poll_data(cx) else {
                if !(self.may_rest && self.frames.is_empty()) {
                    ready!(self.patience.poll_over(cx));
                    return Poll::Ready(Err(Broken::Refused(stalled(self.patience.time))));
                }
                return Poll::Pending;
            };
            self.patience.since_last = None;
            match piece {
                Some(Ok(piece)) => {
                    drop(self.body.flow_control().release_capacity(piece.len()));
                    self.frames.push(piece);
                }
                None if self.frames.is_empty() => return Poll::Ready(Ok(None)),
                None | Some(Err(_)) => return Poll::Ready(Err(Broken::Gone)),
            }
        }
    }
}

/// How long a message that is due may leave us without another byte; where all is here at once, no timer is set.
struct Patience {
    time: Seconds,
    since_last: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(time) = self.time.bound() else { return Poll::Pending };
        self.since_last.get_or_insert_with(|| Box::pin(tokio::time::sleep(time))).as_mut().poll(cx)
    }
}

fn stalled(time: Seconds) -> Refusal {
    Refusal::bare(DEADLINE_EXCEEDED, format!("no byte of the message has come for {time} seconds"))
}
