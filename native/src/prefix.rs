//! The prefix of a gRPC message: one byte for the compressed flag, four for the length.

use bytes::{BufMut, Bytes, BytesMut};

/// Bytes of the prefix.
pub const PREFIX_LEN: usize = 5;

/// Writes the prefix of an uncompressed message of `len` bytes, and reserves space for the message.
pub fn put_prefix(out: &mut BytesMut, len: usize) {
    out.reserve(PREFIX_LEN + len);
    out.put_u8(0);
    #[allow(clippy::cast_possible_truncation)] // a reply holds at most max_batch_size images, far below 4 GiB
    out.put_u32(len as u32);
}

/// The message with its prefix.
pub fn frame(message: &[u8]) -> Bytes {
    let mut out = BytesMut::new();
    put_prefix(&mut out, message.len());
    out.put_slice(message);
    out.freeze()
}
