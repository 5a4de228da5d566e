//! One RPC: what its headers say, its messages to whoever answers them, the answers back in order.

use std::collections::VecDeque;
use std::future::{pending, poll_fn};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use tokio::sync::oneshot;

use crate::access::{self, Stranger};
use crate::asked::{self, put_prefix, Asked, Serves};
use crate::core::{draining, Core, Kind};
use crate::counts::nanos;
use crate::frames::Encoding;
use crate::health;
use crate::line::Item;
use crate::messages::{Broken, Messages};
use crate::reply::{head, send, send_end, Call, Outcome, Reply, Trouble};
use crate::served::Served;
use crate::status::{Refusal, INTERNAL, REQUEST_ID, RESOURCE_EXHAUSTED, UNIMPLEMENTED};
use crate::wire::{field_len, put_field, Message};

/// So many of the largest batches' worth of images of one stream may wait for their answers at a time.
const BATCHES_AHEAD: usize = 2;
/// Replies that are ready together go out together, up to about this many bytes.
const TOGETHER: usize = 16 * 1024;
const LONGEST_REQUEST_ID: usize = 128;

/// Serves one call to its end.
pub async fn serve(core: Arc<Core>, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let since = Instant::now();
    let (parts, body) = request.into_parts();
    if !is_grpc(&parts.headers) {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        drop(respond.send_response(response, true));
        return;
    }
    let size = header_list_size(&parts);
    if size > core.limits.headers {
        let sentence = format!("metadata: {size} bytes; at most {} are allowed", core.limits.headers);
        return send_end(respond, Refusal::bare(RESOURCE_EXHAUSTED, sentence).trailers());
    }
    let Some(route) = core.routes.get(parts.uri.path()).cloned() else {
        send_end(respond, Refusal::bare(UNIMPLEMENTED, "Method not found!").trailers());
        return;
    };
    let deadline = parts.headers.get("grpc-timeout").and_then(timeout).and_then(|timeout| since.checked_add(timeout));
    let request_id = parts.headers.get(REQUEST_ID).and_then(shortened);
    let encoding = Encoding::named(parts.headers.get("grpc-encoding").map(HeaderValue::as_bytes));
    let kind = route.kind;
    let messages = Messages::new(body, encoding, &core.limits, kind.is_stream());
    let call = Call::begin(core, route, request_id, since, deadline);
    if let Err(stranger) = let_in(&call, &parts.headers) {
        call.core.model.unauthenticated.add(1);
        return send_end(respond, call.refuse(&Trouble::Stranger(stranger)));
    }
    if kind.is_stream() {
        Stream::new(call, respond).serve(messages).await;
    } else {
        unary(call, respond, messages).await;
    }
}

fn let_in(call: &Call, headers: &HeaderMap) -> Result<(), Stranger> {
    if call.route.needs_token {
        access::check(&call.core.tokens.get(), headers)
    } else {
        Ok(())
    }
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(http::header::CONTENT_TYPE)
        .and_then(|value| value.as_bytes().strip_prefix(b"application/grpc"))
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// As HTTP/2 counts it, with 32 bytes for each field on top; without the pseudo-headers but the path.
fn header_list_size(parts: &Parts) -> usize {
    let fields: usize = parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
    fields + parts.uri.path().len()
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
    if bytes.is_empty() {
        return None;
    }
    HeaderValue::from_bytes(&bytes[..bytes.len().min(LONGEST_REQUEST_ID)]).ok()
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => pending().await,
    }
}

async fn unary(call: Call, mut respond: SendResponse<Bytes>, mut messages: Messages) {
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
                    send(respond, framed(&reply), call.succeed());
                }
                Ok(Err(trouble)) => send_end(respond, call.refuse(&trouble)),
                Err(_) => send_end(respond, call.end(Refusal::bare(INTERNAL, "internal error"))),
            }
        }
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
    respond: SendResponse<Bytes>,
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
    Closed(SendResponse<Bytes>),
    Open(SendStream<Bytes>),
}

