//! The RPCs that the server offers.

use crate::metrics::RpcMetrics;

/// How an RPC is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RpcKind {
    Predict,
    PredictStream,
    Infer,
    InferStream,
    /// By a Python handler, message by message.
    Unary,
    Stream,
    HealthCheck,
    HealthList,
    HealthWatch,
}

impl RpcKind {
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "predict" => Self::Predict,
            "predict-stream" => Self::PredictStream,
            "infer" => Self::Infer,
            "infer-stream" => Self::InferStream,
            "unary" => Self::Unary,
            "stream" => Self::Stream,
            "health-check" => Self::HealthCheck,
            "health-list" => Self::HealthList,
            "health-watch" => Self::HealthWatch,
            _ => return None,
        })
    }

    pub const fn is_stream(self) -> bool {
        matches!(self, Self::PredictStream | Self::InferStream | Self::Stream)
    }
}

#[derive(Debug)]
pub struct Route {
    pub path: String,
    pub kind: RpcKind,
    pub needs_token: bool,
    pub max_message_bytes: usize,
    /// Bytes by which a Python handler's reply may grow with each byte of its request.
    pub reply_bytes_per_request_byte: usize,
    pub metrics: RpcMetrics,
}
