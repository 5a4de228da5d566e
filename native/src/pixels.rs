//! The pixels of a queued request: in its message, or in shared memory.

use crate::message::{Message, Span};
use crate::region_error::RegionError;
use crate::regions::RegionSlice;

#[derive(Debug)]
pub enum Pixels {
    Message(Message, Span),
    Region(RegionSlice),
}

impl Pixels {
    pub const fn len(&self) -> usize {
        match self {
            Self::Message(_, span) => span.len,
            Self::Region(slice) => slice.len(),
        }
    }

    /// Copies all pixels to `out`, which has the same length.
    pub fn copy_to(&self, out: &mut [u8]) -> Result<(), RegionError> {
        match self {
            Self::Message(message, span) => message.copy_to(*span, out),
            Self::Region(slice) => slice.read(0, out)?,
        }
        Ok(())
    }
}
