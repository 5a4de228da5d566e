//! Makes `:authority` readable for h2 if gRPC's C core has sent the percent-encoded path of a Unix domain socket.
//!
//! The `http` crate reads `%2Frun%2Fdigits.sock` as no authority, and h2 resets the stream. The filter replaces each `%` of
//! that value by `-` in the bytes that h2 then reads. The server uses no authority. A Huffman-coded value stays as it is:
//! the C core sends none.

use crate::frame_scanner::{parse_header, FRAME_HEADER, HEADERS, PREFACE};

const CONTINUATION: u8 = 9;
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;
const END_HEADERS: u8 = 4;
const AUTHORITY: &[u8] = b":authority";
/// The static table's entry of `:authority`.
const AUTHORITY_INDEX: u8 = 1;

/// Rewrites the bytes that one connection receives, in order.
#[derive(Debug)]
pub struct AuthorityFilter {
    /// Bytes before the next frame or header block.
    skip: usize,
    /// Bytes of this frame's header block, from the next byte on.
    block: usize,
    padding: usize,
    has_padding: bool,
    ends_block: bool,
    header: [u8; FRAME_HEADER],
    len: usize,
    fields: FieldWalker,
}

impl Default for AuthorityFilter {
    fn default() -> Self {
        Self {
            skip: PREFACE,
            block: 0,
            padding: 0,
            has_padding: false,
            ends_block: false,
            header: [0; FRAME_HEADER],
            len: 0,
            fields: FieldWalker::default(),
        }
    }
}

impl AuthorityFilter {
    pub fn rewrite(&mut self, bytes: &mut [u8]) {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &mut bytes[at..];
            at += if self.skip > 0 {
                let skipped = self.skip.min(rest.len());
                self.skip -= skipped;
                skipped
            } else if self.has_padding {
                self.begin_padded(rest[0]);
                1
            } else if self.block > 0 {
                let walked = self.block.min(rest.len());
                rest[..walked].iter_mut().for_each(|byte| self.fields.take(byte));
                self.block -= walked;
                self.end_block();
                walked
            } else {
                self.header[self.len] = rest[0];
                self.len += 1;
                if self.len == FRAME_HEADER {
                    self.begin_frame();
                }
                1
            };
        }
    }

    fn begin_padded(&mut self, padding: u8) {
        self.has_padding = false;
        self.padding = usize::from(padding).min(self.block - 1);
        self.block -= self.padding + 1;
        self.skip = self.priority_len();
        self.block -= self.skip;
        self.end_block();
    }

    fn priority_len(&self) -> usize {
        let has_priority = self.header[3] == HEADERS && self.header[4] & PRIORITY != 0;
        if has_priority {
            self.block.min(5)
        } else {
            0
        }
    }

    fn begin_frame(&mut self) {
        let (kind, flags, len) = parse_header(self.header);
        self.len = 0;
        if !matches!(kind, HEADERS | CONTINUATION) {
            self.skip = len;
            return;
        }
        self.block = len;
        self.ends_block = flags & END_HEADERS != 0;
        self.has_padding = kind == HEADERS && flags & PADDED != 0 && len > 0;
        if !self.has_padding {
            self.skip = self.priority_len();
            self.block -= self.skip;
        }
        self.end_block();
    }

    /// Skips the padding after the frame's last byte of a header block. A next block starts with a new field.
    fn end_block(&mut self) {
        if self.block > 0 {
            return;
        }
        self.skip += std::mem::take(&mut self.padding);
        if std::mem::take(&mut self.ends_block) {
            self.fields = FieldWalker::default();
        }
    }
}

/// The part of a header field (RFC 7541, section 6) to which the next byte belongs.
#[derive(Clone, Copy, Debug, Default)]
enum Part {
    #[default]
    Start,
    /// The rest of an index or of a table size; then the next field, or a value.
    Number {
        then_value: bool,
    },
    NameLength,
    NameLengthRest,
    Name,
    ValueLength,
    ValueLengthRest,
    Value,
}

/// Walks over the fields of header blocks, byte by byte, without their table.
#[derive(Debug, Default)]
struct FieldWalker {
    part: Part,
    /// The bytes left of a name or value; the number so far while its length is read.
    left: usize,
    shift: u32,
    is_huffman: bool,
    /// Bytes of the name that agree with `:authority`.
    matched: usize,
    is_authority: bool,
}

