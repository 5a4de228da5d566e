//! One RPC: what its headers say, its messages to whoever answers them, the answers back in order.

use std::future::{pending, poll_fn};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use h2::server::SendResponse;
use h2::RecvStream;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};

use crate::auth::{self, Stranger};
use crate::body::{Broken, Messages};
use crate::budget::{Reserved, Unfinished, Unsent, Usage};
use crate::decode::{self, put_prefix, Asked, Serves};
use crate::framing::Encoding;
use crate::health;
use crate::metrics::nanos;
use crate::model_version::Served;
use crate::protobuf::Message;
use crate::queue::Item;
use crate::responder::{head, send, send_end, Call, Reply, Trouble};
use crate::server_state::{Core, Kind, Route};
use crate::status::{Refusal, GRPC_ENCODING, GRPC_TIMEOUT, INTERNAL, REQUEST_ID, RESOURCE_EXHAUSTED, UNIMPLEMENTED};
use crate::stream::Stream;

const LONGEST_REQUEST_ID: usize = 128;
/// What most replies of Python's take at most, besides what grows with their request.
const REPLY: usize = 16 << 10;

/// Serves one call to its end.
pub async fn serve(
    core: Arc<Core>,
    usage: Arc<Usage>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Unsent>,
) {
    let since = Instant::now();
    let (parts, body) = request.into_parts();
    if let Err(response) = check_form(&parts) {
        drop(respond.send_response(*response, true));
        return;
    }
    let (route, timeout) = match check_head(&core, &parts) {
        Ok(found) => found,
        Err(refusal) => return send_end(respond, refusal.trailers()),
    };
    let deadline = timeout.and_then(|timeout| since.checked_add(timeout));
    let request_id = parts.headers.get(&REQUEST_ID).and_then(shortened);
    let encoding = Encoding::named(parts.headers.get(&GRPC_ENCODING).map(HeaderValue::as_bytes));
    let kind = route.kind;
    let call = Call::begin(core, route, usage, request_id, since, deadline);
    if let Err(stranger) = let_in(&call, &parts.headers) {
        call.core.model.unauthenticated.add(1);
        return send_end(respond, call.refuse(&Trouble::Stranger(stranger)));
    }
    if let Err(refusal) = call.usage.check() {
        return send_end(respond, call.end(refusal));
    }
    let (call, respond) = if call.usage.has_room(0) {
        (call, respond)
    } else {
        // What is seldom awaited is kept out of the task of every call: it is as large as the largest of all.
        let Some(admitted) = Box::pin(admit(call, respond, 0, 0)).await else { return };
        admitted
    };
    let (most, stall) = (call.route.largest_message, call.core.limits.stall);
    let messages = Messages::new(body, encoding, most, stall, kind.is_stream(), call.usage.clone());
    if kind.is_stream() {
        let ends_on_error = kind == Kind::InferStream && wants_error_status(&parts.headers);
        Box::pin(Stream::new(call, respond, ends_on_error).serve(messages)).await;
    } else {
        unary(call, respond, messages).await;
    }
}

/// Waits with so many bytes of message until there is room for so many of reply; nothing where the call ends instead.
async fn admit(
    call: Call,
    mut respond: SendResponse<Unsent>,
    message: usize,
    reply: usize,
) -> Option<(Call, SendResponse<Unsent>)> {
    let mut unfinished = Unfinished::new(call.usage.clone());
    if let Err(refusal) = unfinished.set(message) {
        send_end(respond, call.end(refusal));
        return None;
    }
    tokio::select! {
        biased;
        () = call.usage.room(reply) => Some((call, respond)),
        _ = poll_fn(|cx| respond.poll_reset(cx)) => None,
        () = sleep_until(call.deadline) => {
            send_end(respond, call.refuse(&Trouble::Late));
            None
        }
    }
}

fn let_in(call: &Call, headers: &HeaderMap) -> Result<(), Stranger> {
    if call.route.needs_token {
        auth::check(&call.core.tokens.get(), headers)?;
        call.usage.know();
    }
    Ok(())
}

