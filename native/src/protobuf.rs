//! Reading protobuf from a message that arrived in pieces, and writing it: no copy but the caller's.

use bytes::{BufMut, Bytes, BytesMut};

/// Field number and wire type in one byte, for fields below 16.
pub const fn tag(field: u8, kind: u8) -> u8 {
    field << 3 | kind
}
pub const VARINT: u8 = 0;
pub const LENGTH: u8 = 2;
/// So deep may groups lie in each other, as protobuf itself has it.
const DEEPEST: usize = 100;

/// One message as it lies in the frames that brought it.
#[derive(Clone, Debug, Default)]
pub struct Message {
    pieces: Vec<Bytes>,
    len: usize,
}

/// Where in a message something stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    pub start: usize,
    pub len: usize,
}

impl Message {
    pub fn push(&mut self, piece: Bytes) {
        self.len += piece.len();
        self.pieces.push(piece);
    }

    pub const fn len(&self) -> usize {
        self.len
    }

    /// Copies the bytes at `span` to `out`, which is as long; `span` lies within the message.
    pub fn copy(&self, span: Span, mut out: &mut [u8]) {
        let mut skip = span.start;
        for piece in &self.pieces {
            if skip >= piece.len() {
                skip -= piece.len();
                continue;
            }
            let n = out.len().min(piece.len() - skip);
            let (now, later) = out.split_at_mut(n);
            now.copy_from_slice(&piece[skip..skip + n]);
            out = later;
            skip = 0;
            if out.is_empty() {
                return;
            }
        }
    }

    #[cfg(test)]
    pub fn copied(&self, span: Span) -> Vec<u8> {
        let mut out = vec![0; span.len];
        self.copy(span, &mut out);
        out
    }

    /// The whole message in one piece.
    pub fn to_bytes(&self) -> Bytes {
        match self.pieces.as_slice() {
            [] => Bytes::new(),
            [one] => one.clone(),
            many => {
                let mut joined = BytesMut::with_capacity(self.len);
                for piece in many {
                    joined.put_slice(piece);
                }
                joined.freeze()
            }
        }
    }

    pub fn reader(&self) -> Reader<'_> {
        Reader { message: self, piece: 0, within: 0, at: 0, end: self.len }
    }
}

impl From<Bytes> for Message {
    fn from(bytes: Bytes) -> Self {
        Self { len: bytes.len(), pieces: vec![bytes] }
    }
}

/// Goes once through a message, or a message within it. `None` anywhere: it is not what was expected.
pub struct Reader<'a> {
    message: &'a Message,
    piece: usize,
    within: usize,
    at: usize,
    end: usize,
}

