//! Unary calls.

use std::future::poll_fn;
use std::sync::Arc;

use h2::server::SendResponse;

use crate::admission::admit;
use crate::body::{BodyError, RequestBody};
use crate::call::Call;
use crate::call_error::CallError;
use crate::charges::{ReplyBuf, Reservation};
use crate::fast_path::{decode_fast_path, FastPathRequest};
use crate::health;
use crate::limits::sleep_until;
use crate::message::Message;
use crate::prefix::frame;
use crate::responder::Responder;
use crate::response::{send_trailers_only, send_unary};
use crate::route::RpcKind;
use crate::server_state::ServerState;
use crate::status::{Status, UNIMPLEMENTED};

/// Serves a unary call to its end, or until its request is queued.
pub async fn serve_unary(state: Arc<ServerState>, call: Call, respond: SendResponse<ReplyBuf>, mut body: RequestBody) {
    let first = tokio::select! {
        biased;
        first = body.next() => first,
        () = sleep_until(call.deadline) => {
            return send_trailers_only(respond, call.fail(&CallError::DeadlineExceeded));
        }
    };
    let message = match first {
        Ok(Some(message)) => message,
        Ok(None) => {
            let status = Status::new(UNIMPLEMENTED, "the call holds no message; expected one");
            return send_trailers_only(respond, call.fail_with(status));
        }
        Err(BodyError::Invalid(status)) => return send_trailers_only(respond, call.fail_with(status)),
        Err(BodyError::Cancelled) => return,
    };
    call.route.metrics.messages_received.add(1);
    match call.route.kind {
        RpcKind::HealthCheck | RpcKind::HealthList => health::check(&state, call, respond, &message),
        RpcKind::HealthWatch => Box::pin(health::watch(&state, call, respond, &message)).await,
        _ => match decode_fast_path(&state, &call, &message) {
            Some(request) if call.usage.has_capacity(request.reply_bytes()) => {
                enqueue(&state, call, respond, message, request);
            }
            Some(request) => Box::pin(enqueue_when_admitted(&state, call, respond, message, request)).await,
            None => {
                drop(body);
                Box::pin(serve_by_python(&state, call, respond, &message)).await;
            }
        },
    }
}

fn enqueue(
    state: &ServerState,
    call: Call,
    respond: SendResponse<ReplyBuf>,
    message: Message,
    request: FastPathRequest,
) {
    let deadline = call.deadline;
    request.enqueue(state, message, deadline, |reply| Responder::Unary { respond, call, reply });
}

async fn enqueue_when_admitted(
    state: &ServerState,
    call: Call,
    respond: SendResponse<ReplyBuf>,
    message: Message,
    request: FastPathRequest,
) {
    let admitted = admit(call, respond, message.len(), request.reply_bytes()).await;
    let Some((call, respond)) = admitted else { return };
    enqueue(state, call, respond, message, request);
}

/// Passes the message to the Python handler, once there is capacity for its reply.
async fn serve_by_python(state: &ServerState, call: Call, respond: SendResponse<ReplyBuf>, message: &Message) {
    let reply_bytes = call.max_reply_bytes(message.len());
    let Some((call, mut respond)) = admit(call, respond, message.len(), reply_bytes).await else { return };
    let _reservation = Reservation::new(call.usage.clone(), reply_bytes);
    let reply = state.host.call_handler(&call.route.path, &message.to_bytes(), call.deadline, false, call.usage.peer());
    let result = tokio::select! {
        biased;
        result = reply => result,
        _ = poll_fn(|cx| respond.poll_reset(cx)) => return,
        () = sleep_until(call.deadline) => Ok(Err(CallError::DeadlineExceeded)),
    };
    match result {
        Ok(Ok(reply)) => {
            call.route.metrics.messages_sent.add(1);
            let reply = ReplyBuf::new(frame(&reply), call.usage.clone());
            send_unary(respond, reply, call.succeed());
        }
        Ok(Err(error)) => send_trailers_only(respond, call.fail(&error)),
        Err(_) => send_trailers_only(respond, call.fail_with(Status::internal())),
    }
}
