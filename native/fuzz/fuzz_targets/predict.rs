//! Any bytes as a `PredictRequest`: a complete parser reads a request that the decoder accepts the same way, and its reply.
#![no_main]

use digitserve_native_fuzz::decode::decode_predict;
use digitserve_native_fuzz::prost_messages::{PredictRequest, PredictResponse};
use digitserve_native_fuzz::{in_chunks, message, pixels, reply, spec};
use libfuzzer_sys::fuzz_target;
use prost::Message;

fuzz_target!(|data: &[u8]| {
    let Some((bytes, chunks)) = in_chunks(data) else { return };
    let message = message(chunks);
    let Some(request) = decode_predict(&message, &spec()) else { return };

    let decoded = PredictRequest::decode(bytes).expect("the decoder accepted it");
    assert_eq!(Some(decoded.pixels), pixels(&message, &request));
    assert_eq!(decoded.include_hidden_layers, request.format.needs_hidden_layers());
    assert!(["", "1"].contains(&decoded.model_version.as_str()));

    let reply = PredictResponse::decode(reply(&request)).expect("a reply is protobuf");
    assert_eq!(reply.digits, vec![3; request.images]);
    assert_eq!(reply.activations, vec![0.5; request.images * 10]);
    let hidden = if decoded.include_hidden_layers { request.images * 16 } else { 0 };
    assert_eq!((reply.layer1, reply.layer2), (vec![0.25; hidden], vec![0.125; hidden]));
});
