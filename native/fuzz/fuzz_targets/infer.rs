//! Any bytes as a `ModelInferRequest`: what the decoder takes, a whole parser understands the same, and so its reply.
#![no_main]

use digitserve_native_fuzz::prost_messages::{ModelInferRequest, ModelInferResponse, ModelStreamInferResponse};
use digitserve_native_fuzz::{decode, in_pieces, message, pixels, reply, serves};
use libfuzzer_sys::fuzz_target;
use prost::Message;

const OUTPUTS: [&str; 4] = ["activations", "digit", "layer1", "layer2"];

fuzz_target!(|data: &[u8]| {
    let Some((bytes, pieces)) = in_pieces(data) else { return };
    let message = message(pieces);
    let in_stream = bytes.len() % 2 == 0;
    let Some(asked) = decode::infer(&message, &serves(), in_stream) else { return };

    let whole = ModelInferRequest::decode(bytes).expect("taken, so it is protobuf");
    assert_eq!(whole.raw_input_contents, [pixels(&message, &asked)]);
    assert_eq!(whole.model_name, "digits");
    assert!(["", "1"].contains(&whole.model_version.as_str()));
    let [input] = whole.inputs.as_slice() else { panic!("{} inputs", whole.inputs.len()) };
    assert_eq!((input.name.as_str(), input.datatype.as_str()), ("pixels", "UINT8"));
    let images = i64::try_from(asked.images).expect("a batch is small");
    assert_eq!(input.shape, [images, 784]);

    let reply = answered(reply(&asked), in_stream);
    assert_eq!(reply.id, whole.id);
    let names: Vec<&str> = reply.outputs.iter().map(|output| output.name.as_str()).collect();
    if whole.outputs.is_empty() {
        assert_eq!(names, OUTPUTS);
    } else {
        assert_eq!(names, whole.outputs.iter().map(|output| output.name.as_str()).collect::<Vec<_>>());
    }
    for (output, content) in reply.outputs.iter().zip(&reply.raw_output_contents) {
        let size = if output.datatype == "INT64" { 8 } else { 4 };
        assert_eq!(content.len() as i64, output.shape.iter().product::<i64>() * size);
    }
    assert_eq!(reply.outputs.len(), reply.raw_output_contents.len());
});

fn answered(reply: bytes::Bytes, in_stream: bool) -> ModelInferResponse {
    if in_stream {
        ModelStreamInferResponse::decode(reply).expect("a reply is protobuf").infer_response.expect("a reply")
    } else {
        ModelInferResponse::decode(reply).expect("a reply is protobuf")
    }
}