impl Stream {
    fn new(call: Call, respond: SendResponse<Bytes>) -> Self {
        Self { call, way: Way::Closed(respond), due: Due::default(), in_doubt: false }
    }

    async fn serve(mut self, mut messages: Messages) {
        let Ok(ended) = self.answer_all(&mut messages).await else { return };
        let Self { call, way, .. } = self;
        let trailers = match ended {
            Ended::Well => call.succeed(),
            Ended::Refused(trouble) => call.refuse(&trouble),
            Ended::Broken(refusal) => call.end(refusal),
        };
        match way {
            Way::Closed(respond) => send_end(respond, trailers),
            Way::Open(mut stream) => drop(stream.send_trailers(trailers)),
        }
    }

    async fn answer_all(&mut self, messages: &mut Messages) -> Result<Ended, Gone> {
        let mut phase = self.call.core.phase.subscribe();
        let mut is_reading = true;
        loop {
            if self.due.is_empty() && !is_reading {
                return Ok(Ended::Well);
            }
            let may_read = is_reading && self.may_read_ahead();
            let is_idle = self.due.is_empty();
            tokio::select! {
                biased;
                // Reading first: what has arrived already becomes one batch.
                message = messages.next(), if may_read => match message {
                    Ok(Some(message)) => self.take(message),
                    Ok(None) => is_reading = false,
                    Err(Broken::Gone) => return Err(Gone),
                    Err(Broken::Refused(refusal)) => return Ok(Ended::Broken(refusal)),
                },
                outcome = self.due.next() => {
                    if let Some(ended) = self.reply(outcome).await? {
                        return Ok(ended);
                    }
                }
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
        let is_within = self.due.images < BATCHES_AHEAD * core.limits.max_batch && core.line.has_room_ahead();
        !self.in_doubt && (self.due.is_empty() || is_within)
    }

    fn take(&mut self, message: Message) {
        let call = &self.call;
        call.route.counts.received.add(1);
        let arrived = Instant::now();
        if let Some((asked, served)) = understood(&call.core, call.route.kind, &message) {
            served.statistics.decoded.add(nanos(arrived.elapsed()), 1);
            let Asked { span, images, form } = asked;
            let (sender, receiver) = oneshot::channel();
            self.due.push(receiver, images);
            let reply = Reply::Stream { sender, form, arrived };
            let (core, deadline) = (&call.core, call.deadline);
            core.line.push(Item { message, span, images, since: Instant::now(), deadline, served, reply }, &core.model);
        } else {
            let answer = call.core.host.ask(&call.route.path, &message.to_bytes(), call.deadline);
            self.due.push(answer, 0);
            self.in_doubt = true;
        }
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
            self.way.write(out).await?;
            self.call.route.counts.sent.add(replies);
        }
        Ok(ended)
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

/// Answers that are due, and the images that they are for.
#[derive(Default)]
struct Due {
    line: VecDeque<(oneshot::Receiver<Outcome>, usize)>,
    images: usize,
}

impl Due {
    fn is_empty(&self) -> bool {
        self.line.is_empty()
    }

    fn push(&mut self, answer: oneshot::Receiver<Outcome>, images: usize) {
        self.images += images;
        self.line.push_back((answer, images));
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
        if let Some((_, images)) = self.line.pop_front() {
            self.images -= images;
        }
    }
}

impl Way {
    /// Sends as the caller's window allows: one who does not read is not written to.
    async fn write(&mut self, out: BytesMut) -> Result<(), Gone> {
        if let Self::Closed(respond) = self {
            *self = Self::Open(respond.send_response(head(), false).map_err(|_| Gone)?);
        }
        let Self::Open(stream) = self else { return Err(Gone) };
        let mut rest = out.freeze();
        while rest.has_remaining() {
            stream.reserve_capacity(rest.len());
            let room = match stream.capacity() {
                0 => poll_fn(|cx| stream.poll_capacity(cx)).await.and_then(Result::ok).ok_or(Gone)?,
                room => room,
            };
            let now = rest.split_to(room.min(rest.len()));
            stream.send_data(now, false).map_err(|_| Gone)?;
        }
        Ok(())
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