impl Reader<'_> {
    pub const fn is_done(&self) -> bool {
        self.at >= self.end
    }

    pub fn byte(&mut self) -> Option<u8> {
        if self.is_done() {
            return None;
        }
        while self.within >= self.message.pieces.get(self.piece)?.len() {
            self.piece += 1;
            self.within = 0;
        }
        let byte = self.message.pieces[self.piece][self.within];
        self.within += 1;
        self.at += 1;
        Some(byte)
    }

    /// A varint in its shortest form and of at most 63 bits: any other is for a whole parser to judge.
    pub fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..63).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return (byte > 0 || shift == 0).then_some(value);
            }
        }
        None
    }

    /// The content of a length-delimited field: where it stands. The reader goes on behind it.
    pub fn span(&mut self) -> Option<Span> {
        let len = usize::try_from(self.varint()?).ok()?;
        if len > self.end - self.at {
            return None;
        }
        let span = Span { start: self.at, len };
        self.skip(len);
        Some(span)
    }

    /// The content of a length-delimited field, as a reader of its own.
    pub fn within(&mut self) -> Option<Self> {
        let len = usize::try_from(self.varint()?).ok()?;
        if len > self.end - self.at {
            return None;
        }
        let inner =
            Reader { message: self.message, piece: self.piece, within: self.within, at: self.at, end: self.at + len };
        self.skip(len);
        Some(inner)
    }

    /// A string of at most `limit` bytes that is UTF-8.
    pub fn text(&mut self, limit: usize) -> Option<String> {
        let len = self.varint()?;
        self.string(len, limit)
    }

    /// The same, its length in any form that protobuf takes.
    pub fn long_text(&mut self, limit: usize) -> Option<String> {
        let len = self.long_varint(5)?;
        self.string(len, limit)
    }

    fn string(&mut self, len: u64, limit: usize) -> Option<String> {
        let len = usize::try_from(len).ok().filter(|len| *len <= limit.min(self.end - self.at))?;
        let mut bytes = Vec::with_capacity(len);
        for _ in 0..len {
            bytes.push(self.byte()?);
        }
        String::from_utf8(bytes).ok()
    }

    /// A field's number and wire type as one number, in any form that protobuf takes.
    pub fn tag(&mut self) -> Option<u32> {
        let tag = u32::try_from(self.long_varint(5)?).ok()?;
        (tag >> 3 > 0).then_some(tag)
    }

    /// A varint of at most so many bytes, in its shortest form or not.
    fn long_varint(&mut self, most: u32) -> Option<u64> {
        let mut value = 0;
        for at in 0..most {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << (7 * at);
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    /// Goes on behind the content of a field, groups too.
    pub fn pass_over(&mut self, tag: u32) -> Option<()> {
        let mut groups = Vec::new();
        let mut next = tag;
        loop {
            match next & 7 {
                0 => drop(self.long_varint(10)?),
                1 => self.skip((self.end - self.at >= 8).then_some(8)?),
                2 => {
                    let len = usize::try_from(self.long_varint(5)?).ok()?;
                    self.skip((len <= self.end - self.at).then_some(len)?);
                }
                3 if groups.len() < DEEPEST => groups.push(next >> 3),
                4 if groups.pop()? == next >> 3 => {}
                5 => self.skip((self.end - self.at >= 4).then_some(4)?),
                _ => return None,
            }
            if groups.is_empty() {
                return Some(());
            }
            next = self.tag()?;
        }
    }

    fn skip(&mut self, mut n: usize) {
        self.at += n;
        while n > 0 {
            let left = self.message.pieces[self.piece].len() - self.within;
            if n < left {
                self.within += n;
                return;
            }
            n -= left;
            self.piece += 1;
            self.within = 0;
        }
    }
}

/// How many bytes a varint takes.
pub const fn varint_len(value: usize) -> usize {
    let bits = usize::BITS - value.leading_zeros();
    if bits == 0 {
        1
    } else {
        (bits as usize).div_ceil(7)
    }
}

pub fn put_varint(out: &mut BytesMut, mut value: usize) {
    while value > 0x7f {
        #[allow(clippy::cast_possible_truncation)] // the low seven bits
        out.put_u8((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    #[allow(clippy::cast_possible_truncation)] // at most 0x7f
    out.put_u8(value as u8);
}

/// How many bytes a length-delimited field takes.
pub const fn field_len(content: usize) -> usize {
    1 + varint_len(content) + content
}

/// A length-delimited field's tag and length; its content follows.
pub fn open_field(out: &mut BytesMut, field: u8, content: usize) {
    out.put_u8(tag(field, LENGTH));
    put_varint(out, content);
}

pub fn put_field(out: &mut BytesMut, field: u8, content: &[u8]) {
    open_field(out, field, content.len());
    out.put_slice(content);
}

/// Numbers as the wire has them, one after the other; on little-endian machines the compiler makes it one copy.
pub fn put_floats(out: &mut BytesMut, values: &[f32]) {
    for value in values {
        out.put_f32_le(*value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cut(bytes: &[u8], size: usize) -> Message {
        let mut message = Message::default();
        for piece in bytes.chunks(size) {
            message.push(Bytes::copy_from_slice(piece));
        }
        message
    }

    proptest! {
        #[test]
        fn a_varint_is_read_as_it_was_written(value in 0..usize::MAX >> 1, size in 1..12usize) {
            let mut out = BytesMut::new();
            put_varint(&mut out, value);
            prop_assert_eq!(out.len(), varint_len(value));
            prop_assert_eq!(cut(&out, size).reader().varint(), Some(value as u64));
        }

        #[test]
        fn a_message_in_pieces_reads_as_one_in_one(bytes in prop::collection::vec(any::<u8>(), 0..300), size in 1..40usize) {
            let (whole, pieces) = (Message::from(Bytes::from(bytes.clone())), cut(&bytes, size));
            let (mut a, mut b) = (whole.reader(), pieces.reader());
            while !a.is_done() {
                let (x, y) = (a.span(), b.span());
                prop_assert_eq!(x, y);
                let Some(span) = x else { break };
                prop_assert_eq!(&whole.copied(span)[..], &bytes[span.start..span.start + span.len]);
                prop_assert_eq!(whole.copied(span), pieces.copied(span));
            }
            prop_assert_eq!(&pieces.to_bytes()[..], &bytes[..]);
        }
    }

    #[test]
    fn lengths_beyond_the_end_are_refused() {
        let message = Message::from(Bytes::from_static(&[5, 1, 2]));
        assert_eq!(message.reader().span(), None);
        assert!(message.reader().within().is_none());
    }
}
