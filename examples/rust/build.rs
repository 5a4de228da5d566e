//! Generates the messages and the client from ../../proto.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let descriptors = protox::compile(["digits/v1/digits.proto"], ["../../proto"])?;
    tonic_prost_build::configure().build_server(false).compile_fds(descriptors)?;
    println!("cargo:rerun-if-changed=../../proto/digits/v1/digits.proto");
    Ok(())
}
