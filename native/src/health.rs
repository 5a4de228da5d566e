//! grpc.health.v1: what serves, asked once or watched.

use std::future::poll_fn;
use std::sync::Arc;

use bytes::BytesMut;
use h2::server::SendResponse;

use crate::budget::{Unfinished, Unsent, CALL};
use crate::call::{framed, sleep_until};
use crate::protobuf::{field_len, open_field, put_field, tag, Message, VARINT};
use crate::responder::{head, send, send_end, Call, Trouble};
use crate::server_state::{draining, Core, Kind};
use crate::status::{Refusal, NOT_FOUND};

const SERVING: u8 = 1;
const NOT_SERVING: u8 = 2;
const SERVICE_UNKNOWN: u8 = 3;
const LONGEST_NAME: usize = 4096;
/// `service` of `HealthCheckRequest`: field 1, length-delimited.
const NAME: u32 = 10;

/// Answers Check and List.
pub fn check(core: &Arc<Core>, call: Call, respond: SendResponse<Unsent>, message: &Message) {
    let reply = if call.route.kind == Kind::HealthList {
        if !is_whole(message) {
            return send_end(respond, call.refuse(&Trouble::Malformed));
        }
        framed(&listed(core))
    } else {
        let Some(service) = service(message) else { return send_end(respond, call.refuse(&Trouble::Malformed)) };
        match status(core, &service) {
            Some(status) => framed(&health(status)),
            None => return send_end(respond, call.end(Refusal::bare(NOT_FOUND, ""))),
        }
    };
    call.route.counts.sent.add(1);
    let reply = Unsent::new(reply, call.usage.clone());
    send(respond, reply, call.succeed());
}

/// Sends the status now and at each change, until the caller leaves or the server drains.
pub async fn watch(core: &Arc<Core>, call: Call, mut respond: SendResponse<Unsent>, message: &Message) {
    let Some(service) = service(message) else { return send_end(respond, call.refuse(&Trouble::Malformed)) };
    // Whoever watches holds a call open, and may do so without a token.
    let mut open = Unfinished::new(call.usage.clone());
    if let Err(refusal) = open.set(CALL) {
        return send_end(respond, call.end(refusal));
    }
    let (mut healthy, mut phase) = (core.healthy.subscribe(), core.phase.subscribe());
    let Ok(mut stream) = respond.send_response(head(), false) else { return };
    let mut last = None;
    loop {
        healthy.mark_unchanged();
        let now = status(core, &service).unwrap_or(SERVICE_UNKNOWN);
        if last.replace(now) != Some(now) {
            let reply = Unsent::new(framed(&health(now)), call.usage.clone());
            if stream.send_data(reply, false).is_err() {
                return;
            }
            call.route.counts.sent.add(1);
        }
        tokio::select! {
            biased;
            // A stop says NOT_SERVING and drains at once: the status goes out before the stream ends.
            changed = healthy.changed() => if changed.is_err() { return },
            () = draining(&mut phase) => {
                drop(stream.send_trailers(call.refuse(&Trouble::Stopping)));
                return;
            }
            () = sleep_until(call.deadline) => {
                drop(stream.send_trailers(call.refuse(&Trouble::Late)));
                return;
            }
            _ = poll_fn(|cx| stream.poll_reset(cx)) => return,
        }
    }
}

/// `HealthCheckRequest`: the service's name, the last one where there are several; other fields are passed over.
fn service(message: &Message) -> Option<String> {
    let (mut name, mut reader) = (String::new(), message.reader());
    while !reader.is_done() {
        match reader.tag()? {
            NAME => name = reader.long_text(LONGEST_NAME)?,
            other => reader.pass_over(other)?,
        }
    }
    Some(name)
}

/// `HealthListRequest`, which has no fields: whatever there is is passed over.
fn is_whole(message: &Message) -> bool {
    let mut reader = message.reader();
    while !reader.is_done() {
        if reader.tag().and_then(|tag| reader.pass_over(tag)).is_none() {
            return false;
        }
    }
    true
}

fn status(core: &Core, service: &str) -> Option<u8> {
    let status = if *core.healthy.borrow() { SERVING } else { NOT_SERVING };
    core.health_names.iter().any(|name| name == service).then_some(status)
}

/// `HealthCheckResponse`.
const fn health(status: u8) -> [u8; 2] {
    [tag(1, VARINT), status]
}

/// `HealthListResponse`: a map from name to `HealthCheckResponse`.
fn listed(core: &Core) -> BytesMut {
    let mut out = BytesMut::new();
    for name in &core.health_names {
        let Some(status) = status(core, name) else { continue };
        open_field(&mut out, 1, field_len(name.len()) + field_len(2));
        put_field(&mut out, 1, name.as_bytes());
        put_field(&mut out, 2, &health(status));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn the_name_is_read_and_other_fields_are_passed_over() {
        let read = |bytes: &'static [u8]| service(&Message::from(Bytes::from_static(bytes)));
        assert_eq!(read(b"").as_deref(), Some(""));
        assert_eq!(read(b"\x0a\x01a").as_deref(), Some("a"));
        assert_eq!(read(b"\x8a\x00\x81\x00a").as_deref(), Some("a")); // varints longer than they need to be
        assert_eq!(read(b"\x10\x80\x80\x01\x0a\x01a\x1a\x02xy\x25abcd\x29abcdefgh").as_deref(), Some("a"));
        assert_eq!(read(b"\x13\x1b\x08\x01\x1c\x14\x0a\x01a").as_deref(), Some("a")); // groups
        assert_eq!(read(b"\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01").as_deref(), Some(""));
        assert_eq!(read(b"\xf8\xff\xff\xff\x0f\x00").as_deref(), Some("")); // the highest field there is
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
            assert_eq!(read(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn groups_are_passed_over_as_deep_as_protobuf_allows() {
        let nested = |depth: usize| Message::from(Bytes::from([vec![0x13; depth], vec![0x14; depth]].concat()));
        assert!(is_whole(&nested(100)));
        assert!(!is_whole(&nested(101)));
    }

    #[test]
    fn a_list_is_asked_for_by_any_whole_message() {
        let read = |bytes: &'static [u8]| is_whole(&Message::from(Bytes::from_static(bytes)));
        for whole in [&b""[..], b"\x0a\x01a", b"\x0a\x01\xff", b"\x10\x01"] {
            assert!(read(whole), "{whole:?}");
        }
        for cut in [&b"\xff"[..], b"\x0a\x05a", b"\x10", b"\x0b", b"\x00\x00"] {
            assert!(!read(cut), "{cut:?}");
        }
    }
}
