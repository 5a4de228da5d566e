//! Bidirectional streams: one reply a message, in order.

use std::sync::Arc;

use bytes::BytesMut;
use h2::server::SendResponse;
use tokio::sync::oneshot;

use crate::body::{BodyError, RequestBody};
use crate::call::Call;
use crate::call_error::CallError;
use crate::charges::ReplyBuf;
use crate::drain::wait_for_drain;
use crate::encode::encode_stream_error;
use crate::fast_path::decode_fast_path;
use crate::limits::sleep_until;
use crate::message::Message;
use crate::pending_replies::{PendingReplies, Reply};
use crate::prefix::frame;
use crate::responder::Responder;
use crate::response_sink::{ResponseSink, WriteError, WriteTimeout};
use crate::route::RpcKind;
use crate::server_state::ServerState;
use crate::status::{Status, DEADLINE_EXCEEDED, UNAVAILABLE};

/// The maximum of queued images of one stream, in batches of the largest size.
const BATCHES_AHEAD: usize = 2;
/// Replies that are ready together are sent together, up to about this many bytes.
const MAX_WRITE: usize = 16 * 1024;

/// How a stream ends.
enum StreamEnd {
    Completed,
    Failed(CallError),
    Invalid(Status),
    /// Within a reply that the client does not read: with a reset, because a status cannot follow. The code is counted.
    Truncated(usize),
    Cancelled,
}

pub struct Stream {
    state: Arc<ServerState>,
    call: Call,
    sink: ResponseSink,
    pending: PendingReplies,
    /// A Python handler has the last message: the next one waits, because the handler may end the stream.
    awaiting_python: bool,
    /// An error ends the stream instead of being a reply within it.
    ends_on_error: bool,
}

impl Stream {
    pub fn new(state: Arc<ServerState>, call: Call, respond: SendResponse<ReplyBuf>, ends_on_error: bool) -> Self {
        let pending = PendingReplies::new(call.usage.clone());
        Self { state, call, sink: ResponseSink::Unopened(respond), pending, awaiting_python: false, ends_on_error }
    }

    /// Serves the stream to its end.
    pub async fn serve(mut self, mut body: RequestBody) {
        let end = self.reply_to_all(&mut body).await;
        let Self { call, sink, .. } = self;
        match end {
            StreamEnd::Completed => sink.finish(call.succeed()),
            StreamEnd::Failed(error) => sink.finish(call.fail(&error)),
            StreamEnd::Invalid(status) => sink.finish(call.fail_with(status)),
            StreamEnd::Truncated(code) => {
                drop(call.fail_with(Status::new(code, "")));
                sink.reset();
            }
            StreamEnd::Cancelled => {}
        }
    }

    async fn reply_to_all(&mut self, body: &mut RequestBody) -> StreamEnd {
        let mut phase = self.state.phase.subscribe();
        let usage = self.call.usage.clone();
        let mut is_half_closed = false;
        loop {
            let is_idle = self.pending.is_empty();
            if is_idle && is_half_closed {
                return StreamEnd::Completed;
            }
            let has_capacity = usage.has_capacity(0);
            let may_read = !is_half_closed && has_capacity && self.may_read_ahead();
            tokio::select! {
                biased;
                // Reads first, so that all arrived messages become one batch.
                message = body.next(), if may_read => match message {
                    Ok(Some(message)) => if let Err(status) = self.handle(message) {
                        return StreamEnd::Invalid(status);
                    },
                    Ok(None) => is_half_closed = true,
                    Err(BodyError::Cancelled) => return StreamEnd::Cancelled,
                    Err(BodyError::Invalid(status)) => return StreamEnd::Invalid(status),
                },
                reply = self.pending.next() => if let Err(end) = self.send(reply).await {
                    return end;
                },
                () = usage.wait_for_capacity(0), if !has_capacity => {}
                () = wait_for_drain(&mut phase), if is_idle => return StreamEnd::Failed(CallError::ServerStopping),
                () = sleep_until(self.call.deadline) => return StreamEnd::Failed(CallError::DeadlineExceeded),
                () = self.sink.cancelled() => return StreamEnd::Cancelled,
            }
        }
    }

