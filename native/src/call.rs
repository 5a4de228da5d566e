//! One RPC: what its headers say, its messages to whoever answers them, the answers back in order.

use std::collections::VecDeque;
use std::future::{pending, poll_fn};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use tokio::sync::{oneshot, watch};

use crate::access::{self, Stranger};
use crate::asked::{self, put_prefix, Asked, Serves};
use crate::budget::{Hold, Reserved, Unfinished, Unsent, Usage};
use crate::connection::LAST_BYTES;
use crate::core::{draining, Core, Kind, Phase};
use crate::counts::nanos;
use crate::frames::Encoding;
use crate::health;
use crate::line::Item;
use crate::messages::{Broken, Messages};
use crate::reply::{head, send, send_end, Call, Outcome, Reply, Trouble};
use crate::served::Served;
use crate::status::{Refusal, DEADLINE_EXCEEDED, INTERNAL, REQUEST_ID, RESOURCE_EXHAUSTED, UNAVAILABLE, UNIMPLEMENTED};
use crate::wire::{field_len, put_field, Message};

/// So many of the largest batches' worth of images of one stream may wait for their answers at a time.
const BATCHES_AHEAD: usize = 2;
/// Replies that are ready together go out together, up to about this many bytes.
const TOGETHER: usize = 16 * 1024;
const LONGEST_REQUEST_ID: usize = 128;
/// What a reply of Python's may take besides what grows with its request, the description of the network for one.
const REPLY: usize = 64 << 10;
/// In steps of so many bytes a stream's room for replies grows and shrinks.
const ROOM_STEP: usize = 16 << 10;

/// Serves one call to its end.
pub async fn serve(
    core: Arc<Core>,
    usage: Arc<Usage>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Unsent>,
) {
    let since = Instant::now();
    let (parts, body) = request.into_parts();
    if !is_grpc(&parts.headers) {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        drop(respond.send_response(response, true));
        return;
    }
    if let Err((status, sentence)) = check_form(&parts) {
        let mut response = head();
        *response.status_mut() = status;
        response.headers_mut().extend(Refusal::bare(INTERNAL, sentence).trailers());
        drop(respond.send_response(response, true));
        return;
    }
    let size = header_list_size(&parts);
    if size > core.limits.headers {
        let sentence = format!("metadata: {size} bytes; at most {} are allowed", core.limits.headers);
        return send_end(respond, Refusal::bare(RESOURCE_EXHAUSTED, sentence).trailers());
    }
    let path = parts.uri.path_and_query().map_or("", |path| path.as_str());
    let Some(route) = core.routes.get(path).cloned() else {
        send_end(respond, Refusal::bare(UNIMPLEMENTED, "Method not found!").trailers());
        return;
    };
    let timeout = match parts.headers.get("grpc-timeout").map(timeout) {
        None => None,
        Some(Some(timeout)) => Some(timeout),
        Some(None) => {
            let refusal = Refusal::bare(INTERNAL, "grpc-timeout: malformed; expected up to 8 digits and a unit");
            return send_end(respond, refusal.trailers());
        }
    };
    let deadline = timeout.and_then(|timeout| since.checked_add(timeout));
    let request_id = parts.headers.get(REQUEST_ID).and_then(shortened);
    let encoding = Encoding::named(parts.headers.get("grpc-encoding").map(HeaderValue::as_bytes));
    let kind = route.kind;
    let call = Call::begin(core, route, usage, request_id, since, deadline);
    if let Err(stranger) = let_in(&call, &parts.headers) {
        call.core.model.unauthenticated.add(1);
        return send_end(respond, call.refuse(&Trouble::Stranger(stranger)));
    }
    let Some((call, respond)) = admitted(call, respond).await else { return };
    let (most, stall) = (call.route.largest_message, call.core.limits.stall);
    let messages = Messages::new(body, encoding, most, stall, kind.is_stream(), call.usage.clone());
    if kind.is_stream() {
        Stream::new(call, respond).serve(messages).await;
    } else {
        unary(call, respond, messages).await;
    }
}

