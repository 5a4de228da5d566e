//! How a call ends: the trailers of a success, and those of a refusal with its sentence and details.

use std::fmt::Write as _;

use base64::prelude::{Engine, BASE64_STANDARD_NO_PAD};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
// Names made once: a name made of a text for each call costs more than the look-up.
pub const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
pub const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
pub const GRPC_ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");

pub const OK: usize = 0;
pub const CANCELLED: usize = 1;
pub const DEADLINE_EXCEEDED: usize = 4;
pub const NOT_FOUND: usize = 5;
pub const RESOURCE_EXHAUSTED: usize = 8;
pub const UNIMPLEMENTED: usize = 12;
pub const INTERNAL: usize = 13;
pub const UNAVAILABLE: usize = 14;

/// A call that fails: its status code, its sentence, and a serialised `google.rpc.Status` where there is more to say.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub code: usize,
    pub sentence: String,
    pub details: Bytes,
    pub request_id: Option<HeaderValue>,
}

impl Refusal {
    pub fn bare(code: usize, sentence: impl Into<String>) -> Self {
        Self { code, sentence: sentence.into(), details: Bytes::new(), request_id: None }
    }

    pub fn trailers(self) -> HeaderMap {
        let mut map = HeaderMap::with_capacity(4);
        map.insert(GRPC_STATUS, HeaderValue::from(self.code));
        map.insert(GRPC_MESSAGE, percent_encoded(&self.sentence));
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

pub fn success(request_id: Option<HeaderValue>) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(2);
    map.insert(GRPC_STATUS, HeaderValue::from_static("0"));
    if let Some(id) = request_id {
        map.insert(REQUEST_ID, id);
    }
    map
}

/// As the gRPC protocol has it: all but visible ASCII and space, and the percent sign itself, as %XX.
fn percent_encoded(sentence: &str) -> HeaderValue {
    let mut out = String::with_capacity(sentence.len());
    for byte in sentence.bytes() {
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
    fn a_sentence_travels_percent_encoded() {
        assert_eq!(percent_encoded("a %ü\n'2'").to_str().unwrap(), "a %25%C3%BC%0A'2'");
    }

    #[test]
    fn a_refusal_carries_code_sentence_id_and_details() {
        let refusal = Refusal {
            details: Bytes::from_static(&[8, 3]),
            request_id: Some(HeaderValue::from_static("id-1")),
            ..Refusal::bare(3, "no")
        };
        let map = refusal.trailers();
        let got: Vec<_> = map.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(
            got,
            [
                ("grpc-status", "3"),
                ("grpc-message", "no"),
                ("x-request-id", "id-1"),
                ("grpc-status-details-bin", "CAM")
            ]
        );
    }
}
