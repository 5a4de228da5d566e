//! The stand-in of a session: no model is run here.

#[derive(Debug)]
pub struct Session;