/// Waits until the caller has read enough of the replies to its other calls.
async fn admitted(call: Call, mut respond: SendResponse<Unsent>) -> Option<(Call, SendResponse<Unsent>)> {
    if let Err(refusal) = call.usage.check() {
        send_end(respond, call.end(refusal));
        return None;
    }
    match room(&call, &mut respond, 0).await {
        Ok(()) => Some((call, respond)),
        Err(Some(trouble)) => {
            send_end(respond, call.refuse(&trouble));
            None
        }
        Err(None) => None,
    }
}

/// Waits for room for a reply of so many bytes; an error without trouble is a caller who has left.
async fn room(call: &Call, respond: &mut SendResponse<Unsent>, bytes: usize) -> Result<(), Option<Trouble>> {
    if call.usage.has_room(bytes) {
        return Ok(());
    }
    tokio::select! {
        biased;
        () = call.usage.room(bytes) => Ok(()),
        _ = poll_fn(|cx| respond.poll_reset(cx)) => Err(None),
        () = sleep_until(call.deadline) => Err(Some(Trouble::Late)),
    }
}

fn let_in(call: &Call, headers: &HeaderMap) -> Result<(), Stranger> {
    if call.route.needs_token {
        access::check(&call.core.tokens.get(), headers)?;
        call.usage.know();
    }
    Ok(())
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(http::header::CONTENT_TYPE)
        .and_then(|value| value.as_bytes().strip_prefix(b"application/grpc"))
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// What gRPC asks of a request besides its content type; the HTTP status and the sentence for any other.
fn check_form(parts: &Parts) -> Result<(), (StatusCode, &'static str)> {
    if parts.method != Method::POST {
        return Err((StatusCode::METHOD_NOT_ALLOWED, "method: not allowed; expected POST"));
    }
    // Another value than this one h2 refuses itself.
    if !parts.headers.contains_key(http::header::TE) {
        return Err((StatusCode::BAD_REQUEST, "te: missing; expected trailers"));
    }
    Ok(())
}

/// As HTTP/2 counts it, with 32 bytes for each field on top; of the pseudo-headers those that a caller can make long.
fn header_list_size(parts: &Parts) -> usize {
    let fields: usize = parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
    let path = parts.uri.path_and_query().map_or(0, |path| path.as_str().len());
    fields + path + parts.uri.authority().map_or(0, |authority| authority.as_str().len())
}

/// `grpc-timeout`: up to eight digits and a unit.
fn timeout(value: &HeaderValue) -> Option<Duration> {
    let (unit, digits) = value.as_bytes().split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let n = digits.iter().fold(0, |n, digit| n * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(n * 3600),
        b'M' => Duration::from_secs(n * 60),
        b'S' => Duration::from_secs(n),
        b'm' => Duration::from_millis(n),
        b'u' => Duration::from_micros(n),
        b'n' => Duration::from_nanos(n),
        _ => return None,
    })
}

/// The caller's own id of the call, as far as we repeat it.
fn shortened(value: &HeaderValue) -> Option<HeaderValue> {
    let bytes = value.as_bytes();
    if bytes.is_empty() || !bytes.iter().all(|byte| (b' '..=b'~').contains(byte)) {
        return None;
    }
    HeaderValue::from_bytes(&bytes[..bytes.len().min(LONGEST_REQUEST_ID)]).ok()
}

pub async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => pending().await,
    }
}

async fn unary(call: Call, respond: SendResponse<Unsent>, mut messages: Messages) {
    let first = tokio::select! {
        biased;
        first = messages.next() => first,
        () = sleep_until(call.deadline) => return send_end(respond, call.refuse(&Trouble::Late)),
    };
    let message = match first {
        Ok(Some(message)) => message,
        Ok(None) => {
            return send_end(respond, call.end(Refusal::bare(UNIMPLEMENTED, "the call holds no message; expected one")))
        }
        Err(Broken::Refused(refusal)) => return send_end(respond, call.end(refusal)),
        Err(Broken::Gone) => return,
    };
    call.route.counts.received.add(1);
    let core = call.core.clone();
    match call.route.kind {
        Kind::HealthCheck | Kind::HealthList => health::check(&core, call, respond, &message),
        Kind::HealthWatch => health::watch(&core, call, respond, &message).await,
        kind => {
            let arrived = Instant::now();
            if let Some((asked, served)) = understood(&core, kind, &message) {
                served.statistics.decoded.add(nanos(arrived.elapsed()), 1);
                return enqueue(&core, message, asked, served, arrived, call, respond);
            }
            drop(messages);
            by_python(&core, call, respond, &message).await;
        }
    }
}

