//! Bytes as they arrive, cut into gRPC's messages: five bytes of prefix each, then the message, perhaps compressed.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};

use crate::decode::PREFIX;
use crate::decompression::{too_large, Inflating};
use crate::protobuf::Message;
use crate::status::{Refusal, INTERNAL, UNIMPLEMENTED};

/// Pieces below this are copied together while their message is not whole: each would hold the buffer that it came in.
const SMALL: usize = 16 << 10;
/// Copied pieces are a piece of their own from here on.
const ENOUGH: usize = 64 << 10;
const COMPRESSED: u8 = 1;

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

/// A whole message as it came.
pub enum Framed {
    Plain(Message),
    Compressed(Inflating),
}

/// Bytes that arrived and are not yet a whole message; none may be larger than `limit`.
pub struct Frames {
    pieces: VecDeque<Bytes>,
    /// Small pieces that came behind those, copied.
    tail: BytesMut,
    len: usize,
    encoding: Encoding,
    limit: usize,
}

impl Frames {
    pub fn new(encoding: Encoding, limit: usize) -> Self {
        Self { pieces: VecDeque::new(), tail: BytesMut::new(), len: 0, encoding, limit }
    }

    /// How many bytes wait.
    pub const fn len(&self) -> usize {
        self.len
    }

    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn push(&mut self, piece: Bytes) {
        self.len += piece.len();
        if self.len > piece.len() && piece.len() < SMALL {
            self.copy(&piece);
        } else if !piece.is_empty() {
            self.close_tail();
            self.pieces.push_back(piece);
        }
    }

    fn copy(&mut self, piece: &[u8]) {
        self.tail.extend_from_slice(piece);
        if self.tail.len() >= ENOUGH {
            self.close_tail();
        }
    }

    fn close_tail(&mut self) {
        if !self.tail.is_empty() {
            self.pieces.push_back(std::mem::take(&mut self.tail).freeze());
        }
    }

    /// The first message, where it is here whole.
    pub fn take(&mut self) -> Result<Option<Framed>, Refusal> {
        let Some((flag, len)) = self.prefix() else {
            self.settle();
            return Ok(None);
        };
        if len > self.limit {
            return Err(too_large(len, self.limit));
        }
        if flag > COMPRESSED {
            return Err(Refusal::bare(INTERNAL, format!("a message has the flag {flag}; expected 0 or 1")));
        }
        if self.len < PREFIX + len {
            self.settle();
            return Ok(None);
        }
        self.close_tail();
        self.cut(PREFIX);
        let message = self.cut(len);
        if flag == COMPRESSED {
            self.inflating(&message).map(Some)
        } else {
            Ok(Some(Framed::Plain(message)))
        }
    }

    /// Lets go of the buffer that a first small piece came in, since more of its message is still to come.
    fn settle(&mut self) {
        if self.tail.is_empty() && self.pieces.len() == 1 && self.len < SMALL {
            if let Some(first) = self.pieces.pop_front() {
                self.copy(&first);
            }
        }
    }

