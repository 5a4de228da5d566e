//! The headers of a call: whether they are gRPC's, its RPC, its timeout, its request id.

use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};

use crate::framing::Encoding;
use crate::response::response_headers;
use crate::route::Route;
use crate::server_state::ServerState;
use crate::status::{Status, GRPC_ENCODING, GRPC_TIMEOUT, INTERNAL, REQUEST_ID, RESOURCE_EXHAUSTED, UNIMPLEMENTED};

const MAX_REQUEST_ID: usize = 128;
const MAX_TIMEOUT_DIGITS: usize = 8;
/// HTTP/2's addition to a header field's size (RFC 9113, 10.5.1).
const FIELD_OVERHEAD: usize = 32;

/// Checks that the request is a gRPC call; the error is the response to any other.
pub fn check_protocol(parts: &Parts) -> Result<(), Box<Response<()>>> {
    let (status, message) = if !is_grpc(&parts.headers) {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return Err(Box::new(response));
    } else if parts.method != Method::POST {
        (StatusCode::METHOD_NOT_ALLOWED, "method: not allowed; expected POST")
    } else if !parts.headers.contains_key(http::header::TE) {
        (StatusCode::BAD_REQUEST, "te: missing; expected trailers") // h2 rejects any other value itself
    } else {
        return Ok(());
    };
    let mut response = response_headers();
    *response.status_mut() = status;
    response.headers_mut().extend(Status::new(INTERNAL, message).into_trailers());
    Err(Box::new(response))
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(http::header::CONTENT_TYPE)
        .and_then(|value| value.as_bytes().strip_prefix(b"application/grpc"))
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// Finds the route of a call and its timeout.
pub fn find_route(state: &ServerState, parts: &Parts) -> Result<(Arc<Route>, Option<Duration>), Status> {
    let (size, max) = (header_list_size(parts), state.limits.max_metadata_bytes);
    if size > max {
        return Err(Status::new(RESOURCE_EXHAUSTED, format!("metadata: {size} bytes; at most {max} are allowed")));
    }
    let path = parts.uri.path_and_query().map_or("", |path| path.as_str());
    let route = state.routes.get(path).ok_or_else(|| Status::new(UNIMPLEMENTED, "Method not found!"))?;
    let timeout = parts.headers.get(&GRPC_TIMEOUT).map(|value| {
        let malformed = "grpc-timeout: malformed; expected up to 8 digits and a unit";
        parse_timeout(value).ok_or_else(|| Status::new(INTERNAL, malformed))
    });
    Ok((route.clone(), timeout.transpose()?))
}

/// The size of the headers as HTTP/2 counts it; of the pseudo-headers those that a client can make long.
fn header_list_size(parts: &Parts) -> usize {
    let fields = parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD_OVERHEAD);
    let path = parts.uri.path_and_query().map_or(0, |path| path.as_str().len());
    fields.sum::<usize>() + path + parts.uri.authority().map_or(0, |authority| authority.as_str().len())
}

/// Parses `grpc-timeout`: up to eight digits and a unit.
fn parse_timeout(value: &HeaderValue) -> Option<Duration> {
    let (unit, digits) = value.as_bytes().split_last()?;
    if digits.is_empty() || digits.len() > MAX_TIMEOUT_DIGITS || !digits.iter().all(u8::is_ascii_digit) {
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

/// The client's id of the call, shortened; `None` unless it is printable ASCII.
pub fn request_id(headers: &HeaderMap) -> Option<HeaderValue> {
    let bytes = headers.get(&REQUEST_ID)?.as_bytes();
    if bytes.is_empty() || !bytes.iter().all(|byte| (b' '..=b'~').contains(byte)) {
        return None;
    }
    HeaderValue::from_bytes(&bytes[..bytes.len().min(MAX_REQUEST_ID)]).ok()
}

pub fn encoding(headers: &HeaderMap) -> Encoding {
    Encoding::from_name(headers.get(&GRPC_ENCODING).map(HeaderValue::as_bytes))
}

/// Whether the first error ends a stream with a gRPC status, as with Triton.
pub fn wants_status_on_error(headers: &HeaderMap) -> bool {
    headers.get_all("triton_grpc_error").iter().any(|value| value == "true")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_digits_and_a_unit() {
        let parse = |text: &'static str| parse_timeout(&HeaderValue::from_static(text));
        assert_eq!(parse("100m"), Some(Duration::from_millis(100)));
        assert_eq!(parse("5S"), Some(Duration::from_secs(5)));
        assert_eq!(parse("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for wrong in ["", "m", "1", "1x", "-1m", "123456789m"] {
            assert_eq!(parse(wrong), None, "{wrong}");
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
