//! The stand-in of `../src/auth.rs`; no scenario uses it.

#[derive(Clone, Copy, Debug)]
pub struct AuthError;
