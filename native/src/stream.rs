//! A bidirectional stream: its messages to whoever answers them, the answers back in order.

use std::collections::VecDeque;
use std::future::{pending, poll_fn};
use std::sync::Arc;
use std::time::Instant;

use bytes::{Buf, Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, SendStream};
use tokio::sync::{oneshot, watch};

use crate::body::{Broken, Messages};
use crate::budget::{Hold, Reserved, Unsent, Usage};
use crate::call::{framed, sleep_until, understood};
use crate::connection::LAST_BYTES;
use crate::decode::{put_refusal, Asked};
use crate::metrics::nanos;
use crate::protobuf::Message;
use crate::queue::Item;
use crate::responder::{head, send_end, Call, Outcome, Reply, Trouble};
use crate::server_state::{draining, Kind, Phase};
use crate::status::{Refusal, DEADLINE_EXCEEDED, UNAVAILABLE};

/// So many of the largest batches' worth of images of one stream may wait for their answers at a time.
const BATCHES_AHEAD: usize = 2;
/// Replies that are ready together go out together, up to about this many bytes.
const TOGETHER: usize = 16 * 1024;
/// In steps of so many bytes a stream's room for replies grows and shrinks.
const ROOM_STEP: usize = 16 << 10;

/// Nobody reads any more.
struct Gone;

/// How a stream came to its end.
enum Ended {
    Well,
    Refused(Trouble),
    Broken(Refusal),
    /// Within a reply that its caller does not read.
    Unread(usize),
}

/// A stream with one reply a message, in order.
pub struct Stream {
    call: Call,
    way: Way,
    /// The answers that are due, in the order of their messages.
    due: Due,
    /// A Python handler has the last message: what comes after it waits, since it may end the stream.
    in_doubt: bool,
    /// An error is no reply within the stream, but its end.
    ends_on_error: bool,
}

/// The way back: before its first message and after.
enum Way {
    Closed(SendResponse<Unsent>),
    Open(SendStream<Unsent>),
}

impl Stream {
    pub fn new(call: Call, respond: SendResponse<Unsent>, ends_on_error: bool) -> Self {
        let due = Due::new(call.usage.clone());
        Self { call, way: Way::Closed(respond), due, in_doubt: false, ends_on_error }
    }

    pub async fn serve(mut self, mut messages: Messages) {
        let Ok(ended) = self.answer_all(&mut messages).await else { return };
        let Self { call, way, .. } = self;
        let trailers = match ended {
            Ended::Well => call.succeed(),
            Ended::Refused(trouble) => call.refuse(&trouble),
            Ended::Broken(refusal) => call.end(refusal),
            Ended::Unread(code) => {
                drop(call.end(Refusal::bare(code, "")));
                return way.reset(); // half a message cannot be followed by a status
            }
        };
        match way {
            Way::Closed(respond) => send_end(respond, trailers),
            Way::Open(mut stream) => drop(stream.send_trailers(trailers)),
        }
    }

    async fn answer_all(&mut self, messages: &mut Messages) -> Result<Ended, Gone> {
        let mut phase = self.call.core.phase.subscribe();
        let usage = self.call.usage.clone();
        let mut is_reading = true;
        loop {
            if self.due.is_empty() && !is_reading {
                return Ok(Ended::Well);
            }
            let has_room = usage.has_room(0);
            let may_read = is_reading && has_room && self.may_read_ahead();
            let is_idle = self.due.is_empty();
            tokio::select! {
                biased;
                // Reading first: what has arrived already becomes one batch.
                message = messages.next(), if may_read => match message {
                    Ok(Some(message)) => if let Err(refusal) = self.take(message) {
                        return Ok(Ended::Broken(refusal));
                    },
                    Ok(None) => is_reading = false,
                    Err(Broken::Gone) => return Err(Gone),
                    Err(Broken::Refused(refusal)) => return Ok(Ended::Broken(refusal)),
                },
                answered = self.due.next() => {
                    if let Some(ended) = self.reply(answered).await? {
                        return Ok(ended);
                    }
                }
                () = usage.room(0), if !has_room => {}
                () = draining(&mut phase), if is_idle => {
                    return Ok(Ended::Refused(Trouble::Stopping));
                }
                () = sleep_until(self.call.deadline) => return Ok(Ended::Refused(Trouble::Late)),
                () = self.way.left() => return Err(Gone),
            }
        }
    }

