//! Guards that count bytes in a connection's budget until they are dropped.

use std::sync::Arc;

use bytes::{Buf, Bytes};

use crate::budget::Usage;
use crate::status::Status;

/// Bytes counted for a call that waits for its message, besides the message.
pub const OPEN_CALL: usize = 4 << 10;

/// Bytes of unread replies.
#[derive(Debug)]
pub struct Charge {
    usage: Arc<Usage>,
    bytes: usize,
}

impl Charge {
    pub fn new(usage: Arc<Usage>, bytes: usize) -> Self {
        usage.add_reply_bytes(bytes);
        Self { usage, bytes }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.usage.remove_reply_bytes(self.bytes);
    }
}

/// Bytes reserved for replies to come.
#[derive(Debug)]
pub struct Reservation {
    usage: Arc<Usage>,
    bytes: usize,
}

impl Reservation {
    pub fn new(usage: Arc<Usage>, bytes: usize) -> Self {
        let mut reservation = Self { usage, bytes: 0 };
        reservation.set(bytes);
        reservation
    }

    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn set(&mut self, bytes: usize) {
        if bytes > self.bytes {
            self.usage.add_reply_bytes(bytes - self.bytes);
            self.usage.add_reserved(bytes - self.bytes);
        } else {
            self.usage.remove_reserved(self.bytes - bytes);
            self.usage.remove_reply_bytes(self.bytes - bytes);
        }
        self.bytes = bytes;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// A reply to send: h2 drops it after it has sent it, or when it cannot.
#[derive(Debug)]
pub struct ReplyBuf {
    bytes: Bytes,
    _charge: Charge,
}

impl ReplyBuf {
    pub fn new(bytes: Bytes, usage: Arc<Usage>) -> Self {
        let charge = Charge::new(usage, bytes.len());
        Self { bytes, _charge: charge }
    }
}

impl Buf for ReplyBuf {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, cnt: usize) {
        self.bytes.advance(cnt);
    }

    fn copy_to_bytes(&mut self, len: usize) -> Bytes {
        self.bytes.copy_to_bytes(len)
    }
}

/// Bytes of a call whose message is incomplete.
pub struct IncompleteMessage {
    pub usage: Arc<Usage>,
    bytes: usize,
    /// As it was at the start; a token may be presented on the connection meanwhile.
    is_authenticated: bool,
}

impl IncompleteMessage {
    pub fn new(usage: Arc<Usage>) -> Self {
        let is_authenticated = usage.is_authenticated();
        Self { usage, bytes: 0, is_authenticated }
    }

    /// Sets the bytes; an error if that is more than the limit.
    pub fn set(&mut self, bytes: usize) -> Result<(), Status> {
        if bytes > self.bytes {
            self.usage.add_incomplete(bytes - self.bytes, self.is_authenticated);
            self.bytes = bytes;
            return self.usage.check_incomplete(self.is_authenticated);
        }
        self.release(self.bytes - bytes);
        self.bytes = bytes;
        Ok(())
    }

    fn release(&self, bytes: usize) {
        if bytes > 0 {
            self.usage.remove_incomplete(bytes, self.is_authenticated);
        }
    }
}

impl Drop for IncompleteMessage {
    fn drop(&mut self) {
        self.release(self.bytes);
    }
}
