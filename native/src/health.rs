//! grpc.health.v1: Check, List and Watch.

use std::future::poll_fn;

use bytes::BytesMut;
use h2::server::SendResponse;

use crate::call::Call;
use crate::call_error::CallError;
use crate::charges::{IncompleteMessage, ReplyBuf, OPEN_CALL};
use crate::drain::wait_for_drain;
use crate::limits::sleep_until;
use crate::message::Message;
use crate::prefix::frame;
use crate::protobuf::{field_len, put_field, put_field_header, tag, Reader, VARINT};
use crate::response::{response_headers, send_trailers_only, send_unary};
use crate::route::RpcKind;
use crate::server_state::ServerState;
use crate::status::{Status, NOT_FOUND};

const SERVING: u8 = 1;
const NOT_SERVING: u8 = 2;
const SERVICE_UNKNOWN: u8 = 3;
const MAX_SERVICE_NAME: usize = 4096;
/// The tag of `service` in `HealthCheckRequest`: field 1, length-delimited.
const SERVICE: u32 = 10;

/// Serves Check and List.
pub fn check(state: &ServerState, call: Call, respond: SendResponse<ReplyBuf>, message: &Message) {
    let trailers = match encode_check_reply(state, call.route.kind, message) {
        Ok(Some(reply)) => {
            call.route.metrics.messages_sent.add(1);
            let reply = ReplyBuf::new(frame(&reply), call.usage.clone());
            return send_unary(respond, reply, call.succeed());
        }
        Ok(None) => call.fail_with(Status::new(NOT_FOUND, "")),
        Err(error) => call.fail(&error),
    };
    send_trailers_only(respond, trailers);
}

/// `None` for a Check of an unknown service.
fn encode_check_reply(state: &ServerState, kind: RpcKind, message: &Message) -> Result<Option<BytesMut>, CallError> {
    if kind == RpcKind::HealthList {
        return if is_well_formed(message) { Ok(Some(encode_list(state))) } else { Err(CallError::MalformedMessage) };
    }
    let service = decode_service(message).ok_or(CallError::MalformedMessage)?;
    Ok(status_of(state, &service).map(|status| BytesMut::from(&encode_status(status)[..])))
}

/// Serves Watch: sends the status now and at each change, until the client cancels or the server drains.
pub async fn watch(state: &ServerState, call: Call, mut respond: SendResponse<ReplyBuf>, message: &Message) {
    let Some(service) = decode_service(message) else {
        return send_trailers_only(respond, call.fail(&CallError::MalformedMessage));
    };
    // A watch keeps a call open, perhaps without a token.
    let mut open_call = IncompleteMessage::new(call.usage.clone());
    if let Err(status) = open_call.set(OPEN_CALL) {
        return send_trailers_only(respond, call.fail_with(status));
    }
    let (mut is_healthy, mut phase) = (state.is_healthy.subscribe(), state.phase.subscribe());
    let Ok(mut stream) = respond.send_response(response_headers(), false) else { return };
    let mut last = None;
    let error = loop {
        is_healthy.mark_unchanged();
        let status = status_of(state, &service).unwrap_or(SERVICE_UNKNOWN);
        if last.replace(status) != Some(status) {
            let reply = ReplyBuf::new(frame(&encode_status(status)), call.usage.clone());
            if stream.send_data(reply, false).is_err() {
                return;
            }
            call.route.metrics.messages_sent.add(1);
        }
        tokio::select! {
            biased;
            // A stop sets NOT_SERVING and drains at once: the status is sent before the stream ends.
            changed = is_healthy.changed() => if changed.is_err() { return },
            () = wait_for_drain(&mut phase) => break CallError::ServerStopping,
            () = sleep_until(call.deadline) => break CallError::DeadlineExceeded,
            _ = poll_fn(|cx| stream.poll_reset(cx)) => return,
        }
    };
    drop(stream.send_trailers(call.fail(&error)));
}

