//! Admission of a call into its connection's memory budget.

use std::future::poll_fn;

use h2::server::SendResponse;

use crate::call::Call;
use crate::call_error::CallError;
use crate::charges::{IncompleteMessage, ReplyBuf};
use crate::limits::sleep_until;
use crate::response::send_trailers_only;

/// Waits until the connection has capacity for the reply, and counts the message meanwhile; `None` if the call ended.
///
/// Box the future if it is rarely awaited: a task is as large as the largest future in it.
pub async fn admit(
    call: Call,
    mut respond: SendResponse<ReplyBuf>,
    message_bytes: usize,
    reply_bytes: usize,
) -> Option<(Call, SendResponse<ReplyBuf>)> {
    let mut waiting = IncompleteMessage::new(call.usage.clone());
    if let Err(status) = waiting.set(message_bytes) {
        send_trailers_only(respond, call.fail_with(status));
        return None;
    }
    tokio::select! {
        biased;
        () = call.usage.wait_for_capacity(reply_bytes) => Some((call, respond)),
        _ = poll_fn(|cx| respond.poll_reset(cx)) => None,
        () = sleep_until(call.deadline) => {
            send_trailers_only(respond, call.fail(&CallError::DeadlineExceeded));
            None
        }
    }
}
