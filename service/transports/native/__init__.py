"""The native transport's Python side; the Rust crate is in native/."""
