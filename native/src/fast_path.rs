//! The fast path: a plain request for predictions is decoded and queued without Python.

use std::sync::Arc;
use std::time::Instant;

use crate::decode::{decode_infer, decode_predict};
use crate::inference::{InferRequest, ModelSpec, ResponseFormat};
use crate::lane::Entry;
use crate::message::Message;
use crate::metrics::nanos;
use crate::model_version::ModelVersion;
use crate::responder::Responder;
use crate::route::RpcKind;
use crate::server_state::ServerState;

/// A decoded request and the model that serves now, which will answer it.
pub struct FastPathRequest {
    pub inner: InferRequest,
    pub received_at: Instant,
    model: Arc<ModelVersion>,
}

/// Decodes a request for predictions; `None` for any request that Python must handle.
pub fn decode_fast_path(state: &ServerState, kind: RpcKind, message: &Message) -> Option<FastPathRequest> {
    let received_at = Instant::now();
    let decode: fn(&Message, &ModelSpec) -> Option<InferRequest> = match kind {
        RpcKind::Predict | RpcKind::PredictStream => decode_predict,
        RpcKind::Infer => |message, spec| decode_infer(message, spec, false),
        RpcKind::InferStream => |message, spec| decode_infer(message, spec, true),
        _ => return None,
    };
    let model = state.model.load();
    let inner = decode(message, &model.spec)?;
    model.statistics.compute_input.add(nanos(received_at.elapsed()), 1);
    Some(FastPathRequest { inner, received_at, model })
}

impl FastPathRequest {
    /// Approximate bytes of the reply.
    pub fn reply_bytes(&self) -> usize {
        self.inner.format.estimate_size(self.inner.images)
    }

    /// Queues the request; `responder` makes the responder of its response format.
    pub fn enqueue(
        self,
        state: &ServerState,
        message: Message,
        deadline: Option<Instant>,
        responder: impl FnOnce(ResponseFormat) -> Responder,
    ) {
        let InferRequest { pixels, images, format } = self.inner;
        let responder = responder(format);
        let entry =
            Entry { message, pixels, images, enqueued_at: Instant::now(), deadline, model: self.model, responder };
        state.queue.push(state.io_thread, entry, &state.model_metrics);
    }
}
