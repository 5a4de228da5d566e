//! Encoders of the replies, straight from the model's output arrays into one buffer, with the gRPC prefix.

use bytes::{BufMut, BytesMut};

use crate::inference::{ModelSpec, OutputTensor, OutputTensors, Predictions, ResponseFormat, Rows};
use crate::prefix::put_prefix;
use crate::protobuf::{field_len, put_field, put_field_header, put_floats, put_varint, varint_len};

/// The entry of a response's `parameters` that marks it as the last of its request: `triton_final_response`, true.
const FINAL_RESPONSE: &[u8] = b"\x0a\x15triton_final_response\x12\x02\x08\x01";

/// Writes the reply with its prefix.
pub fn encode_reply(
    out: &mut BytesMut,
    format: &ResponseFormat,
    predictions: &Predictions,
    rows: Rows,
    spec: &ModelSpec,
) {
    match format {
        ResponseFormat::Digits { hidden_layers } => encode_digits(out, *hidden_layers, predictions, rows, spec),
        ResponseFormat::Tensors { id, outputs, in_stream } => {
            let response = Tensors { id, outputs, in_stream: *in_stream, rows, spec };
            response.encode(out, predictions);
        }
    }
}

/// Writes an error within a stream with its prefix: the message, and a response with the request's id alone.
pub fn encode_stream_error(out: &mut BytesMut, message: &str, id: &str) {
    let response = id_len(id) + field_len(FINAL_RESPONSE.len());
    put_prefix(out, field_len(message.len()) + field_len(response));
    put_field(out, 1, message.as_bytes());
    put_field_header(out, 2, response);
    put_id(out, id);
    put_field(out, 4, FINAL_RESPONSE);
}

fn encode_digits(out: &mut BytesMut, hidden_layers: bool, predictions: &Predictions, rows: Rows, spec: &ModelSpec) {
    let Rows { first, images } = rows;
    let layers: &[(u8, OutputTensor)] =
        if hidden_layers { &[(4, OutputTensor::Layer1), (5, OutputTensor::Layer2)] } else { &[] };
    let version = spec.version.as_bytes();
    let len = field_len(images)
        + field_len(OutputTensor::Activations.byte_len(images))
        + field_len(version.len())
        + layers.iter().map(|(_, layer)| field_len(layer.byte_len(images))).sum::<usize>();
    put_prefix(out, len);
    // A digit is below 128, so its varint is the byte itself.
    put_field(out, 1, &predictions.digits[first..first + images]);
    put_layer(out, 2, OutputTensor::Activations, predictions, rows);
    put_field(out, 3, version);
    for (field, layer) in layers {
        put_layer(out, *field, *layer, predictions, rows);
    }
}

fn put_layer(out: &mut BytesMut, field: u8, layer: OutputTensor, predictions: &Predictions, rows: Rows) {
    put_field_header(out, field, layer.byte_len(rows.images));
    put_floats(out, predictions.layer_rows(layer, rows));
}

/// A `ModelInferResponse` to encode.
struct Tensors<'a> {
    id: &'a str,
    outputs: &'a OutputTensors,
    in_stream: bool,
    rows: Rows,
    spec: &'a ModelSpec,
}

impl Tensors<'_> {
    fn encode(&self, out: &mut BytesMut, predictions: &Predictions) {
        let len = self.encoded_len();
        if self.in_stream {
            put_prefix(out, field_len(len));
            put_field_header(out, 2, len); // infer_response of ModelStreamInferResponse
        } else {
            put_prefix(out, len);
        }
        put_field(out, 1, self.spec.name.as_bytes());
        put_field(out, 2, self.spec.version.as_bytes());
        put_id(out, self.id);
        if self.in_stream {
            put_field(out, 4, FINAL_RESPONSE);
        }
        for output in self.outputs.iter() {
            put_tensor_metadata(out, output, self.rows.images);
        }
        for output in self.outputs.iter() {
            self.put_contents(out, output, predictions);
        }
    }

    fn encoded_len(&self) -> usize {
        let images = self.rows.images;
        let outputs = self.outputs.iter();
        field_len(self.spec.name.len())
            + field_len(self.spec.version.len())
            + id_len(self.id)
            + if self.in_stream { field_len(FINAL_RESPONSE.len()) } else { 0 }
            + outputs
                .map(|output| {
                    field_len(tensor_metadata_len(output, images)) + field_len(self.outputs.reply_len(output, images))
                })
                .sum::<usize>()
    }

    /// One entry of `raw_output_contents`, which is empty for an output in shared memory.
    fn put_contents(&self, out: &mut BytesMut, output: OutputTensor, predictions: &Predictions) {
        put_field_header(out, 6, self.outputs.reply_len(output, self.rows.images));
        if !self.outputs.is_placed(output) {
            put_values(out, output, predictions, self.rows);
        }
    }
}

