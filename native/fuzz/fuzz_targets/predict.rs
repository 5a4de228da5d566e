//! Any bytes as a `PredictRequest`: what the decoder takes, a whole parser understands the same, and so its reply.
#![no_main]

use digitserve_native_fuzz::prost_messages::{PredictRequest, PredictResponse};
use digitserve_native_fuzz::{decode, in_pieces, message, pixels, reply, serves};
use libfuzzer_sys::fuzz_target;
use prost::Message;

fuzz_target!(|data: &[u8]| {
    let Some((bytes, pieces)) = in_pieces(data) else { return };
    let message = message(pieces);
    let Some(asked) = decode::predict(&message, &serves()) else { return };

    let whole = PredictRequest::decode(bytes).expect("taken, so it is protobuf");
    assert_eq!(whole.pixels, pixels(&message, &asked));
    assert_eq!(whole.include_hidden_layers, asked.form.hidden());
    assert!(["", "1"].contains(&whole.model_version.as_str()));

    let reply = PredictResponse::decode(reply(&asked)).expect("a reply is protobuf");
    assert_eq!(reply.digits, vec![3; asked.images]);
    assert_eq!(reply.activations, vec![0.5; asked.images * 10]);
    let hidden = if whole.include_hidden_layers { asked.images * 16 } else { 0 };
    assert_eq!((reply.layer1, reply.layer2), (vec![0.25; hidden], vec![0.125; hidden]));
});