    /// A stream is no reason to refuse its own messages: it is read as far as the line has room.
    fn may_read_ahead(&self) -> bool {
        let core = &self.call.core;
        let is_within = self.due.all.images < BATCHES_AHEAD * core.limits.max_batch_size && core.line.has_room_ahead();
        !self.in_doubt && (self.due.is_empty() || is_within)
    }

    fn take(&mut self, message: Message) -> Result<(), Refusal> {
        let call = &self.call;
        call.route.counts.received.add(1);
        call.usage.check()?;
        let arrived = Instant::now();
        if let Some((asked, served)) = understood(&call.core, call.route.kind, &message) {
            served.statistics.decoded.add(nanos(arrived.elapsed()), 1);
            let Asked { span, images, form } = asked;
            let (sender, receiver) = oneshot::channel();
            self.due.push(receiver, images, form.reply_size(images), form.id().to_owned());
            let reply = Reply::Stream { sender, form, arrived };
            let (core, deadline) = (&call.core, call.deadline);
            core.line.push(Item { message, span, images, since: Instant::now(), deadline, served, reply }, &core.model);
        } else {
            let answer = call.core.host.ask(&call.route.path, &message.to_bytes(), call.deadline, self.ends_on_error);
            self.due.push(answer, 0, call.largest_reply(&message), String::new());
            self.in_doubt = true;
        }
        Ok(())
    }

    /// Sends this reply and those that are ready behind it; or says how the stream ends.
    async fn reply(&mut self, first: Answered) -> Result<Option<Ended>, Gone> {
        let mut out = BytesMut::new();
        let mut replies = 0;
        let mut answered = first;
        let ended = loop {
            match self.written(answered, &mut out) {
                Ok(()) => replies += 1,
                Err(trouble) => break Some(Ended::Refused(trouble)),
            }
            if out.len() >= TOGETHER {
                break None;
            }
            match self.due.next_ready() {
                Some(next) => answered = next,
                None => break None,
            }
        };
        self.in_doubt &= !self.due.is_empty();
        if replies > 0 {
            if let Some(unread) = self.write(out).await? {
                return Ok(Some(unread));
            }
            self.call.route.counts.sent.add(replies);
        }
        Ok(ended)
    }

    /// Sends as the caller's window allows: one who does not read is not written to, and not waited for beyond the
    /// call's deadline or, when the server drains, a second without a byte.
    async fn write(&mut self, out: BytesMut) -> Result<Option<Ended>, Gone> {
        let usage = self.call.usage.clone();
        let deadline = self.call.deadline;
        let mut phase = self.call.core.phase.subscribe();
        let stream = self.way.open()?;
        let mut rest = out.freeze();
        let all = rest.len();
        while rest.has_remaining() {
            stream.reserve_capacity(rest.len());
            let room = match stream.capacity() {
                0 => {
                    let _held = Hold::new(usage.clone(), rest.len());
                    tokio::select! {
                        biased;
                        room = poll_fn(|cx| stream.poll_capacity(cx)) => room.and_then(Result::ok).ok_or(Gone)?,
                        () = sleep_until(deadline) => {
                            return Ok(Some(unread(all, &rest, Trouble::Late, DEADLINE_EXCEEDED)));
                        }
                        () = last_bytes(&mut phase) => {
                            return Ok(Some(unread(all, &rest, Trouble::Stopping, UNAVAILABLE)));
                        }
                    }
                }
                room => room,
            };
            let now = Unsent::new(rest.split_to(room.min(rest.len())), usage.clone());
            stream.send_data(now, false).map_err(|_| Gone)?;
        }
        Ok(None)
    }

