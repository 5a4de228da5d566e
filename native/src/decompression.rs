//! One compressed message, read within a budget: a few bytes may stand for many, and for much work.

use std::io::Read;

use bytes::buf::Reader;
use bytes::{Buf, Bytes};
use flate2::bufread::{GzDecoder, ZlibDecoder};

use crate::protobuf::Message;
use crate::status::{Refusal, INTERNAL, RESOURCE_EXHAUSTED};

/// A message this small, which becomes no larger than `INLINE_OUTPUT`, costs less to read at once than to hand over.
const INLINE_INPUT: usize = 4 << 10;
const INLINE_OUTPUT: usize = 16 << 10;

/// A message on its way out of its compression; never more than `limit` bytes of it.
pub struct Inflating {
    decoder: Decoder,
    out: Vec<u8>,
    limit: usize,
    input: usize,
}

/// Each reads one stream and stops behind it: what follows is no part of the message.
enum Decoder {
    Gzip(GzDecoder<Reader<Bytes>>),
    Deflate(ZlibDecoder<Reader<Bytes>>),
}

impl Inflating {
    pub fn gzip(message: &Message, limit: usize) -> Self {
        let bytes = message.to_bytes();
        Self { input: bytes.len(), decoder: Decoder::Gzip(GzDecoder::new(bytes.reader())), out: Vec::new(), limit }
    }

    pub fn deflate(message: &Message, limit: usize) -> Self {
        let bytes = message.to_bytes();
        Self { input: bytes.len(), decoder: Decoder::Deflate(ZlibDecoder::new(bytes.reader())), out: Vec::new(), limit }
    }

    /// How many bytes it came in.
    pub const fn input(&self) -> usize {
        self.input
    }

    /// Whether it is whole after little work; where not, `finish` is for a thread that nobody waits for.
    pub fn is_whole_soon(&mut self) -> Result<bool, Refusal> {
        Ok(self.input <= INLINE_INPUT && self.read_up_to(INLINE_OUTPUT)?)
    }

    /// The whole message.
    pub fn finish(mut self) -> Result<Message, Refusal> {
        if self.read_up_to(self.limit)? {
            return Ok(Message::from(Bytes::from(self.out)));
        }
        Err(too_large(self.out.len(), self.limit))
    }

    /// Reads on; whether that was the end, within so many bytes in all.
    fn read_up_to(&mut self, most: usize) -> Result<bool, Refusal> {
        let most = most.min(self.limit);
        let room = (most + 1).saturating_sub(self.out.len()) as u64;
        let (read, rest) = match &mut self.decoder {
            Decoder::Gzip(decoder) => (decoder.take(room).read_to_end(&mut self.out), decoder.get_ref().get_ref()),
            Decoder::Deflate(decoder) => (decoder.take(room).read_to_end(&mut self.out), decoder.get_ref().get_ref()),
        };
        if read.is_err() {
            return Err(Refusal::bare(INTERNAL, "a compressed message cannot be decompressed"));
        }
        if self.out.len() > most {
            return Ok(false);
        }
        if rest.has_remaining() {
            return Err(Refusal::bare(INTERNAL, "a compressed message has bytes behind its end"));
        }
        Ok(true)
    }
}

pub fn too_large(len: usize, limit: usize) -> Refusal {
    Refusal::bare(RESOURCE_EXHAUSTED, format!("SERVER: Received message larger than max ({len} vs. {limit})"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::read::{GzEncoder, ZlibEncoder};
    use flate2::Compression;
    use proptest::prelude::*;

    fn gzipped(content: impl Read) -> Vec<u8> {
        read_all(GzEncoder::new(content, Compression::fast()))
    }

    fn read_all(mut reader: impl Read) -> Vec<u8> {
        let mut out = Vec::new();
        reader.read_to_end(&mut out).unwrap();
        out
    }

    fn gzip(bytes: Vec<u8>) -> Inflating {
        Inflating::gzip(&Message::from(Bytes::from(bytes)), 1_000_000)
    }

    proptest! {
        #[test]
        fn a_message_comes_out_as_it_went_in_at_once_or_later(content in prop::collection::vec(any::<u8>(), 0..40_000)) {
            let zlib = Bytes::from(read_all(ZlibEncoder::new(&content[..], Compression::fast())));
            for mut inflating in [gzip(gzipped(&content[..])), Inflating::deflate(&Message::from(zlib), 1_000_000)] {
                let is_small = content.len() <= INLINE_OUTPUT && inflating.input() <= INLINE_INPUT;
                prop_assert_eq!(inflating.is_whole_soon().unwrap(), is_small);
                prop_assert_eq!(&inflating.finish().unwrap().to_bytes()[..], &content[..]);
            }
        }
    }

    #[test]
    fn little_that_becomes_much_is_left_for_later_and_refused_beyond_the_limit() {
        let mut inflating = gzip(gzipped(std::io::repeat(7).take(500_000)));
        assert!(inflating.input() < INLINE_INPUT && !inflating.is_whole_soon().unwrap());
        assert_eq!(inflating.finish().unwrap().to_bytes(), vec![7; 500_000]);
        let beyond = gzip(gzipped(std::io::repeat(7).take(1_000_001)));
        assert_eq!(beyond.finish().unwrap_err().code, RESOURCE_EXHAUSTED);
    }

    #[test]
    fn what_follows_the_first_stream_is_refused() {
        let one = gzipped(&b"one"[..]);
        let twice = [one.clone(), one.clone()].concat();
        for bytes in [twice, [&one[..], b"rubbish"].concat(), [&one[..], &gzipped(&b""[..])].concat()] {
            assert_eq!(gzip(bytes).is_whole_soon().unwrap_err().code, INTERNAL);
        }
        let zlib = [read_all(ZlibEncoder::new(&b"one"[..], Compression::fast())), b"x".to_vec()].concat();
        let inflating = Inflating::deflate(&Message::from(Bytes::from(zlib)), 1000);
        assert_eq!(inflating.finish().unwrap_err().code, INTERNAL);
    }
}
