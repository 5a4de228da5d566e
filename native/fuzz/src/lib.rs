//! What the fuzz targets share: the modules of the transport that read what callers send, none of which knows Python,
//! and the same messages for a whole parser of protobuf, to compare with.

#[path = "../../src/decode.rs"]
pub mod decode;
#[path = "../../src/decompression.rs"]
pub mod decompression;
#[path = "../../src/framing.rs"]
pub mod framing;
pub mod prost_messages;
#[path = "../../src/protobuf.rs"]
pub mod protobuf;
#[path = "../../src/status.rs"]
pub mod status;

use bytes::{Bytes, BytesMut};
use decode::{put_reply, Asked, Predictions, Rows, Serves, PIXELS, PREFIX};
use protobuf::Message;

pub const MAX_BATCH: usize = 4;

pub fn serves() -> Serves {
    Serves { name: "digits".into(), version: "1".into(), max_batch_size: MAX_BATCH }
}

/// The first byte says how long the pieces are in which the rest arrives.
pub fn in_pieces(data: &[u8]) -> Option<(&[u8], Vec<Bytes>)> {
    let (size, bytes) = data.split_first()?;
    let pieces = bytes.chunks(usize::from(*size) * 4 + 1).map(Bytes::copy_from_slice).collect();
    Some((bytes, pieces))
}

pub fn message(pieces: Vec<Bytes>) -> Message {
    let mut message = Message::default();
    for piece in pieces {
        message.push(piece);
    }
    message
}

/// The pixels that were understood, copied as a batch copies them.
pub fn pixels(message: &Message, asked: &Asked) -> Vec<u8> {
    assert!((1..=MAX_BATCH).contains(&asked.images), "{} images", asked.images);
    assert_eq!(asked.span.len, asked.images * PIXELS);
    let mut pixels = vec![0; asked.span.len];
    message.copy(asked.span, &mut pixels);
    pixels
}

/// The reply to it, without its prefix.
pub fn reply(asked: &Asked) -> Bytes {
    let rows = MAX_BATCH + 1;
    let found = Predictions {
        digits: vec![3; rows],
        activations: vec![0.5; rows * 10],
        layer1: vec![0.25; rows * 16],
        layer2: vec![0.125; rows * 16],
    };
    let mut out = BytesMut::new();
    put_reply(&mut out, &asked.form, &found, Rows { first: 1, images: asked.images }, &serves());
    let len = u32::from_be_bytes(out[1..PREFIX].try_into().expect("four bytes"));
    assert_eq!(out.len(), PREFIX + len as usize);
    out.split_off(PREFIX).freeze()
}