/// Lets the Python handler answer, once there is room for what it may say.
async fn by_python(core: &Core, call: Call, mut respond: SendResponse<Unsent>, message: &Message) {
    let reply = call.largest_reply(message);
    if !call.usage.has_room(reply) {
        let mut unfinished = Unfinished::new(call.usage.clone());
        if let Err(refusal) = unfinished.set(message.len()) {
            return send_end(respond, call.end(refusal));
        }
        match room(&call, &mut respond, reply).await {
            Ok(()) => {}
            Err(Some(trouble)) => return send_end(respond, call.refuse(&trouble)),
            Err(None) => return,
        }
    }
    let _reserved = Reserved::new(call.usage.clone(), reply);
    let answer = core.host.ask(&call.route.path, &message.to_bytes(), call.deadline);
    let outcome = tokio::select! {
        biased;
        outcome = answer => outcome,
        _ = poll_fn(|cx| respond.poll_reset(cx)) => return,
        () = sleep_until(call.deadline) => Ok(Err(Trouble::Late)),
    };
    match outcome {
        Ok(Ok(reply)) => {
            call.route.counts.sent.add(1);
            let reply = Unsent::new(framed(&reply), call.usage.clone());
            send(respond, reply, call.succeed());
        }
        Ok(Err(trouble)) => send_end(respond, call.refuse(&trouble)),
        Err(_) => send_end(respond, call.end(Refusal::bare(INTERNAL, "internal error"))),
    }
}

impl Call {
    /// What a reply of Python's to this message takes at most.
    fn largest_reply(&self, message: &Message) -> usize {
        REPLY + self.route.reply_per_byte.saturating_mul(message.len())
    }
}

/// The request and the model that answers it, which serves now; where it is a request that leaves no doubt.
fn understood(core: &Core, kind: Kind, message: &Message) -> Option<(Asked, Arc<Served>)> {
    let read: fn(&Message, &Serves) -> Option<Asked> = match kind {
        Kind::Predict | Kind::PredictStream => asked::predict,
        Kind::Infer => |message, serves| asked::infer(message, serves, false),
        Kind::InferStream => |message, serves| asked::infer(message, serves, true),
        _ => return None,
    };
    let served = core.served.get();
    Some((read(message, &served.serves)?, served))
}

fn enqueue(
    core: &Arc<Core>,
    message: Message,
    asked: Asked,
    served: Arc<Served>,
    arrived: Instant,
    call: Call,
    respond: SendResponse<Unsent>,
) {
    let Asked { span, images, form } = asked;
    let deadline = call.deadline;
    let reply = Reply::Unary { respond, call, form, arrived };
    core.line.push(Item { message, span, images, since: Instant::now(), deadline, served, reply }, &core.model);
}

pub fn framed(message: &[u8]) -> Bytes {
    let mut out = BytesMut::new();
    put_prefix(&mut out, message.len());
    out.put_slice(message);
    out.freeze()
}

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
struct Stream {
    call: Call,
    way: Way,
    /// The answers that are due, in the order of their messages.
    due: Due,
    /// A Python handler has the last message: what comes after it waits, since it may end the stream.
    in_doubt: bool,
}

/// The way back: before its first message and after.
enum Way {
    Closed(SendResponse<Unsent>),
    Open(SendStream<Unsent>),
}

impl Stream {
    fn new(call: Call, respond: SendResponse<Unsent>) -> Self {
        let due = Due::new(call.usage.clone());
        Self { call, way: Way::Closed(respond), due, in_doubt: false }
    }