/// Writes the values of an output as Open Inference Protocol and Triton's shared memory have them, little-endian.
pub fn put_values(out: &mut BytesMut, output: OutputTensor, predictions: &Predictions, rows: Rows) {
    if output == OutputTensor::Digit {
        for digit in &predictions.digits[rows.first..rows.first + rows.images] {
            out.put_i64_le(i64::from(*digit));
        }
    } else {
        put_floats(out, predictions.layer_rows(output, rows));
    }
}

fn id_len(id: &str) -> usize {
    if id.is_empty() {
        0
    } else {
        field_len(id.len())
    }
}

fn put_id(out: &mut BytesMut, id: &str) {
    if !id.is_empty() {
        put_field(out, 3, id.as_bytes());
    }
}

/// Bytes of the packed `shape`: n, and the width unless the tensor has one dimension.
fn shape_len(output: OutputTensor, images: usize) -> usize {
    varint_len(images) + if output == OutputTensor::Digit { 0 } else { varint_len(output.width()) }
}

fn tensor_metadata_len(output: OutputTensor, images: usize) -> usize {
    field_len(output.name().len()) + field_len(output.datatype().len()) + field_len(shape_len(output, images))
}

fn put_tensor_metadata(out: &mut BytesMut, output: OutputTensor, images: usize) {
    put_field_header(out, 5, tensor_metadata_len(output, images));
    put_field(out, 1, output.name().as_bytes());
    put_field(out, 2, output.datatype().as_bytes());
    put_field_header(out, 3, shape_len(output, images));
    put_varint(out, images);
    if output != OutputTensor::Digit {
        put_varint(out, output.width());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Message;
    use crate::prefix::PREFIX_LEN;
    use crate::protobuf::Reader;

    #[test]
    fn an_error_within_a_stream_is_as_long_as_its_prefix_says() {
        for (message, id) in [("", ""), ("pixels: is empty", "a"), ("é", "b")] {
            let mut out = BytesMut::new();
            encode_stream_error(&mut out, message, id);
            let len = u32::from_be_bytes(out[1..PREFIX_LEN].try_into().unwrap());
            assert_eq!(out.len(), PREFIX_LEN + len as usize);
        }
    }

    #[test]
    fn a_reply_is_as_long_as_its_prefix_says() {
        let predictions = Predictions {
            digits: vec![3; 5],
            activations: vec![0.5; 50],
            layer1: vec![0.25; 80],
            layer2: vec![0.125; 80],
        };
        let spec = ModelSpec { name: "digits".into(), version: "1".into(), max_batch_size: 16 };
        for in_stream in [false, true] {
            for format in [
                ResponseFormat::Digits { hidden_layers: in_stream },
                ResponseFormat::Tensors { id: "a".into(), outputs: OutputTensors::ALL, in_stream },
            ] {
                let mut out = BytesMut::new();
                encode_reply(&mut out, &format, &predictions, Rows { first: 1, images: 3 }, &spec);
                let len = u32::from_be_bytes(out[1..PREFIX_LEN].try_into().unwrap());
                assert_eq!(out.len(), PREFIX_LEN + len as usize);
                let message = Message::from(out.split_off(PREFIX_LEN).freeze());
                let mut reader = Reader::new(&message);
                while !reader.is_at_end() {
                    reader.read_byte().unwrap();
                    reader.read_span().unwrap();
                }
            }
        }
    }
}