    /// A reply as gRPC frames it; `ModelStreamInfer` has room for a refusal within its reply.
    fn written(&self, (outcome, id): Answered, out: &mut BytesMut) -> Result<(), Trouble> {
        match outcome {
            Ok(reply) if self.in_doubt && self.due.is_empty() => out.extend_from_slice(&framed(&reply)),
            Ok(reply) => out.extend_from_slice(&reply),
            Err(trouble) if self.call.route.kind == Kind::InferStream && !self.ends_on_error => {
                let Some(sentence) = self.call.core.host.sentence(&trouble) else { return Err(trouble) };
                put_refusal(out, &sentence, &id);
            }
            Err(trouble) => return Err(trouble),
        }
        Ok(())
    }
}

/// How a stream ends whose caller does not read: with a status, where nothing of the reply has been sent.
fn unread(all: usize, rest: &Bytes, trouble: Trouble, code: usize) -> Ended {
    if rest.len() == all {
        Ended::Refused(trouble)
    } else {
        Ended::Unread(code)
    }
}

/// Waits for a drain, and then as long as a caller has to go on reading.
async fn last_bytes(phase: &mut watch::Receiver<Phase>) {
    draining(phase).await;
    tokio::time::sleep(LAST_BYTES).await;
}

/// An outcome, and the id of the request that it is for.
type Answered = (Outcome, String);

/// Answers that are due, the images and the request that each is for, and the room kept for them.
struct Due {
    line: VecDeque<(oneshot::Receiver<Outcome>, Share, String)>,
    all: Share,
    /// Never less than `all` takes, and seldom changed: there may be a million answers a second.
    room: Reserved,
}

#[derive(Clone, Copy, Default)]
struct Share {
    images: usize,
    bytes: usize,
}

impl Due {
    fn new(usage: Arc<Usage>) -> Self {
        Self { line: VecDeque::new(), all: Share::default(), room: Reserved::new(usage, 0) }
    }

    fn is_empty(&self) -> bool {
        self.line.is_empty()
    }

    fn push(&mut self, answer: oneshot::Receiver<Outcome>, images: usize, bytes: usize, id: String) {
        self.all.images += images;
        self.all.bytes += bytes;
        self.line.push_back((answer, Share { images, bytes }, id));
        if self.all.bytes > self.room.bytes() {
            self.room.set(self.all.bytes + ROOM_STEP);
        }
    }

    /// The oldest; never where none is due.
    async fn next(&mut self) -> Answered {
        let Some((first, ..)) = self.line.front_mut() else { return pending().await };
        let outcome = first.await.unwrap_or(Err(Trouble::Stopping));
        (outcome, self.pop())
    }

    /// The oldest, where it is here.
    fn next_ready(&mut self) -> Option<Answered> {
        let outcome = self.line.front_mut()?.0.try_recv().ok()?;
        Some((outcome, self.pop()))
    }

    fn pop(&mut self) -> String {
        let Some((_, share, id)) = self.line.pop_front() else { return String::new() };
        self.all.images -= share.images;
        self.all.bytes -= share.bytes;
        if self.line.is_empty() || self.all.bytes + 2 * ROOM_STEP < self.room.bytes() {
            self.room.set(self.all.bytes);
        }
        id
    }
}

impl Way {
    /// The stream back, opened with the first reply.
    fn open(&mut self) -> Result<&mut SendStream<Unsent>, Gone> {
        if let Self::Closed(respond) = self {
            *self = Self::Open(respond.send_response(head(), false).map_err(|_| Gone)?);
        }
        match self {
            Self::Open(stream) => Ok(stream),
            Self::Closed(_) => Err(Gone),
        }
    }

    fn reset(self) {
        match self {
            Self::Closed(mut respond) => respond.send_reset(Reason::CANCEL),
            Self::Open(mut stream) => stream.send_reset(Reason::CANCEL),
        }
    }

    /// Waits until the caller resets the stream or its connection ends.
    async fn left(&mut self) {
        match self {
            Self::Closed(respond) => drop(poll_fn(|cx| respond.poll_reset(cx)).await),
            Self::Open(stream) => drop(poll_fn(|cx| stream.poll_reset(cx)).await),
        }
    }
}
