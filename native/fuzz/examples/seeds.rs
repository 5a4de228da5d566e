//! Writes requests as clients send them into `corpus/predict` and `corpus/infer`, as seeds for the fuzzer.

use std::io::Result;
use std::{fs, path::Path};

use digitserve_native_fuzz::prost_messages::{ModelInferRequest, PredictRequest, RequestedOutput, Tensor};
use prost::Message;

fn main() -> Result<()> {
    let (predicts, infers) = (predicts(), infers());
    let with_chunk_size = |size: u8, bytes: &[u8]| [&[size], bytes].concat();
    for (at, request) in predicts.iter().enumerate() {
        write("predict", at, &with_chunk_size(255, request))?;
        write("predict", at + predicts.len(), &with_chunk_size(16, request))?;
    }
    for (at, request) in infers.iter().enumerate() {
        write("infer", at, &with_chunk_size(255, request))?;
        write("infer", at + infers.len(), &with_chunk_size(16, request))?;
    }
    Ok(())
}

fn write(target: &str, at: usize, bytes: &[u8]) -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join(format!("seed-{at:02}")), bytes)
}

/// n images with a stroke across each.
fn images(n: usize) -> Vec<u8> {
    (0..n * 784).map(|at| if at % 28 == 14 { 255 } else { 0 }).collect()
}

fn predicts() -> Vec<Vec<u8>> {
    [(1, false, ""), (2, true, "1"), (4, true, ""), (1, false, "2")]
        .map(|(n, include_hidden_layers, version)| {
            PredictRequest { pixels: images(n), include_hidden_layers, model_version: version.into() }.encode_to_vec()
        })
        .to_vec()
}

fn infers() -> Vec<Vec<u8>> {
    let request = |n: usize, id: &str, outputs: &[&str]| {
        let shape = vec![n as i64, 784];
        ModelInferRequest {
            model_name: "digits".into(),
            model_version: if id.is_empty() { String::new() } else { "1".into() },
            id: id.into(),
            inputs: vec![Tensor { name: "pixels".into(), datatype: "UINT8".into(), shape }],
            outputs: outputs.iter().map(|name| RequestedOutput { name: (*name).into() }).collect(),
            raw_input_contents: vec![images(n)],
        }
        .encode_to_vec()
    };
    vec![
        request(1, "", &[]),
        request(2, "a", &["digit"]),
        request(1, "ä", &["layer2", "activations", "layer1", "digit"]),
        request(4, "", &["digit", "digit"]),
    ]
}
