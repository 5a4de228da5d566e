//! Bytes as they arrive, cut into gRPC's messages: five bytes of prefix each, then the message, perhaps compressed.

use std::collections::VecDeque;
use std::io::Read;

use bytes::{Buf, Bytes};
use flate2::read::{MultiGzDecoder, ZlibDecoder};

use crate::asked::PREFIX;
use crate::status::{Refusal, INTERNAL, RESOURCE_EXHAUSTED, UNIMPLEMENTED};
use crate::wire::Message;

/// How the caller compresses the messages that it marks so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Identity,
    Gzip,
    Deflate,
    Unknown,
}

impl Encoding {
    pub fn named(name: Option<&[u8]>) -> Self {
        match name {
            None | Some(b"identity") => Self::Identity,
            Some(b"gzip") => Self::Gzip,
            Some(b"deflate") => Self::Deflate,
            Some(_) => Self::Unknown,
        }
    }
}

/// Bytes that arrived and are not yet a whole message; none may be larger than `limit`.
pub struct Frames {
    pieces: VecDeque<Bytes>,
    len: usize,
    encoding: Encoding,
    limit: usize,
}

impl Frames {
    pub const fn new(encoding: Encoding, limit: usize) -> Self {
        Self { pieces: VecDeque::new(), len: 0, encoding, limit }
    }

    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.len += piece.len();
            self.pieces.push_back(piece);
        }
    }

    /// The first message, where it is here whole.
    pub fn take(&mut self) -> Result<Option<Message>, Refusal> {
        let Some((compressed, len)) = self.prefix() else { return Ok(None) };
        if len > self.limit {
            return Err(too_large(len, self.limit));
        }
        if self.len < PREFIX + len {
            return Ok(None);
        }
        self.cut(PREFIX);
        let message = self.cut(len);
        if compressed {
            self.decompressed(&message).map(Some)
        } else {
            Ok(Some(message))
        }
    }

    /// Whether the first message is compressed, and its length.
    fn prefix(&self) -> Option<(bool, usize)> {
        let mut bytes = self.pieces.iter().flatten();
        let compressed = *bytes.next()? != 0;
        let mut len = 0u32;
        for _ in 1..PREFIX {
            len = len << 8 | u32::from(*bytes.next()?);
        }
        Some((compressed, len as usize))
    }

    fn cut(&mut self, mut n: usize) -> Message {
        self.len -= n;
        let mut message = Message::default();
        while n > 0 {
            let Some(first) = self.pieces.front_mut() else { break };
            if first.len() > n {
                message.push(first.copy_to_bytes(n));
                break;
            }
            n -= first.len();
            message.push(std::mem::take(first));
            self.pieces.pop_front();
        }
        message
    }

    fn decompressed(&self, message: &Message) -> Result<Message, Refusal> {
        let bytes = message.to_bytes();
        let room = self.limit as u64 + 1;
        let mut out = Vec::new();
        let read = match self.encoding {
            Encoding::Gzip => MultiGzDecoder::new(&bytes[..]).take(room).read_to_end(&mut out),
            Encoding::Deflate => ZlibDecoder::new(&bytes[..]).take(room).read_to_end(&mut out),
            Encoding::Identity => {
                return Err(Refusal::bare(INTERNAL, "a message is marked compressed, but the call names no encoding"))
            }
            Encoding::Unknown => {
                return Err(Refusal::bare(UNIMPLEMENTED, "grpc-encoding: expected identity, deflate or gzip"))
            }
        };
        if out.len() > self.limit {
            return Err(too_large(out.len(), self.limit));
        }
        match read {
            Ok(_) => Ok(Message::from(Bytes::from(out))),
            Err(_) => Err(Refusal::bare(INTERNAL, "a compressed message cannot be decompressed")),
        }
    }
}

fn too_large(len: usize, limit: usize) -> Refusal {
    Refusal::bare(RESOURCE_EXHAUSTED, format!("SERVER: Received message larger than max ({len} vs. {limit})"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frames(encoding: Encoding) -> Frames {
        Frames::new(encoding, 1000)
    }

    fn framed(compressed: u8, message: &[u8]) -> Vec<u8> {
        let len = u32::try_from(message.len()).unwrap();
        [&[compressed][..], &len.to_be_bytes(), message].concat()
    }

    proptest! {
        #[test]
        fn messages_come_out_as_they_went_in_however_frames_cut_them(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 0..8),
            size in 1..64usize,
        ) {
            let mut frames = frames(Encoding::Identity);
            let mut found = Vec::new();
            let sent: Vec<u8> = messages.iter().flat_map(|message| framed(0, message)).collect();
            for piece in sent.chunks(size) {
                frames.push(Bytes::copy_from_slice(piece));
                while let Some(message) = frames.take().unwrap() {
                    found.push(message.to_bytes().to_vec());
                }
            }
            prop_assert_eq!(found, messages);
            prop_assert!(frames.is_empty());
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut frames = frames(Encoding::Gzip);
            frames.push(Bytes::from(bytes));
            while let Ok(Some(message)) = frames.take() {
                prop_assert!(message.len() <= 1000);
            }
        }
    }

    #[test]
    fn a_compressed_message_is_decompressed_up_to_the_limit() {
        let packed = |len| {
            let mut encoder = flate2::read::GzEncoder::new(std::io::repeat(7).take(len), flate2::Compression::fast());
            let mut out = Vec::new();
            encoder.read_to_end(&mut out).unwrap();
            out
        };
        let mut frames = frames(Encoding::Gzip);
        frames.push(Bytes::from(framed(1, &packed(900))));
        assert_eq!(frames.take().unwrap().unwrap().to_bytes(), vec![7; 900]);
        frames.push(Bytes::from(framed(1, &packed(1_000_000))));
        assert_eq!(frames.take().unwrap_err().code, RESOURCE_EXHAUSTED);
    }

    #[test]
    fn a_message_over_the_limit_is_refused_by_its_prefix() {
        let mut frames = frames(Encoding::Identity);
        frames.push(Bytes::from_static(&[0, 0, 0, 4, 0]));
        assert_eq!(frames.take().unwrap_err().code, RESOURCE_EXHAUSTED);
    }
}
