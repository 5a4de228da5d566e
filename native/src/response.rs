//! Responses as HTTP/2 carries them. A send error means that the client has left, so it is ignored.

use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Response};

use crate::charges::ReplyBuf;
use crate::status::GRPC_ACCEPT_ENCODING;

/// The response headers of a gRPC call.
pub fn response_headers() -> Response<()> {
    let mut response = Response::new(());
    let headers = response.headers_mut();
    headers.reserve(4);
    headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(GRPC_ACCEPT_ENCODING, HeaderValue::from_static("identity, deflate, gzip"));
    response
}

/// Sends headers, one message and trailers.
pub fn send_unary(mut respond: SendResponse<ReplyBuf>, message: ReplyBuf, trailers: HeaderMap) {
    if let Ok(mut stream) = respond.send_response(response_headers(), false) {
        drop(stream.send_data(message, false));
        drop(stream.send_trailers(trailers));
    }
}

/// Ends a call without a message.
pub fn send_trailers_only(mut respond: SendResponse<ReplyBuf>, trailers: HeaderMap) {
    let mut response = response_headers();
    response.headers_mut().extend(trailers);
    drop(respond.send_response(response, true));
}