impl FieldWalker {
    fn take(&mut self, byte: &mut u8) {
        match self.part {
            Part::Start => self.start(*byte),
            Part::Number { then_value } => {
                if *byte & 0x80 == 0 {
                    self.part = if then_value { Part::ValueLength } else { Part::Start };
                }
            }
            Part::NameLength | Part::ValueLength => self.begin_length(*byte),
            Part::NameLengthRest | Part::ValueLengthRest => self.extend_length(*byte),
            Part::Name => {
                self.matched += usize::from(AUTHORITY.get(self.matched) == Some(byte));
                self.left -= 1;
                if self.left == 0 {
                    self.part = Part::ValueLength;
                }
            }
            Part::Value => {
                if self.is_authority && !self.is_huffman && *byte == b'%' {
                    *byte = b'-';
                }
                self.left -= 1;
                if self.left == 0 {
                    self.part = Part::Start;
                }
            }
        }
    }

    fn start(&mut self, byte: u8) {
        self.is_authority = false;
        let (is_literal, mask) = match byte {
            0x80.. => (false, 0x7f),
            0x40.. => (true, 0x3f),
            0x20.. => (false, 0x1f),
            _ => (true, 0x0f),
        };
        let index = byte & mask;
        if index == mask {
            self.part = Part::Number { then_value: is_literal };
        } else if is_literal {
            self.is_authority = index == AUTHORITY_INDEX;
            self.part = if index == 0 { Part::NameLength } else { Part::ValueLength };
        }
    }

    fn begin_length(&mut self, byte: u8) {
        let is_name = matches!(self.part, Part::NameLength);
        self.is_huffman = byte & 0x80 != 0;
        self.left = usize::from(byte & 0x7f);
        self.shift = 0;
        if byte & 0x7f == 0x7f {
            self.part = if is_name { Part::NameLengthRest } else { Part::ValueLengthRest };
        } else {
            self.begin_string(is_name);
        }
    }

    fn extend_length(&mut self, byte: u8) {
        let more = usize::from(byte & 0x7f).checked_shl(self.shift).unwrap_or(usize::MAX);
        self.left = self.left.saturating_add(more);
        self.shift += 7;
        if byte & 0x80 == 0 {
            self.begin_string(matches!(self.part, Part::NameLengthRest));
        }
    }

    fn begin_string(&mut self, is_name: bool) {
        if is_name {
            self.matched = 0;
        } else if self.matched == AUTHORITY.len() {
            self.is_authority = true;
        }
        self.part = match (is_name, self.left) {
            (true, 0) => Part::ValueLength,
            (true, _) => Part::Name,
            (false, 0) => Part::Start,
            (false, _) => Part::Value,
        };
        if !is_name {
            self.matched = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CLEAN: &[u8] = b"-2Frun-2Fdigits.sock";
    const SENT: &[u8] = b"%2Frun%2Fdigits.sock";

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&len[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    fn string(text: &[u8]) -> Vec<u8> {
        [&[u8::try_from(text.len()).unwrap()], text].concat()
    }

    /// `:path` and another field with `%`, around the authority by its index, or by its name.
    fn block(authority: &[u8], by_index: bool) -> Vec<u8> {
        let name = if by_index { vec![0x41] } else { [vec![0x40], string(b":authority")].concat() };
        [vec![0x83, 0x3f, 0xe1, 0x1f, 0x44], string(b"/a%2F"), name, string(authority), vec![0x7f, 0x10], string(b"%")]
            .concat()
    }

    /// A connection with every form of frames around two header blocks.
    fn connection(authority: &[u8], by_index: bool) -> Vec<u8> {
        let block = block(authority, by_index);
        let (head, tail) = block.split_at(20);
        let padded = [&[3, 0, 0, 0, 0, 9], &block[..], &[0x41, b'%', b'%']].concat();
        [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            frame(4, 0, &[]),
            frame(HEADERS, 0, head),
            frame(CONTINUATION, END_HEADERS, tail),
            frame(0, 1, &[b'%'; 1000]),
            frame(HEADERS, END_HEADERS | PADDED | PRIORITY, &padded),
            frame(0, 1, &[0x41; 10]),
        ]
        .concat()
    }

    proptest! {
        #[test]
        fn only_the_authority_changes_with_any_chunks(size in 1..200usize, by_index: bool) {
            let mut bytes = connection(SENT, by_index);
            let mut filter = AuthorityFilter::default();
            bytes.chunks_mut(size).for_each(|chunk| filter.rewrite(chunk));
            prop_assert_eq!(bytes, connection(CLEAN, by_index));
        }

        #[test]
        fn any_bytes_are_taken(mut bytes in prop::collection::vec(any::<u8>(), 0..3000), size in 1..500usize) {
            let before = bytes.clone();
            let mut filter = AuthorityFilter { skip: 0, ..AuthorityFilter::default() };
            bytes.chunks_mut(size).for_each(|chunk| filter.rewrite(chunk));
            prop_assert!(bytes.iter().zip(&before).all(|(new, old)| new == old || (*old == b'%' && *new == b'-')));
        }
    }
}
