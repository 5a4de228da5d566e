//! A protobuf reader for messages in chunks, and a writer. The reader copies strings only.

use bytes::{BufMut, BytesMut};

use crate::message::{Message, Span};

/// Field number and wire type in one byte, for fields below 16.
pub const fn tag(field: u8, wire_type: u8) -> u8 {
    field << 3 | wire_type
}
pub const VARINT: u8 = 0;
pub const LENGTH_DELIMITED: u8 = 2;
/// The deepest nesting of groups, as in protobuf's own parsers.
const MAX_GROUP_DEPTH: usize = 100;

/// Reads a message, or a message nested in one, once from start to end. `None` means that it is not as expected.
pub struct Reader<'a> {
    message: &'a Message,
    chunk: usize,
    offset: usize,
    position: usize,
    end: usize,
}

impl<'a> Reader<'a> {
    pub const fn new(message: &'a Message) -> Self {
        Self { message, chunk: 0, offset: 0, position: 0, end: message.len() }
    }
}

impl Reader<'_> {
    pub const fn is_at_end(&self) -> bool {
        self.position >= self.end
    }

    pub fn read_byte(&mut self) -> Option<u8> {
        if self.is_at_end() {
            return None;
        }
        while self.offset >= self.message.chunks().get(self.chunk)?.len() {
            self.chunk += 1;
            self.offset = 0;
        }
        let byte = self.message.chunks()[self.chunk][self.offset];
        self.offset += 1;
        self.position += 1;
        Some(byte)
    }

    /// A varint in its shortest form and of at most 63 bits: any other form is left to a complete parser.
    pub fn read_varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..63).step_by(7) {
            let byte = self.read_byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return (byte > 0 || shift == 0).then_some(value);
            }
        }
        None
    }

    /// The range of a length-delimited field's content; the reader continues after it.
    pub fn read_span(&mut self) -> Option<Span> {
        let len = usize::try_from(self.read_varint()?).ok()?;
        if len > self.end - self.position {
            return None;
        }
        let span = Span { start: self.position, len };
        self.advance(len);
        Some(span)
    }

    /// A reader of a length-delimited field's content; this reader continues after it.
    pub fn nested(&mut self) -> Option<Self> {
        let len = usize::try_from(self.read_varint()?).ok()?;
        if len > self.end - self.position {
            return None;
        }
        let (chunk, offset, position) = (self.chunk, self.offset, self.position);
        let nested = Reader { message: self.message, chunk, offset, position, end: position + len };
        self.advance(len);
        Some(nested)
    }

    /// A UTF-8 string of at most `limit` bytes, with its length in the shortest form.
    pub fn read_string(&mut self, limit: usize) -> Option<String> {
        let len = self.read_varint()?;
        self.read_utf8(len, limit)
    }

    /// A UTF-8 string of at most `limit` bytes, with its length in any form that protobuf accepts.
    pub fn read_string_any_form(&mut self, limit: usize) -> Option<String> {
        let len = self.read_varint_any_form(5)?;
        self.read_utf8(len, limit)
    }

    fn read_utf8(&mut self, len: u64, limit: usize) -> Option<String> {
        let len = usize::try_from(len).ok().filter(|len| *len <= limit.min(self.end - self.position))?;
        let mut bytes = Vec::with_capacity(len);
        for _ in 0..len {
            bytes.push(self.read_byte()?);
        }
        String::from_utf8(bytes).ok()
    }

    /// A field's number and wire type as one number, in any form that protobuf accepts.
    pub fn read_tag(&mut self) -> Option<u32> {
        let tag = u32::try_from(self.read_varint_any_form(5)?).ok()?;
        (tag >> 3 > 0).then_some(tag)
    }

    /// A varint of at most `max_bytes` bytes, in its shortest form or not.
    fn read_varint_any_form(&mut self, max_bytes: u32) -> Option<u64> {
        let mut value = 0;
        for at in 0..max_bytes {
            let byte = self.read_byte()?;
            value |= u64::from(byte & 0x7f) << (7 * at);
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    /// Skips the content of the field with this tag, groups too.
    pub fn skip_field(&mut self, tag: u32) -> Option<()> {
        let mut groups = Vec::new();
        let mut next = tag;
        loop {
            match next & 7 {
                0 => drop(self.read_varint_any_form(10)?),
                1 => self.advance((self.end - self.position >= 8).then_some(8)?),
                2 => {
                    let len = usize::try_from(self.read_varint_any_form(5)?).ok()?;
                    self.advance((len <= self.end - self.position).then_some(len)?);
                }
                3 if groups.len() < MAX_GROUP_DEPTH => groups.push(next >> 3),
                4 if groups.pop()? == next >> 3 => {}
                5 => self.advance((self.end - self.position >= 4).then_some(4)?),
                _ => return None,
            }
            if groups.is_empty() {
                return Some(());
            }
            next = self.read_tag()?;
        }
    }

    fn advance(&mut self, mut n: usize) {
        self.position += n;
        while n > 0 {
            let left = self.message.chunks()[self.chunk].len() - self.offset;
            if n < left {
                self.offset += n;
                return;
            }
            n -= left;
            self.chunk += 1;
            self.offset = 0;
        }
    }
}

/// Bytes of a varint.
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

/// Bytes of a length-delimited field with `content` bytes of content.
pub const fn field_len(content: usize) -> usize {
    1 + varint_len(content) + content
}

/// Writes a length-delimited field's tag and length, before its content.
pub fn put_field_header(out: &mut BytesMut, field: u8, content: usize) {
    out.put_u8(tag(field, LENGTH_DELIMITED));
    put_varint(out, content);
}

pub fn put_field(out: &mut BytesMut, field: u8, content: &[u8]) {
    put_field_header(out, field, content.len());
    out.put_slice(content);
}

/// Writes floats in little-endian order; on a little-endian machine the compiler makes this one copy.
pub fn put_floats(out: &mut BytesMut, values: &[f32]) {
    for value in values {
        out.put_f32_le(*value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;

    fn in_chunks(bytes: &[u8], size: usize) -> Message {
        let mut message = Message::default();
        for chunk in bytes.chunks(size) {
            message.push(Bytes::copy_from_slice(chunk));
        }
        message
    }

    proptest! {
        #[test]
        fn a_varint_is_read_as_it_was_written(value in 0..usize::MAX >> 1, size in 1..12usize) {
            let mut out = BytesMut::new();
            put_varint(&mut out, value);
            prop_assert_eq!(out.len(), varint_len(value));
            prop_assert_eq!(Reader::new(&in_chunks(&out, size)).read_varint(), Some(value as u64));
        }

        #[test]
        fn a_message_in_chunks_reads_as_in_one(bytes in prop::collection::vec(any::<u8>(), 0..300), size in 1..40usize) {
            let (whole, chunked) = (Message::from(Bytes::from(bytes.clone())), in_chunks(&bytes, size));
            let (mut a, mut b) = (Reader::new(&whole), Reader::new(&chunked));
            while !a.is_at_end() {
                let (x, y) = (a.read_span(), b.read_span());
                prop_assert_eq!(x, y);
                let Some(span) = x else { break };
                prop_assert_eq!(&whole.copy_span(span)[..], &bytes[span.start..span.start + span.len]);
                prop_assert_eq!(whole.copy_span(span), chunked.copy_span(span));
            }
            prop_assert_eq!(&chunked.to_bytes()[..], &bytes[..]);
        }
    }

    #[test]
    fn a_length_beyond_the_end_is_rejected() {
        let message = Message::from(Bytes::from_static(&[5, 1, 2]));
        assert_eq!(Reader::new(&message).read_span(), None);
        assert!(Reader::new(&message).nested().is_none());
    }
}
