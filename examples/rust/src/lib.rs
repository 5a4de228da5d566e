//! The code that `build.rs` generates from `proto/digits/v1/digits.proto`.

tonic::include_proto!("digits.v1");
