//! Any bytes as the body of a call: cut into messages, perhaps decompressed, and each decoded as every kind of request.
//!
//! A decoded request is within its message, holds complete images, and does not depend on the chunks. Other bodies are
//! passed to Python without a panic, in bounded memory.

#![no_main]

use bytes::Bytes;
use digitserve_native_fuzz::decode::{decode_infer, decode_predict};
use digitserve_native_fuzz::framing::{Encoding, Framed, MessageDecoder};
use digitserve_native_fuzz::inference::{InferRequest, PixelSource, PIXELS};
use digitserve_native_fuzz::message::Message;
use digitserve_native_fuzz::{spec, MAX_BATCH_SIZE};
use libfuzzer_sys::fuzz_target;

/// As the service sets it for such a batch: an image takes at most four bytes a pixel.
const MAX_MESSAGE_BYTES: usize = MAX_BATCH_SIZE * PIXELS * 4 + 16384;

fn decode(message: &Message) -> [Option<InferRequest>; 3] {
    let spec = spec();
    [decode_predict(message, &spec), decode_infer(message, &spec, false), decode_infer(message, &spec, true)]
}

fn check(message: &Message) {
    let bytes = message.to_bytes();
    assert!(bytes.len() <= MAX_MESSAGE_BYTES);
    let in_one_chunk = decode(&Message::from(bytes.clone()));
    for (chunked, one) in decode(message).into_iter().zip(in_one_chunk) {
        let key = |request: InferRequest| (request.pixels, request.images, request.placements);
        let (chunked, one) = (chunked.map(key), one.map(key));
        assert_eq!(chunked, one);
        let Some((PixelSource::Message(span), images, _)) = chunked else { continue };
        assert!((1..=MAX_BATCH_SIZE).contains(&images) && span.len == images * PIXELS);
        let mut pixels = vec![0; span.len];
        message.copy_to(span, &mut pixels);
        assert_eq!(pixels, bytes[span.start..span.start + span.len]);
    }
}

// The first byte selects the compression, the second the chunk size.
fuzz_target!(|input: &[u8]| {
    let [encoding, size, body @ ..] = input else { return };
    let encoding =
        [Encoding::Identity, Encoding::Gzip, Encoding::Deflate, Encoding::Unknown][usize::from(encoding % 4)];
    let mut decoder = MessageDecoder::new(encoding, MAX_MESSAGE_BYTES);
    for chunk in body.chunks(usize::from(*size) * 8 + 1) {
        decoder.push(Bytes::copy_from_slice(chunk));
        loop {
            match decoder.next_message() {
                Ok(Some(Framed::Plain(message))) => check(&message),
                Ok(Some(Framed::Compressed(decompressor))) => match decompressor.finish() {
                    Ok(message) => check(&message),
                    Err(_) => return,
                },
                Ok(None) => break,
                Err(_) => return, // rejected: the call ends
            }
        }
    }
});