/// Decodes a `HealthCheckRequest`: the service's name, the last if there are several. Other fields are skipped.
fn decode_service(message: &Message) -> Option<String> {
    let (mut name, mut reader) = (String::new(), Reader::new(message));
    while !reader.is_at_end() {
        match reader.read_tag()? {
            SERVICE => name = reader.read_string_any_form(MAX_SERVICE_NAME)?,
            other => reader.skip_field(other)?,
        }
    }
    Some(name)
}

/// Whether it is a `HealthListRequest`, which has no fields: any field is skipped.
fn is_well_formed(message: &Message) -> bool {
    let mut reader = Reader::new(message);
    while !reader.is_at_end() {
        if reader.read_tag().and_then(|tag| reader.skip_field(tag)).is_none() {
            return false;
        }
    }
    true
}

fn status_of(state: &ServerState, service: &str) -> Option<u8> {
    let status = if *state.is_healthy.borrow() { SERVING } else { NOT_SERVING };
    state.health_services.iter().any(|name| name == service).then_some(status)
}

/// A `HealthCheckResponse`.
const fn encode_status(status: u8) -> [u8; 2] {
    [tag(1, VARINT), status]
}

/// A `HealthListResponse`: a map from name to `HealthCheckResponse`.
fn encode_list(state: &ServerState) -> BytesMut {
    let mut out = BytesMut::new();
    for name in &state.health_services {
        let Some(status) = status_of(state, name) else { continue };
        put_field_header(&mut out, 1, field_len(name.len()) + field_len(2));
        put_field(&mut out, 1, name.as_bytes());
        put_field(&mut out, 2, &encode_status(status));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn the_service_is_decoded_and_other_fields_are_skipped() {
        let decode = |bytes: &'static [u8]| decode_service(&Message::from(Bytes::from_static(bytes)));
        assert_eq!(decode(b"").as_deref(), Some(""));
        assert_eq!(decode(b"\x0a\x01a").as_deref(), Some("a"));
        assert_eq!(decode(b"\x8a\x00\x81\x00a").as_deref(), Some("a")); // varints longer than necessary
        assert_eq!(decode(b"\x10\x80\x80\x01\x0a\x01a\x1a\x02xy\x25abcd\x29abcdefgh").as_deref(), Some("a"));
        assert_eq!(decode(b"\x13\x1b\x08\x01\x1c\x14\x0a\x01a").as_deref(), Some("a")); // groups
        assert_eq!(decode(b"\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01").as_deref(), Some(""));
        assert_eq!(decode(b"\xf8\xff\xff\xff\x0f\x00").as_deref(), Some("")); // the highest field number
        for wrong in [
            &b"\x0a\x05a"[..],
            b"\x0a\x01\xff",
            b"\x10\x80",
            b"\x0b",
            b"\x25abc",
            b"\x00\x01",
            b"\x02\x01a",
            b"\x13",
            b"\x13\x1c",
            b"\x14",
            b"\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            b"\x8a\x80\x80\x80\x80\x00\x01a",
            b"\xf8\xff\xff\xff\x1f\x00",
        ] {
            assert_eq!(decode(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn groups_are_skipped_as_deep_as_protobuf_allows() {
        let nested = |depth: usize| Message::from(Bytes::from([vec![0x13; depth], vec![0x14; depth]].concat()));
        assert!(is_well_formed(&nested(100)));
        assert!(!is_well_formed(&nested(101)));
    }

    #[test]
    fn any_well_formed_message_is_a_list_request() {
        let check = |bytes: &'static [u8]| is_well_formed(&Message::from(Bytes::from_static(bytes)));
        for well_formed in [&b""[..], b"\x0a\x01a", b"\x0a\x01\xff", b"\x10\x01"] {
            assert!(check(well_formed), "{well_formed:?}");
        }
        for truncated in [&b"\xff"[..], b"\x0a\x05a", b"\x10", b"\x0b", b"\x00\x00"] {
            assert!(!check(truncated), "{truncated:?}");
        }
    }
}
