//! Why a tensor in shared memory cannot be read or written. Python words each error as its own handlers do.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The object ends after `available` of the tensor's `expected` bytes.
    TooShort { available: usize, expected: usize },
    /// The region has been unregistered.
    Unregistered,
    /// The object ends before the tensor does.
    Truncated,
    /// The operating system has written a part only.
    NotWritten,
    /// The `errno` of the operating system.
    Os(i32),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionError {
    pub tensor: &'static str,
    pub region: String,
    pub problem: Problem,
}