/// As in Triton: the first error ends the stream, with a gRPC status.
fn wants_error_status(headers: &HeaderMap) -> bool {
    headers.get_all("triton_grpc_error").iter().any(|value| value == "true")
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(http::header::CONTENT_TYPE)
        .and_then(|value| value.as_bytes().strip_prefix(b"application/grpc"))
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// Whether it is a call of gRPC at all; what any other request is answered with.
fn check_form(parts: &Parts) -> Result<(), Box<Response<()>>> {
    let (status, sentence) = if !is_grpc(&parts.headers) {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return Err(Box::new(response));
    } else if parts.method != Method::POST {
        (StatusCode::METHOD_NOT_ALLOWED, "method: not allowed; expected POST")
    } else if !parts.headers.contains_key(http::header::TE) {
        (StatusCode::BAD_REQUEST, "te: missing; expected trailers") // any other value h2 refuses itself
    } else {
        return Ok(());
    };
    let mut response = head();
    *response.status_mut() = status;
    response.headers_mut().extend(Refusal::bare(INTERNAL, sentence).trailers());
    Err(Box::new(response))
}

/// The route of a call and the time that it has.
fn check_head(core: &Core, parts: &Parts) -> Result<(Arc<Route>, Option<Duration>), Refusal> {
    let size = header_list_size(parts);
    if size > core.limits.headers {
        let sentence = format!("metadata: {size} bytes; at most {} are allowed", core.limits.headers);
        return Err(Refusal::bare(RESOURCE_EXHAUSTED, sentence));
    }
    let path = parts.uri.path_and_query().map_or("", |path| path.as_str());
    let route = core.routes.get(path).ok_or_else(|| Refusal::bare(UNIMPLEMENTED, "Method not found!"))?;
    let timeout = parts.headers.get(&GRPC_TIMEOUT).map(|value| {
        let malformed = "grpc-timeout: malformed; expected up to 8 digits and a unit";
        timeout(value).ok_or_else(|| Refusal::bare(INTERNAL, malformed))
    });
    Ok((route.clone(), timeout.transpose()?))
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
        Kind::HealthWatch => Box::pin(health::watch(&core, call, respond, &message)).await,
        kind => {
            let arrived = Instant::now();
            if let Some((asked, served)) = understood(&core, kind, &message) {
                served.statistics.decoded.add(nanos(arrived.elapsed()), 1);
                let reply = asked.form.reply_size(asked.images);
                let (call, respond) = if call.usage.has_room(reply) {
                    (call, respond)
                } else {
                    let Some(admitted) = Box::pin(admit(call, respond, message.len(), reply)).await else { return };
                    admitted
                };
                return enqueue(&core, message, asked, served, arrived, call, respond);
            }
            drop(messages);
            Box::pin(by_python(&core, call, respond, &message)).await;
        }
    }
}

/// Lets the Python handler answer, once there is room for what it may say.
async fn by_python(core: &Core, call: Call, respond: SendResponse<Unsent>, message: &Message) {
    let reply = call.largest_reply(message);
    let Some((call, mut respond)) = admit(call, respond, message.len(), reply).await else { return };
    let _reserved = Reserved::new(call.usage.clone(), reply);
    let answer = core.host.ask(&call.route.path, &message.to_bytes(), call.deadline, false);
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
    pub fn largest_reply(&self, message: &Message) -> usize {
        REPLY + self.route.reply_per_byte.saturating_mul(message.len())
    }
}

/// The request and the model that answers it, which serves now; where it is a request that leaves no doubt.
pub fn understood(core: &Core, kind: Kind, message: &Message) -> Option<(Asked, Arc<Served>)> {
    let read: fn(&Message, &Serves) -> Option<Asked> = match kind {
        Kind::Predict | Kind::PredictStream => decode::predict,
        Kind::Infer => |message, serves| decode::infer(message, serves, false),
        Kind::InferStream => |message, serves| decode::infer(message, serves, true),
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
