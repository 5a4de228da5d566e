//! Who was not let in; nobody comes here.

#[derive(Clone, Copy, Debug)]
pub struct Stranger;
