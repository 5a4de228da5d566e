//! Values that share no cache line with others.

use std::ops::Deref;

/// A value with its own cache line, and the line that processors prefetch with it. A thread that writes to it does not slow
/// down the threads that read adjacent values.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Aligned<T>(pub T);

impl<T> Deref for Aligned<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}
