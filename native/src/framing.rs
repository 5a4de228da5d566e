//! gRPC's message framing: cuts a call's body into messages, each a prefix and then the message, perhaps compressed.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};

use crate::decompression::{too_large, Decompressor};
use crate::message::Message;
use crate::prefix::PREFIX_LEN;
use crate::status::{Status, INTERNAL, UNIMPLEMENTED};

/// Chunks below this are copied together while their message is incomplete: each would keep its whole read buffer.
const SMALL_CHUNK: usize = 16 << 10;
/// Copied chunks become a chunk of their own at this size.
const JOINED_CHUNK: usize = 64 << 10;
const COMPRESSED: u8 = 1;

/// The compression of the messages that have the compressed flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Identity,
    Gzip,
    Deflate,
    Unknown,
}

impl Encoding {
    pub fn from_name(name: Option<&[u8]>) -> Self {
        match name {
            None | Some(b"identity") => Self::Identity,
            Some(b"gzip") => Self::Gzip,
            Some(b"deflate") => Self::Deflate,
            Some(_) => Self::Unknown,
        }
    }
}

/// A complete message.
pub enum Framed {
    Plain(Message),
    Compressed(Decompressor),
}

/// Collects a body's chunks and returns its messages, none of them larger than `limit`.
pub struct MessageDecoder {
    chunks: VecDeque<Bytes>,
    /// Small chunks after those, copied.
    tail: BytesMut,
    len: usize,
    encoding: Encoding,
    limit: usize,
}

impl MessageDecoder {
    pub fn new(encoding: Encoding, limit: usize) -> Self {
        Self { chunks: VecDeque::new(), tail: BytesMut::new(), len: 0, encoding, limit }
    }

    /// Bytes received that are not part of a returned message.
    pub const fn len(&self) -> usize {
        self.len
    }

    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn push(&mut self, chunk: Bytes) {
        self.len += chunk.len();
        if self.len > chunk.len() && chunk.len() < SMALL_CHUNK {
            self.copy_to_tail(&chunk);
        } else if !chunk.is_empty() {
            self.flush_tail();
            self.chunks.push_back(chunk);
        }
    }

    fn copy_to_tail(&mut self, chunk: &[u8]) {
        self.tail.extend_from_slice(chunk);
        if self.tail.len() >= JOINED_CHUNK {
            self.flush_tail();
        }
    }

    fn flush_tail(&mut self) {
        if !self.tail.is_empty() {
            self.chunks.push_back(std::mem::take(&mut self.tail).freeze());
        }
    }

    /// The next message, if it is complete.
    pub fn next_message(&mut self) -> Result<Option<Framed>, Status> {
        let Some((flag, len)) = self.peek_prefix() else {
            self.release_read_buffer();
            return Ok(None);
        };
        if len > self.limit {
            return Err(too_large(len, self.limit));
        }
        if flag > COMPRESSED {
            return Err(Status::new(INTERNAL, format!("a message has the flag {flag}; expected 0 or 1")));
        }
        if self.len < PREFIX_LEN + len {
            self.release_read_buffer();
            return Ok(None);
        }
        self.flush_tail();
        self.split_to(PREFIX_LEN);
        let message = self.split_to(len);
        if flag == COMPRESSED {
            self.decompressor(&message).map(Framed::Compressed).map(Some)
        } else {
            Ok(Some(Framed::Plain(message)))
        }
    }

    /// Copies a first small chunk of an incomplete message, so that its read buffer can be freed.
    fn release_read_buffer(&mut self) {
        if self.tail.is_empty() && self.chunks.len() == 1 && self.len < SMALL_CHUNK {
            if let Some(first) = self.chunks.pop_front() {
                self.copy_to_tail(&first);
            }
        }
    }

    /// The flag of the next message, and its length.
    fn peek_prefix(&self) -> Option<(u8, usize)> {
        let mut bytes = self.chunks.iter().flatten().chain(&self.tail);
        let flag = *bytes.next()?;
        let mut len = 0u32;
        for _ in 1..PREFIX_LEN {
            len = len << 8 | u32::from(*bytes.next()?);
        }
        Some((flag, len as usize))
    }

    fn split_to(&mut self, mut n: usize) -> Message {
        self.len -= n;
        let mut message = Message::default();
        while n > 0 {
            let Some(first) = self.chunks.front_mut() else { break };
            if first.len() > n {
                message.push(first.copy_to_bytes(n));
                break;
            }
            n -= first.len();
            message.push(std::mem::take(first));
            self.chunks.pop_front();
        }
        message
    }

