//! Writes requests as clients send them into `corpus/predict` and `corpus/infer`, as seeds for the fuzzer.

use std::collections::HashMap;
use std::io::Result;
use std::{fs, path::Path};

use digitserve_native_fuzz::prost_messages::{
    Choice, InferParameter, ModelInferRequest, PredictRequest, RequestedOutput, Tensor,
};
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
            inputs: vec![Tensor { name: "pixels".into(), datatype: "UINT8".into(), shape, parameters: HashMap::new() }],
            outputs: outputs
                .iter()
                .map(|name| RequestedOutput { name: (*name).into(), parameters: HashMap::new() })
                .collect(),
            raw_input_contents: vec![images(n)],
        }
        .encode_to_vec()
    };
    vec![
        request(1, "", &[]),
        request(2, "a", &["digit"]),
        request(1, "ä", &["layer2", "activations", "layer1", "digit"]),
        request(4, "", &["digit", "digit"]),
        placed(2),
    ]
}

/// A request whose tensors are in shared memory.
fn placed(n: usize) -> Vec<u8> {
    let parameters = |offset: i64, byte_size: usize| {
        let parameter = |choice| InferParameter { parameter_choice: Some(choice) };
        HashMap::from([
            ("shared_memory_region".into(), parameter(Choice::StringParam("r".into()))),
            ("shared_memory_offset".into(), parameter(Choice::Int64Param(offset))),
            ("shared_memory_byte_size".into(), parameter(Choice::Int64Param(byte_size as i64))),
        ])
    };
    let input = Tensor {
        name: "pixels".into(),
        datatype: "UINT8".into(),
        shape: vec![n as i64, 784],
        parameters: parameters(8, n * 784),
    };
    ModelInferRequest {
        model_name: "digits".into(),
        inputs: vec![input],
        outputs: vec![RequestedOutput { name: "digit".into(), parameters: parameters(0, n * 8) }],
        ..ModelInferRequest::default()
    }
    .encode_to_vec()
}