    /// Reads ahead as far as the queue has capacity, so that a stream is not rejected because of its own messages.
    fn may_read_ahead(&self) -> bool {
        let max_images = BATCHES_AHEAD * self.state.limits.max_batch_size;
        let has_capacity = self.pending.images() < max_images && self.state.queue.can_read_ahead();
        !self.awaiting_python && (self.pending.is_empty() || has_capacity)
    }

    /// Queues the message's request, or passes it to its Python handler.
    fn handle(&mut self, message: Message) -> Result<(), Status> {
        let Self { state, call, .. } = self;
        call.route.metrics.messages_received.add(1);
        call.usage.check_replies()?;
        if let Some(request) = decode_fast_path(state, call, &message) {
            let (sender, receiver) = oneshot::channel();
            let id = request.inner.format.id().to_owned();
            self.pending.push(receiver, request.inner.images, request.reply_bytes(), id);
            request.enqueue(state, message, call.deadline, |reply| Responder::Stream { sender, reply });
        } else {
            let (path, bytes) = (&call.route.path, message.to_bytes());
            let reply = state.host.call_handler(path, &bytes, call.deadline, self.ends_on_error, call.usage.peer());
            self.pending.push(reply, 0, call.max_reply_bytes(bytes.len()), String::new());
            self.awaiting_python = true;
        }
        Ok(())
    }

    /// Sends this reply and those that are ready after it.
    async fn send(&mut self, first: Reply) -> Result<(), StreamEnd> {
        let mut out = BytesMut::new();
        let mut replies = 0;
        let mut reply = first;
        let failed = loop {
            match self.encode(reply, &mut out) {
                Ok(()) => replies += 1,
                Err(error) => break Some(error),
            }
            if out.len() >= MAX_WRITE {
                break None;
            }
            match self.pending.next_ready() {
                Some(next) => reply = next,
                None => break None,
            }
        };
        self.awaiting_python &= !self.pending.is_empty();
        if replies > 0 {
            let phase = self.state.phase.subscribe();
            let written = self.sink.write(out, &self.call.usage, self.call.deadline, phase).await;
            written.map_err(StreamEnd::from)?;
            self.call.route.metrics.messages_sent.add(replies);
        }
        failed.map_or(Ok(()), |error| Err(StreamEnd::Failed(error)))
    }

    /// Writes a reply with its prefix. A reply of `ModelStreamInfer` can carry an error.
    fn encode(&self, (result, id): Reply, out: &mut BytesMut) -> Result<(), CallError> {
        match result {
            Ok(reply) if self.awaiting_python && self.pending.is_empty() => out.extend_from_slice(&frame(&reply)),
            Ok(reply) => out.extend_from_slice(&reply),
            Err(error) if self.call.route.kind == RpcKind::InferStream && !self.ends_on_error => {
                let Some(message) = self.state.host.stream_error_message(&error) else { return Err(error) };
                encode_stream_error(out, &message, &id);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

impl From<WriteError> for StreamEnd {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Cancelled => Self::Cancelled,
            WriteError::TimedOut { reason: WriteTimeout::Deadline, is_unsent: true } => {
                Self::Failed(CallError::DeadlineExceeded)
            }
            WriteError::TimedOut { reason: WriteTimeout::Drain, is_unsent: true } => {
                Self::Failed(CallError::ServerStopping)
            }
            WriteError::TimedOut { reason: WriteTimeout::Deadline, .. } => Self::Truncated(DEADLINE_EXCEEDED),
            WriteError::TimedOut { reason: WriteTimeout::Drain, .. } => Self::Truncated(UNAVAILABLE),
        }
    }
}
