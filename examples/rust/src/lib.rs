//! What `build.rs` generated of `proto/digits/v1/digits.proto`.

tonic::include_proto!("digits.v1");
