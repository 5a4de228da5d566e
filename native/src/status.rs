//! gRPC status codes, and the trailers that carry a status.

use std::fmt::Write as _;

use base64::prelude::{Engine, BASE64_STANDARD_NO_PAD};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
// Constants, because parsing a header name for each call costs more than the lookup.
pub const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
pub const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
pub const GRPC_ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");

/// gRPC has 17 status codes, 0 to 16.
pub const CODES: usize = 17;

pub const OK: usize = 0;
pub const CANCELLED: usize = 1;
pub const DEADLINE_EXCEEDED: usize = 4;
pub const NOT_FOUND: usize = 5;
pub const RESOURCE_EXHAUSTED: usize = 8;
pub const UNIMPLEMENTED: usize = 12;
pub const INTERNAL: usize = 13;
pub const UNAVAILABLE: usize = 14;

/// The status of a call that fails. `details` is a serialized `google.rpc.Status`, or empty.
#[derive(Clone, Debug)]
pub struct Status {
    pub code: usize,
    pub message: String,
    pub details: Bytes,
    pub request_id: Option<HeaderValue>,
}

impl Status {
    pub fn new(code: usize, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: Bytes::new(), request_id: None }
    }

    pub fn internal() -> Self {
        Self::new(INTERNAL, "internal error")
    }

    pub fn into_trailers(self) -> HeaderMap {
        let mut map = HeaderMap::with_capacity(4);
        map.insert(GRPC_STATUS, HeaderValue::from(self.code));
        map.insert(GRPC_MESSAGE, percent_encode(&self.message));
        if let Some(id) = self.request_id {
            map.insert(REQUEST_ID, id);
        }
        if !self.details.is_empty() {
            let text = BASE64_STANDARD_NO_PAD.encode(&self.details);
            if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(text)) {
                map.insert(DETAILS, value);
            }
        }
        map
    }
}

/// The trailers of a successful call.
pub fn ok_trailers(request_id: Option<HeaderValue>) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(2);
    map.insert(GRPC_STATUS, HeaderValue::from_static("0"));
    if let Some(id) = request_id {
        map.insert(REQUEST_ID, id);
    }
    map
}

/// As the gRPC protocol specifies for `grpc-message`: %XX for all but visible ASCII and space, and for `%` itself.
fn percent_encode(message: &str) -> HeaderValue {
    let mut out = String::with_capacity(message.len());
    for byte in message.bytes() {
        match byte {
            b' '..=b'$' | b'&'..=b'~' => out.push(char::from(byte)),
            _ => drop(write!(out, "%{byte:02X}")),
        }
    }
    HeaderValue::try_from(out).unwrap_or_else(|_| HeaderValue::from_static("internal error"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_percent_encoded() {
        assert_eq!(percent_encode("a %ü\n'2'").to_str().unwrap(), "a %25%C3%BC%0A'2'");
    }

    #[test]
    fn trailers_carry_code_message_id_and_details() {
        let status = Status {
            details: Bytes::from_static(&[8, 3]),
            request_id: Some(HeaderValue::from_static("id-1")),
            ..Status::new(3, "no")
        };
        let map = status.into_trailers();
        let pairs: Vec<_> = map.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(
            pairs,
            [
                ("grpc-status", "3"),
                ("grpc-message", "no"),
                ("x-request-id", "id-1"),
                ("grpc-status-details-bin", "CAM")
            ]
        );
    }
}
