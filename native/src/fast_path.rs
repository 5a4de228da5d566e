//! The fast path: a plain request for predictions is decoded and queued without Python.

use std::sync::Arc;
use std::time::Instant;

use crate::call::Call;
use crate::decode::{decode_infer, decode_predict};
use crate::inference::{InferRequest, ModelSpec, OutputTensor, PixelSource, PIXELS};
use crate::lane::Entry;
use crate::message::Message;
use crate::metrics::nanos;
use crate::model_version::ModelVersion;
use crate::pixels::Pixels;
use crate::regions::{region_owner, RegionSlice};
use crate::responder::{Reply, Responder};
use crate::route::RpcKind;
use crate::server_state::ServerState;

/// A decoded request and the model that serves now, which will answer it.
pub struct FastPathRequest {
    pub inner: InferRequest,
    regions: RequestRegions,
    received_at: Instant,
    model: Arc<ModelVersion>,
}

/// Decodes a request for predictions; `None` for any request that Python must handle.
pub fn decode_fast_path(state: &ServerState, call: &Call, message: &Message) -> Option<FastPathRequest> {
    let kind = call.route.kind;
    let received_at = Instant::now();
    let decode: fn(&Message, &ModelSpec) -> Option<InferRequest> = match kind {
        RpcKind::Predict | RpcKind::PredictStream => decode_predict,
        RpcKind::Infer => |message, spec| decode_infer(message, spec, false),
        RpcKind::InferStream => |message, spec| decode_infer(message, spec, true),
        _ => return None,
    };
    let model = state.model.load();
    let inner = decode(message, &model.spec)?;
    let regions = RequestRegions::find(state, call, &inner)?;
    model.statistics.compute_input.add(nanos(received_at.elapsed()), 1);
    Some(FastPathRequest { inner, regions, received_at, model })
}

/// The parts of shared memory that a request uses.
#[derive(Default)]
struct RequestRegions {
    input: Option<RegionSlice>,
    outputs: Vec<(OutputTensor, RegionSlice)>,
}

impl RequestRegions {
    /// `None` unless the client has each of these regions, and each tensor is within its region and object.
    fn find(state: &ServerState, call: &Call, request: &InferRequest) -> Option<Self> {
        let InferRequest { pixels, images, placements, .. } = request;
        if matches!(pixels, PixelSource::Message(_)) && placements.is_empty() {
            return Some(Self::default());
        }
        let owner = region_owner(call.usage.peer(), state.regions_user?)?;
        let regions = state.regions.load();
        let input = match pixels {
            PixelSource::Message(_) => None,
            PixelSource::Region(placement) => Some(regions.find(owner, "pixels", placement, images * PIXELS)?),
        };
        let outputs = placements.iter().map(|(output, placement)| {
            let slice = regions.find(owner, output.name(), placement, output.byte_len(*images))?;
            Some((*output, slice))
        });
        Some(Self { input, outputs: outputs.collect::<Option<_>>()? })
    }
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
        responder: impl FnOnce(Reply) -> Responder,
    ) {
        let Self { inner: InferRequest { pixels, images, format, .. }, regions, received_at, model } = self;
        let pixels = match (pixels, regions.input) {
            (_, Some(slice)) => Pixels::Region(slice),
            (PixelSource::Message(span), None) => Pixels::Message(message, span),
            (PixelSource::Region(_), None) => unreachable!("`RequestRegions::find` has found it"),
        };
        let responder = responder(Reply { format, placed: regions.outputs, received_at });
        let entry = Entry { pixels, images, enqueued_at: Instant::now(), deadline, model, responder };
        state.queue.push(state.io_thread, entry, &state.model_metrics);
    }
}
