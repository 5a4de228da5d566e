//! Values that share no cache line with others.

use std::ops::Deref;

/// A value with a cache line of its own, and the one that processors prefetch with it: a thread that writes to it does not
/// slow down the threads that read what is next to it.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Aligned<T>(pub T);

impl<T> Deref for Aligned<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}
