//! Decompression of one message within limits: few compressed bytes can mean many bytes and much work.

use std::io::Read;

use bytes::buf::Reader;
use bytes::{Buf, Bytes};
use flate2::bufread::{GzDecoder, ZlibDecoder};

use crate::message::Message;
use crate::status::{Status, INTERNAL, RESOURCE_EXHAUSTED};

/// A message this small that expands to `INLINE_OUTPUT` at most is decompressed on the receiving thread, which costs less
/// than a hand-over to another thread.
const INLINE_INPUT: usize = 4 << 10;
const INLINE_OUTPUT: usize = 16 << 10;

/// Decompresses one message, to `limit` bytes at most.
pub struct Decompressor {
    decoder: Decoder,
    out: Vec<u8>,
    limit: usize,
    compressed_len: usize,
}

/// Each decodes one stream and stops after it; bytes that follow are not part of the message.
enum Decoder {
    Gzip(GzDecoder<Reader<Bytes>>),
    Deflate(ZlibDecoder<Reader<Bytes>>),
}

impl Decompressor {
    pub fn gzip(message: &Message, limit: usize) -> Self {
        let bytes = message.to_bytes();
        let compressed_len = bytes.len();
        Self { compressed_len, decoder: Decoder::Gzip(GzDecoder::new(bytes.reader())), out: Vec::new(), limit }
    }

    pub fn deflate(message: &Message, limit: usize) -> Self {
        let bytes = message.to_bytes();
        let compressed_len = bytes.len();
        Self { compressed_len, decoder: Decoder::Deflate(ZlibDecoder::new(bytes.reader())), out: Vec::new(), limit }
    }

    pub const fn compressed_len(&self) -> usize {
        self.compressed_len
    }

    /// Whether the message is complete after little work. If not, `finish` belongs on another thread.
    pub fn try_finish_inline(&mut self) -> Result<bool, Status> {
        Ok(self.compressed_len <= INLINE_INPUT && self.read_up_to(INLINE_OUTPUT)?)
    }

    /// The whole message.
    pub fn finish(mut self) -> Result<Message, Status> {
        if self.read_up_to(self.limit)? {
            return Ok(Message::from(Bytes::from(self.out)));
        }
        Err(too_large(self.out.len(), self.limit))
    }

    /// Reads on, to `max` bytes in all; returns whether the message ends within them.
    fn read_up_to(&mut self, max: usize) -> Result<bool, Status> {
        let max = max.min(self.limit);
        let left = (max + 1).saturating_sub(self.out.len()) as u64;
        let (read, rest) = match &mut self.decoder {
            Decoder::Gzip(decoder) => (decoder.take(left).read_to_end(&mut self.out), decoder.get_ref().get_ref()),
            Decoder::Deflate(decoder) => (decoder.take(left).read_to_end(&mut self.out), decoder.get_ref().get_ref()),
        };
        if read.is_err() {
            return Err(Status::new(INTERNAL, "a compressed message cannot be decompressed"));
        }
        if self.out.len() > max {
            return Ok(false);
        }
        if rest.has_remaining() {
            return Err(Status::new(INTERNAL, "a compressed message has bytes behind its end"));
        }
        Ok(true)
    }
}

pub fn too_large(len: usize, limit: usize) -> Status {
    Status::new(RESOURCE_EXHAUSTED, format!("SERVER: Received message larger than max ({len} vs. {limit})"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::read::{GzEncoder, ZlibEncoder};
    use flate2::Compression;
    use proptest::prelude::*;

    fn gzip(content: impl Read) -> Vec<u8> {
        read_all(GzEncoder::new(content, Compression::fast()))
    }

    fn read_all(mut reader: impl Read) -> Vec<u8> {
        let mut out = Vec::new();
        reader.read_to_end(&mut out).unwrap();
        out
    }

    fn gzip_decompressor(bytes: Vec<u8>) -> Decompressor {
        Decompressor::gzip(&Message::from(Bytes::from(bytes)), 1_000_000)
    }

    proptest! {
        #[test]
        fn a_message_is_decompressed_as_it_was_inline_or_later(content in prop::collection::vec(any::<u8>(), 0..40_000)) {
            let zlib = Message::from(Bytes::from(read_all(ZlibEncoder::new(&content[..], Compression::fast()))));
            for mut message in [gzip_decompressor(gzip(&content[..])), Decompressor::deflate(&zlib, 1_000_000)] {
                let is_small = content.len() <= INLINE_OUTPUT && message.compressed_len() <= INLINE_INPUT;
                prop_assert_eq!(message.try_finish_inline().unwrap(), is_small);
                prop_assert_eq!(&message.finish().unwrap().to_bytes()[..], &content[..]);
            }
        }
    }

    #[test]
    fn a_message_that_expands_much_is_not_decompressed_inline_and_rejected_beyond_the_limit() {
        let mut message = gzip_decompressor(gzip(std::io::repeat(7).take(500_000)));
        assert!(message.compressed_len() < INLINE_INPUT && !message.try_finish_inline().unwrap());
        assert_eq!(message.finish().unwrap().to_bytes(), vec![7; 500_000]);
        let beyond = gzip_decompressor(gzip(std::io::repeat(7).take(1_000_001)));
        assert_eq!(beyond.finish().unwrap_err().code, RESOURCE_EXHAUSTED);
    }

    #[test]
    fn bytes_after_the_first_stream_are_rejected() {
        let one = gzip(&b"one"[..]);
        let twice = [one.clone(), one.clone()].concat();
        for bytes in [twice, [&one[..], b"rubbish"].concat(), [&one[..], &gzip(&b""[..])].concat()] {
            assert_eq!(gzip_decompressor(bytes).try_finish_inline().unwrap_err().code, INTERNAL);
        }
        let zlib = [read_all(ZlibEncoder::new(&b"one"[..], Compression::fast())), b"x".to_vec()].concat();
        let message = Decompressor::deflate(&Message::from(Bytes::from(zlib)), 1000);
        assert_eq!(message.finish().unwrap_err().code, INTERNAL);
    }
}
