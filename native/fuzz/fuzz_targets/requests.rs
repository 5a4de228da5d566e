//! Any bytes as the body of a call: cut into messages, perhaps decompressed, and each read as every request there is.
//!
//! What is understood lies within its message and is whole images; it is the same however frames cut the message; and
//! what is not understood is left to Python without a panic, in bounded memory.

#![no_main]

use bytes::Bytes;
use digitserve_native_fuzz::decode::{infer, predict, Asked, PIXELS};
use digitserve_native_fuzz::framing::{Encoding, Framed, Frames};
use digitserve_native_fuzz::protobuf::Message;
use digitserve_native_fuzz::{serves, MAX_BATCH};
use libfuzzer_sys::fuzz_target;

/// As the service sets it for such a batch: an image takes at most four bytes a pixel.
const LARGEST_MESSAGE: usize = MAX_BATCH * PIXELS * 4 + 16384;

fn understood(message: &Message) -> [Option<Asked>; 3] {
    let serves = serves();
    [predict(message, &serves), infer(message, &serves, false), infer(message, &serves, true)]
}

fn check(message: &Message) {
    let whole = message.to_bytes();
    assert!(whole.len() <= LARGEST_MESSAGE);
    let in_one_piece = understood(&Message::from(whole.clone()));
    for (cut, uncut) in understood(message).into_iter().zip(in_one_piece) {
        assert_eq!(cut.as_ref().map(|asked| (asked.span, asked.images)), uncut.map(|asked| (asked.span, asked.images)));
        let Some(Asked { span, images, .. }) = cut else { continue };
        assert!((1..=MAX_BATCH).contains(&images) && span.len == images * PIXELS);
        let mut pixels = vec![0; span.len];
        message.copy(span, &mut pixels);
        assert_eq!(pixels, whole[span.start..span.start + span.len]);
    }
}

// The first byte says how the body is compressed, the second how frames cut it.
fuzz_target!(|input: &[u8]| {
    let [encoding, size, body @ ..] = input else { return };
    let encoding =
        [Encoding::Identity, Encoding::Gzip, Encoding::Deflate, Encoding::Unknown][usize::from(encoding % 4)];
    let mut frames = Frames::new(encoding, LARGEST_MESSAGE);
    for piece in body.chunks(usize::from(*size) * 8 + 1) {
        frames.push(Bytes::copy_from_slice(piece));
        loop {
            match frames.take() {
                Ok(Some(Framed::Plain(message))) => check(&message),
                Ok(Some(Framed::Compressed(inflating))) => match inflating.finish() {
                    Ok(message) => check(&message),
                    Err(_) => return,
                },
                Ok(None) => break,
                Err(_) => return, // refused: the call ends
            }
        }
    }
});
