//! Any bytes as a `ModelInferRequest`: a complete parser reads a request that the decoder accepts the same way, and its reply.
#![no_main]

use digitserve_native_fuzz::decode::decode_infer;
use std::collections::HashMap;

use digitserve_native_fuzz::inference::{InferRequest, PixelSource, Placement};
use digitserve_native_fuzz::prost_messages::{
    Choice, InferParameter, ModelInferRequest, ModelInferResponse, ModelStreamInferResponse,
};
use digitserve_native_fuzz::{in_chunks, message, pixels, reply, spec};
use libfuzzer_sys::fuzz_target;
use prost::Message;

const OUTPUTS: [&str; 4] = ["activations", "digit", "layer1", "layer2"];

fuzz_target!(|data: &[u8]| {
    let Some((bytes, chunks)) = in_chunks(data) else { return };
    let message = message(chunks);
    let in_stream = bytes.len() % 2 == 0;
    let Some(request) = decode_infer(&message, &spec(), in_stream) else { return };

    let decoded = ModelInferRequest::decode(bytes).expect("the decoder accepted it");
    assert_eq!(decoded.raw_input_contents, Vec::from_iter(pixels(&message, &request)));
    assert_eq!(decoded.model_name, "digits");
    assert!(["", "1"].contains(&decoded.model_version.as_str()));
    let [input] = decoded.inputs.as_slice() else { panic!("{} inputs", decoded.inputs.len()) };
    assert_eq!((input.name.as_str(), input.datatype.as_str()), ("pixels", "UINT8"));
    assert_eq!(&Placed::of(&input.parameters), &input_placed(&request));
    for output in &decoded.outputs {
        let placed = request.placements.iter().find(|(tensor, _)| tensor.name() == output.name);
        assert_eq!(Placed::of(&output.parameters), placed.map(|(_, placement)| Placed::from(placement)));
    }
    let images = i64::try_from(request.images).expect("a batch is small");
    assert_eq!(input.shape, [images, 784]);

    let reply = decode_reply(reply(&request), in_stream);
    assert_eq!(reply.id, decoded.id);
    let names: Vec<&str> = reply.outputs.iter().map(|output| output.name.as_str()).collect();
    if decoded.outputs.is_empty() {
        assert_eq!(names, OUTPUTS);
    } else {
        assert_eq!(names, decoded.outputs.iter().map(|output| output.name.as_str()).collect::<Vec<_>>());
    }
    for (output, content) in reply.outputs.iter().zip(&reply.raw_output_contents) {
        let size = if output.datatype == "INT64" { 8 } else { 4 };
        let is_placed = request.placements.iter().any(|(tensor, _)| tensor.name() == output.name);
        let values = if is_placed { 0 } else { output.shape.iter().product::<i64>() };
        assert_eq!(content.len() as i64, values * size);
    }
    assert_eq!(reply.outputs.len(), reply.raw_output_contents.len());
});

/// The place of a tensor in shared memory.
#[derive(Debug, PartialEq)]
struct Placed(String, u64, u64);

impl Placed {
    fn of(parameters: &HashMap<String, InferParameter>) -> Option<Self> {
        let number = |key: &str| match parameters.get(key)?.parameter_choice.as_ref()? {
            Choice::Int64Param(value) => u64::try_from(*value).ok(),
            Choice::Uint64Param(value) => Some(*value),
            _ => None,
        };
        let Choice::StringParam(region) = parameters.get("shared_memory_region")?.parameter_choice.as_ref()? else {
            return None;
        };
        let offset = number("shared_memory_offset").unwrap_or_default();
        Some(Self(region.clone(), offset, number("shared_memory_byte_size")?))
    }
}

impl From<&Placement> for Placed {
    fn from(placement: &Placement) -> Self {
        Self(placement.region.clone(), placement.offset, placement.byte_size)
    }
}

fn input_placed(request: &InferRequest) -> Option<Placed> {
    match &request.pixels {
        PixelSource::Message(_) => None,
        PixelSource::Region(placement) => Some(placement.into()),
    }
}

fn decode_reply(reply: bytes::Bytes, in_stream: bool) -> ModelInferResponse {
    if in_stream {
        ModelStreamInferResponse::decode(reply).expect("a reply is protobuf").infer_response.expect("a reply")
    } else {
        ModelInferResponse::decode(reply).expect("a reply is protobuf")
    }
}