    async fn serve(mut self, mut messages: Messages) {
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
                outcome = self.due.next() => {
                    if let Some(ended) = self.reply(outcome).await? {
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
        let is_within = self.due.all.images < BATCHES_AHEAD * core.limits.max_batch && core.line.has_room_ahead();
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
            self.due.push(receiver, images, form.reply_size(images));
            let reply = Reply::Stream { sender, form, arrived };
            let (core, deadline) = (&call.core, call.deadline);
            core.line.push(Item { message, span, images, since: Instant::now(), deadline, served, reply }, &core.model);
        } else {
            let answer = call.core.host.ask(&call.route.path, &message.to_bytes(), call.deadline);
            self.due.push(answer, 0, call.largest_reply(&message));
            self.in_doubt = true;
        }
        Ok(())
    }

    /// Sends this reply and those that are ready behind it; or says how the stream ends.
    async fn reply(&mut self, first: Outcome) -> Result<Option<Ended>, Gone> {
        let mut out = BytesMut::new();
        let mut replies = 0;
        let mut outcome = first;
        let ended = loop {
            match self.written(outcome, &mut out) {
                Ok(()) => replies += 1,
                Err(trouble) => break Some(Ended::Refused(trouble)),
            }
            if out.len() >= TOGETHER {
                break None;
            }
            match self.due.next_ready() {
                Some(next) => outcome = next,
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
    fn written(&self, outcome: Outcome, out: &mut BytesMut) -> Result<(), Trouble> {
        match outcome {
            Ok(reply) if self.in_doubt && self.due.is_empty() => out.extend_from_slice(&framed(&reply)),
            Ok(reply) => out.extend_from_slice(&reply),
            Err(trouble) if self.call.route.kind == Kind::InferStream => {
                let Some(sentence) = self.call.core.host.sentence(&trouble) else { return Err(trouble) };
                put_prefix(out, field_len(sentence.len()));
                put_field(out, 1, sentence.as_bytes());
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

/// Answers that are due, the images that they are for, and the room kept for them.
struct Due {
    line: VecDeque<(oneshot::Receiver<Outcome>, Share)>,
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

    fn push(&mut self, answer: oneshot::Receiver<Outcome>, images: usize, bytes: usize) {
        self.all.images += images;
        self.all.bytes += bytes;
        self.line.push_back((answer, Share { images, bytes }));
        if self.all.bytes > self.room.bytes() {
            self.room.set(self.all.bytes + ROOM_STEP);
        }
    }

    /// The oldest; never where none is due.
    async fn next(&mut self) -> Outcome {
        let Some((first, _)) = self.line.front_mut() else { return pending().await };
        let outcome = first.await.unwrap_or(Err(Trouble::Stopping));
        self.pop();
        outcome
    }

    /// The oldest, where it is here.
    fn next_ready(&mut self) -> Option<Outcome> {
        let outcome = self.line.front_mut()?.0.try_recv().ok()?;
        self.pop();
        Some(outcome)
    }

    fn pop(&mut self) {
        if let Some((_, share)) = self.line.pop_front() {
            self.all.images -= share.images;
            self.all.bytes -= share.bytes;
            if self.line.is_empty() || self.all.bytes + 2 * ROOM_STEP < self.room.bytes() {
                self.room.set(self.all.bytes);
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_digits_and_a_unit() {
        let read = |text: &'static str| timeout(&HeaderValue::from_static(text));
        assert_eq!(read("100m"), Some(Duration::from_millis(100)));
        assert_eq!(read("5S"), Some(Duration::from_secs(5)));
        assert_eq!(read("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for wrong in ["", "m", "1", "1x", "-1m", "123456789m"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_content_type_is_grpcs_with_or_without_a_suffix() {
        for (text, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;x", true),
            ("application/grpc-web", false),
            ("text/html", false),
        ] {
            let headers = HeaderMap::from_iter([(http::header::CONTENT_TYPE, HeaderValue::from_static(text))]);
            assert_eq!(is_grpc(&headers), expected, "{text}");
        }
    }
}