    fn decompressor(&self, message: &Message) -> Result<Decompressor, Status> {
        match self.encoding {
            Encoding::Gzip => Ok(Decompressor::gzip(message, self.limit)),
            Encoding::Deflate => Ok(Decompressor::deflate(message, self.limit)),
            Encoding::Identity => {
                Err(Status::new(INTERNAL, "a message is marked compressed, but the call names no encoding"))
            }
            Encoding::Unknown => Err(Status::new(UNIMPLEMENTED, "grpc-encoding: expected identity, deflate or gzip")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::RESOURCE_EXHAUSTED;
    use proptest::prelude::*;

    fn decoder(encoding: Encoding) -> MessageDecoder {
        MessageDecoder::new(encoding, 1_000_000)
    }

    fn with_prefix(flag: u8, message: &[u8]) -> Vec<u8> {
        let len = u32::try_from(message.len()).unwrap();
        [&[flag][..], &len.to_be_bytes(), message].concat()
    }

    fn next(decoder: &mut MessageDecoder) -> Result<Option<Vec<u8>>, Status> {
        Ok(match decoder.next_message()? {
            Some(Framed::Plain(message)) => Some(message.to_bytes().to_vec()),
            Some(Framed::Compressed(decompressor)) => Some(decompressor.finish()?.to_bytes().to_vec()),
            None => None,
        })
    }

    proptest! {
        #[test]
        fn messages_are_decoded_as_they_were_sent_whatever_the_chunks(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..30_000), 0..4),
            sizes in prop::collection::vec(prop_oneof![1..64usize, 1..70_000usize], 1..20),
        ) {
            let mut decoder = decoder(Encoding::Identity);
            let mut decoded = Vec::new();
            let sent: Vec<u8> = messages.iter().flat_map(|message| with_prefix(0, message)).collect();
            let (mut rest, mut sizes) = (&sent[..], sizes.iter().cycle());
            while !rest.is_empty() {
                let (chunk, more) = rest.split_at(rest.len().min(*sizes.next().unwrap()));
                rest = more;
                decoder.push(Bytes::copy_from_slice(chunk));
                while let Some(message) = next(&mut decoder).unwrap() {
                    decoded.push(message);
                }
                // An incomplete message is stored in few chunks.
                prop_assert!(decoder.chunks.len() <= 2 + decoder.len() / SMALL_CHUNK);
            }
            prop_assert_eq!(decoded, messages);
            prop_assert!(decoder.is_empty());
        }

        #[test]
        fn any_bytes_are_decoded_or_rejected(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut decoder = MessageDecoder::new(Encoding::Gzip, 1000);
            decoder.push(Bytes::from(bytes));
            while let Ok(Some(message)) = next(&mut decoder) {
                prop_assert!(message.len() <= 1000);
            }
        }
    }

    #[test]
    fn a_message_received_byte_by_byte_is_stored_in_one_chunk_that_shares_no_buffer() {
        let (mut decoder, sent) = (decoder(Encoding::Identity), with_prefix(0, &[9; 5000]));
        let (last, first) = sent.split_last().unwrap();
        let received = Bytes::copy_from_slice(first);
        for at in 0..received.len() {
            decoder.push(received.slice(at..=at));
            assert!(next(&mut decoder).unwrap().is_none());
        }
        assert!(received.is_unique());
        assert!(decoder.chunks.is_empty());
        decoder.push(Bytes::copy_from_slice(&[*last]));
        assert_eq!(next(&mut decoder).unwrap().unwrap(), vec![9; 5000]);
    }

    #[test]
    fn a_complete_message_in_one_chunk_is_not_copied() {
        let (mut decoder, sent) = (decoder(Encoding::Identity), Bytes::from(with_prefix(0, &[9; 500])));
        decoder.push(sent.clone());
        let Some(Framed::Plain(message)) = decoder.next_message().unwrap() else { panic!("a plain message") };
        assert_eq!(message.to_bytes().as_ptr(), sent[PREFIX_LEN..].as_ptr());
    }

    #[test]
    fn a_message_over_the_limit_is_rejected_by_its_prefix() {
        let mut decoder = MessageDecoder::new(Encoding::Identity, 1000);
        decoder.push(Bytes::from_static(&[0, 0, 0, 4, 0]));
        assert_eq!(next(&mut decoder).unwrap_err().code, RESOURCE_EXHAUSTED);
    }

    #[test]
    fn an_unknown_flag_is_rejected_by_its_prefix() {
        for flag in [2, 3, 128, 255] {
            let mut decoder = decoder(Encoding::Gzip);
            decoder.push(Bytes::from(with_prefix(flag, b"")));
            assert_eq!(next(&mut decoder).unwrap_err().code, INTERNAL);
        }
    }
}
