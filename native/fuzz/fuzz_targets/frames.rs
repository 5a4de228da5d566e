//! Any bytes as the body of a call, in every encoding: messages come out whole and within the limit, or a refusal does,
//! and how the bytes were cut makes no difference.
#![no_main]

use bytes::Bytes;
use digitserve_native_fuzz::frames::{Encoding, Frames};
use digitserve_native_fuzz::in_pieces;
use libfuzzer_sys::fuzz_target;

const LIMIT: usize = 4096;

fuzz_target!(|data: &[u8]| {
    let Some((encoding, data)) = data.split_first() else { return };
    let Some((bytes, pieces)) = in_pieces(data) else { return };
    let encoding =
        [Encoding::Identity, Encoding::Gzip, Encoding::Deflate, Encoding::Unknown][usize::from(encoding % 4)];
    assert_eq!(read(encoding, pieces), read(encoding, vec![Bytes::copy_from_slice(bytes)]));
});

/// The messages, and the code and sentence of what ended them.
fn read(encoding: Encoding, pieces: Vec<Bytes>) -> (Vec<Bytes>, Option<(usize, String)>) {
    let (mut frames, mut found) = (Frames::new(encoding, LIMIT), Vec::new());
    for piece in pieces {
        frames.push(piece);
        loop {
            match frames.take() {
                Ok(Some(message)) => found.push(message.to_bytes()),
                Ok(None) => break,
                Err(refusal) => return (found, Some((refusal.code, refusal.sentence))),
            }
            assert!(found.last().is_some_and(|message| message.len() <= LIMIT));
        }
    }
    (found, None)
}
