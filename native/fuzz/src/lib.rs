//! The parts that the fuzz targets share: the modules that read requests without calling Python. For comparison, it
//! also has the same messages for a complete protobuf parser.

#[path = "../../src/decode.rs"]
pub mod decode;
#[path = "../../src/decompression.rs"]
pub mod decompression;
#[path = "../../src/encode.rs"]
pub mod encode;
#[path = "../../src/framing.rs"]
pub mod framing;
#[path = "../../src/inference.rs"]
pub mod inference;
#[path = "../../src/message.rs"]
pub mod message;
#[path = "../../src/prefix.rs"]
pub mod prefix;
pub mod prost_messages;
#[path = "../../src/protobuf.rs"]
pub mod protobuf;
#[path = "../../src/status.rs"]
pub mod status;

use bytes::{Bytes, BytesMut};
use encode::encode_reply;
use inference::{InferRequest, ModelSpec, PixelSource, Predictions, Rows, PIXELS};
use message::Message;
use prefix::PREFIX_LEN;

pub const MAX_BATCH_SIZE: usize = 4;

pub fn spec() -> ModelSpec {
    ModelSpec { name: "digits".into(), version: "1".into(), max_batch_size: MAX_BATCH_SIZE }
}

/// Splits the rest into chunks of the size that the first byte gives.
pub fn in_chunks(data: &[u8]) -> Option<(&[u8], Vec<Bytes>)> {
    let (size, bytes) = data.split_first()?;
    let chunks = bytes.chunks(usize::from(*size) * 4 + 1).map(Bytes::copy_from_slice).collect();
    Some((bytes, chunks))
}

pub fn message(chunks: Vec<Bytes>) -> Message {
    let mut message = Message::default();
    for chunk in chunks {
        message.push(chunk);
    }
    message
}

/// Copies the pixels of a request as a batch copies them; `None` if they are in shared memory.
pub fn pixels(message: &Message, request: &InferRequest) -> Option<Vec<u8>> {
    assert!((1..=MAX_BATCH_SIZE).contains(&request.images), "{} images", request.images);
    let span = match &request.pixels {
        PixelSource::Message(span) => *span,
        PixelSource::Region(placement) => {
            assert_eq!(placement.byte_size, (request.images * PIXELS) as u64);
            return None;
        }
    };
    assert_eq!(span.len, request.images * PIXELS);
    let mut pixels = vec![0; span.len];
    message.copy_to(span, &mut pixels);
    Some(pixels)
}

/// Encodes a reply to the request, without its prefix.
pub fn reply(request: &InferRequest) -> Bytes {
    let rows = MAX_BATCH_SIZE + 1;
    let predictions = Predictions {
        digits: vec![3; rows],
        activations: vec![0.5; rows * 10],
        layer1: vec![0.25; rows * 16],
        layer2: vec![0.125; rows * 16],
    };
    let mut out = BytesMut::new();
    encode_reply(&mut out, &request.format, &predictions, Rows { first: 1, images: request.images }, &spec());
    let len = u32::from_be_bytes(out[1..PREFIX_LEN].try_into().expect("four bytes"));
    assert_eq!(out.len(), PREFIX_LEN + len as usize);
    out.split_off(PREFIX_LEN).freeze()
}