    /// The flag of the first message, and its length.
    fn prefix(&self) -> Option<(u8, usize)> {
        let mut bytes = self.pieces.iter().flatten().chain(&self.tail);
        let flag = *bytes.next()?;
        let mut len = 0u32;
        for _ in 1..PREFIX {
            len = len << 8 | u32::from(*bytes.next()?);
        }
        Some((flag, len as usize))
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

    fn inflating(&self, message: &Message) -> Result<Framed, Refusal> {
        Ok(Framed::Compressed(match self.encoding {
            Encoding::Gzip => Inflating::gzip(message, self.limit),
            Encoding::Deflate => Inflating::deflate(message, self.limit),
            Encoding::Identity => {
                return Err(Refusal::bare(INTERNAL, "a message is marked compressed, but the call names no encoding"))
            }
            Encoding::Unknown => {
                return Err(Refusal::bare(UNIMPLEMENTED, "grpc-encoding: expected identity, deflate or gzip"))
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::RESOURCE_EXHAUSTED;
    use proptest::prelude::*;

    fn frames(encoding: Encoding) -> Frames {
        Frames::new(encoding, 1_000_000)
    }

    fn framed(compressed: u8, message: &[u8]) -> Vec<u8> {
        let len = u32::try_from(message.len()).unwrap();
        [&[compressed][..], &len.to_be_bytes(), message].concat()
    }

    fn next(frames: &mut Frames) -> Result<Option<Vec<u8>>, Refusal> {
        Ok(match frames.take()? {
            Some(Framed::Plain(message)) => Some(message.to_bytes().to_vec()),
            Some(Framed::Compressed(inflating)) => Some(inflating.finish()?.to_bytes().to_vec()),
            None => None,
        })
    }

    proptest! {
        #[test]
        fn messages_come_out_as_they_went_in_however_frames_cut_them(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..30_000), 0..4),
            sizes in prop::collection::vec(prop_oneof![1..64usize, 1..70_000usize], 1..20),
        ) {
            let mut frames = frames(Encoding::Identity);
            let mut found = Vec::new();
            let sent: Vec<u8> = messages.iter().flat_map(|message| framed(0, message)).collect();
            let (mut rest, mut sizes) = (&sent[..], sizes.iter().cycle());
            while !rest.is_empty() {
                let (piece, more) = rest.split_at(rest.len().min(*sizes.next().unwrap()));
                rest = more;
                frames.push(Bytes::copy_from_slice(piece));
                while let Some(message) = next(&mut frames).unwrap() {
                    found.push(message);
                }
                // Whatever waits is held in few pieces.
                prop_assert!(frames.pieces.len() <= 2 + frames.len() / SMALL);
            }
            prop_assert_eq!(found, messages);
            prop_assert!(frames.is_empty());
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut frames = Frames::new(Encoding::Gzip, 1000);
            frames.push(Bytes::from(bytes));
            while let Ok(Some(message)) = next(&mut frames) {
                prop_assert!(message.len() <= 1000);
            }
        }
    }

    #[test]
    fn a_message_byte_by_byte_is_held_in_one_piece_that_shares_nothing() {
        let (mut frames, sent) = (frames(Encoding::Identity), framed(0, &[9; 5000]));
        let (last, first) = sent.split_last().unwrap();
        let arrived = Bytes::copy_from_slice(first);
        for at in 0..arrived.len() {
            frames.push(arrived.slice(at..=at));
            assert!(next(&mut frames).unwrap().is_none());
        }
        assert!(arrived.is_unique());
        assert!(frames.pieces.is_empty());
        frames.push(Bytes::copy_from_slice(&[*last]));
        assert_eq!(next(&mut frames).unwrap().unwrap(), vec![9; 5000]);
    }

    #[test]
    fn a_whole_message_in_one_piece_is_not_copied() {
        let (mut frames, sent) = (frames(Encoding::Identity), Bytes::from(framed(0, &[9; 500])));
        frames.push(sent.clone());
        let Some(Framed::Plain(message)) = frames.take().unwrap() else { panic!("a plain message") };
        assert_eq!(message.to_bytes().as_ptr(), sent[PREFIX..].as_ptr());
    }

    #[test]
    fn a_message_over_the_limit_is_refused_by_its_prefix() {
        let mut frames = Frames::new(Encoding::Identity, 1000);
        frames.push(Bytes::from_static(&[0, 0, 0, 4, 0]));
        assert_eq!(next(&mut frames).unwrap_err().code, RESOURCE_EXHAUSTED);
    }

    #[test]
    fn a_flag_that_means_nothing_is_refused_by_its_prefix() {
        for flag in [2, 3, 128, 255] {
            let mut frames = frames(Encoding::Gzip);
            frames.push(Bytes::from(framed(flag, b"")));
            assert_eq!(next(&mut frames).unwrap_err().code, INTERNAL);
        }
    }
}
