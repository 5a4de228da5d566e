//! The stand-in of a session: no model is run here.

pub const MAX_RUN: usize = 128;

#[derive(Debug)]
pub struct Session;
