//! Dispatch of a call by its headers: checks them, authenticates and admits the call, and serves it.

use std::sync::Arc;
use std::time::Instant;

use h2::server::SendResponse;
use h2::RecvStream;
use http::request::Parts;
use http::{HeaderMap, Request};

use crate::admission::admit;
use crate::auth::{authenticate, AuthError};
use crate::body::RequestBody;
use crate::budget::Usage;
use crate::call::Call;
use crate::call_error::CallError;
use crate::charges::ReplyBuf;
use crate::request::{check_protocol, encoding, find_route, request_id, wants_status_on_error};
use crate::response::send_trailers_only;
use crate::route::RpcKind;
use crate::server_state::ServerState;
use crate::stream::Stream;
use crate::unary::serve_unary;

/// Serves one call to its end.
pub async fn serve_call(
    state: Arc<ServerState>,
    usage: Arc<Usage>,
    request: Request<RecvStream>,
    respond: SendResponse<ReplyBuf>,
) {
    let (parts, body) = request.into_parts();
    let Some((call, respond)) = start_call(&state, usage, &parts, respond) else { return };
    let (call, respond) = if call.usage.has_capacity(0) {
        (call, respond)
    } else {
        let Some(admitted) = Box::pin(admit(call, respond, 0, 0)).await else { return };
        admitted
    };
    let is_stream = call.route.kind.is_stream();
    let body = RequestBody::new(
        body,
        encoding(&parts.headers),
        call.route.max_message_bytes,
        state.limits.message_timeout,
        is_stream,
        call.usage.clone(),
    );
    if is_stream {
        let ends_on_error = call.route.kind == RpcKind::InferStream && wants_status_on_error(&parts.headers);
        Box::pin(Stream::new(state, call, respond, ends_on_error).serve(body)).await;
    } else {
        serve_unary(state, call, respond, body).await;
    }
}

/// Starts the call, or answers a request that is none or may not be one.
fn start_call(
    state: &ServerState,
    usage: Arc<Usage>,
    parts: &Parts,
    mut respond: SendResponse<ReplyBuf>,
) -> Option<(Call, SendResponse<ReplyBuf>)> {
    let started_at = Instant::now();
    if let Err(response) = check_protocol(parts) {
        drop(respond.send_response(*response, true));
        return None;
    }
    let (route, timeout) = match find_route(state, parts) {
        Ok(route_and_timeout) => route_and_timeout,
        Err(status) => {
            send_trailers_only(respond, status.into_trailers());
            return None;
        }
    };
    let deadline = timeout.and_then(|timeout| started_at.checked_add(timeout));
    let call = Call::start(state.host.clone(), route, usage, request_id(&parts.headers), started_at, deadline);
    if let Err(error) = authenticate_call(state, &call, &parts.headers) {
        state.model_metrics.unauthenticated.add(1);
        send_trailers_only(respond, call.fail(&CallError::Unauthenticated(error)));
        return None;
    }
    if let Err(status) = call.usage.check_replies() {
        send_trailers_only(respond, call.fail_with(status));
        return None;
    }
    Some((call, respond))
}

fn authenticate_call(state: &ServerState, call: &Call, headers: &HeaderMap) -> Result<(), AuthError> {
    if call.route.needs_token {
        authenticate(&state.tokens.load(), headers)?;
        call.usage.set_authenticated();
    }
    Ok(())
}
