//! A call's request body: its messages, and the timeouts of those that stop arriving.

use std::future::{poll_fn, Future};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{ready, Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, Sleep};

use crate::budget::Usage;
use crate::charges::{IncompleteMessage, OPEN_CALL};
use crate::decompression::Decompressor;
use crate::framing::{Encoding, Framed, MessageDecoder};
use crate::limits::Timeout;
use crate::message::Message;
use crate::status::{Status, DEADLINE_EXCEEDED, INTERNAL};

/// The lowest average rate of a message in bytes a second, after the first `message_timeout`.
const MIN_RATE: usize = 16 << 10;

/// Why a body ends early.
#[derive(Debug)]
pub enum BodyError {
    /// The client has reset the stream, or the connection has ended.
    Cancelled,
    Invalid(Status),
}

impl From<Status> for BodyError {
    fn from(status: Status) -> Self {
        Self::Invalid(status)
    }
}

pub struct RequestBody {
    body: RecvStream,
    decoder: MessageDecoder,
    incomplete: IncompleteMessage,
    decompression: Option<JoinHandle<Result<Message, Status>>>,
    stall_timer: StallTimer,
    /// Whether the time between messages is unlimited, as in a stream.
    idle_allowed: bool,
}

impl RequestBody {
    pub fn new(
        body: RecvStream,
        encoding: Encoding,
        max_message_bytes: usize,
        message_timeout: Timeout,
        idle_allowed: bool,
        usage: Arc<Usage>,
    ) -> Self {
        Self {
            body,
            decoder: MessageDecoder::new(encoding, max_message_bytes),
            incomplete: IncompleteMessage::new(usage),
            decompression: None,
            stall_timer: StallTimer::new(message_timeout),
            idle_allowed,
        }
    }

    /// The next message; `None` at the end of the body. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Message>, BodyError> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Message>, BodyError>> {
        loop {
            if let Some(decompression) = &mut self.decompression {
                let message = ready!(Pin::new(decompression).poll(cx));
                self.decompression = None;
                let message = message.unwrap_or_else(|_| Err(Status::internal()))?;
                return Poll::Ready(self.complete(message));
            }
            match self.decoder.next_message()? {
                Some(Framed::Plain(message)) => return Poll::Ready(self.complete(message)),
                Some(Framed::Compressed(mut decompressor)) => {
                    if decompressor.try_finish_inline()? {
                        return Poll::Ready(self.complete(decompressor.finish()?));
                    }
                    self.incomplete.set(OPEN_CALL + decompressor.compressed_len())?;
                    self.decompression = Some(tokio::spawn(decompress(decompressor, self.incomplete.usage.clone())));
                    continue;
                }
                None => {}
            }
            let Poll::Ready(chunk) = self.body.poll_data(cx) else { return self.poll_stalled(cx) };
            self.stall_timer.restart();
            match chunk {
                Some(Ok(chunk)) => self.push(chunk),
                None if self.decoder.is_empty() => return Poll::Ready(Ok(None)),
                None => return Poll::Ready(Err(truncated().into())),
                Some(Err(_)) => return Poll::Ready(Err(BodyError::Cancelled)),
            }
        }
    }

    fn push(&mut self, chunk: Bytes) {
        drop(self.body.flow_control().release_capacity(chunk.len()));
        self.decoder.push(chunk);
    }

    /// Waits for the next chunk no longer than allowed.
    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Message>, BodyError>> {
        if self.idle_allowed && self.decoder.is_empty() {
            return Poll::Pending;
        }
        self.incomplete.set(OPEN_CALL + self.decoder.len())?;
        self.stall_timer.poll(cx, self.decoder.len()).map(|status| Err(status.into()))
    }

    fn complete(&mut self, message: Message) -> Result<Option<Message>, BodyError> {
        self.stall_timer.reset();
        self.incomplete.set(0)?;
        self.incomplete.usage.record_message();
        Ok(Some(message))
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if let Some(decompression) = &self.decompression {
            decompression.abort(); // unless it has started
        }
    }
}

/// Decompresses on another thread, the messages of a connection in sequence.
async fn decompress(decompressor: Decompressor, usage: Arc<Usage>) -> Result<Message, Status> {
    let permits = usage.wait_to_decompress().await.map_err(|_| Status::internal())?;
    // The other thread holds the permits to its end, because a cancelled call does not stop it.
    let decompressed = tokio::task::spawn_blocking(|| {
        let _permits = permits;
        decompressor.finish()
    });
    decompressed.await.unwrap_or_else(|_| Err(Status::internal()))
}

/// Limits the time without a byte of an expected message, and that of the whole message. A message that is there at once
/// sets no timer.
struct StallTimer {
    timeout: Timeout,
    started_at: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl StallTimer {
    const fn new(timeout: Timeout) -> Self {
        Self { timeout, started_at: None, sleep: None }
    }

    /// For the next message.
    fn reset(&mut self) {
        *self = Self::new(self.timeout);
    }

    /// For the next chunk of the message.
    fn restart(&mut self) {
        self.sleep = None;
    }

    /// Ready when the message is late, of which `received` bytes have arrived.
    fn poll(&mut self, cx: &mut Context<'_>, received: usize) -> Poll<Status> {
        let Some(timeout) = self.timeout.duration() else { return Poll::Pending };
        let Self { started_at, sleep, .. } = self;
        let sleep = sleep.get_or_insert_with(|| {
            let now = Instant::now();
            let message_timeout = timeout + Duration::from_secs((received / MIN_RATE) as u64);
            let deadline = *started_at.get_or_insert(now) + message_timeout;
            Box::pin(tokio::time::sleep_until((now + timeout).min(deadline)))
        });
        ready!(sleep.as_mut().poll(cx));
        let message = format!("message: not whole after {} seconds", self.timeout);
        Poll::Ready(Status::new(DEADLINE_EXCEEDED, message))
    }
}

fn truncated() -> Status {
    Status::new(INTERNAL, "message: ends before the length that its prefix gives")
}
