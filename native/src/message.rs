//! The bytes of one message, in the chunks in which they arrived.

use bytes::{BufMut, Bytes, BytesMut};

/// One message, as slices of the frames that carried it.
#[derive(Clone, Debug, Default)]
pub struct Message {
    chunks: Vec<Bytes>,
    len: usize,
}

/// A range of bytes of a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    pub start: usize,
    pub len: usize,
}

impl Message {
    pub fn push(&mut self, chunk: Bytes) {
        self.len += chunk.len();
        self.chunks.push(chunk);
    }

    pub const fn len(&self) -> usize {
        self.len
    }

    pub fn chunks(&self) -> &[Bytes] {
        &self.chunks
    }

    /// The bytes at `span`, which lies within the message, chunk by chunk.
    pub fn slices(&self, span: Span) -> impl Iterator<Item = &[u8]> {
        let (mut skip, mut left) = (span.start, span.len);
        self.chunks.iter().filter_map(move |chunk| {
            let start = skip.min(chunk.len());
            skip -= start;
            let n = left.min(chunk.len() - start);
            left -= n;
            (n > 0).then(|| &chunk[start..start + n])
        })
    }

    /// Copies the bytes at `span` to `out`, which has the same length; `span` lies within the message.
    pub fn copy_to(&self, span: Span, mut out: &mut [u8]) {
        for slice in self.slices(span) {
            let (head, tail) = out.split_at_mut(slice.len());
            head.copy_from_slice(slice);
            out = tail;
        }
    }

    #[cfg(test)]
    pub fn copy_span(&self, span: Span) -> Vec<u8> {
        let mut out = vec![0; span.len];
        self.copy_to(span, &mut out);
        out
    }

    /// The whole message in one chunk.
    pub fn to_bytes(&self) -> Bytes {
        match self.chunks.as_slice() {
            [] => Bytes::new(),
            [one] => one.clone(),
            many => {
                let mut joined = BytesMut::with_capacity(self.len);
                for chunk in many {
                    joined.put_slice(chunk);
                }
                joined.freeze()
            }
        }
    }
}

impl From<Bytes> for Message {
    fn from(bytes: Bytes) -> Self {
        Self { len: bytes.len(), chunks: vec![bytes] }
    }
}
