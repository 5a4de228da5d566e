//! The fast path's decoders of the two request messages.
//!
//! A decoder accepts a request only in its plain form: every field known, at most once, in its shortest encoding, with
//! a valid value. `None` is not an error: the Python handler receives the same bytes, and words the error if there is
//! one.

use crate::inference::{
    InferRequest, ModelSpec, OutputTensor, OutputTensors, PixelSource, Placement, ResponseFormat, PIXELS,
};
use crate::message::Message;
use crate::protobuf::{tag, Reader, LENGTH_DELIMITED, VARINT};

const MAX_STRING: usize = 1024;

/// Decodes a `digits.v1.PredictRequest`; one with `include_reliability` is left to Python.
pub fn decode_predict(message: &Message, spec: &ModelSpec) -> Option<InferRequest> {
    let (mut pixels, mut hidden, mut version) = (None, None, None);
    let mut reader = Reader::new(message);
    while !reader.is_at_end() {
        match reader.read_byte()? {
            t if t == tag(1, LENGTH_DELIMITED) && pixels.is_none() => pixels = Some(reader.read_span()?),
            t if t == tag(2, VARINT) && hidden.is_none() => hidden = Some(reader.read_varint()? != 0),
            t if t == tag(3, LENGTH_DELIMITED) && version.is_none() => {
                version = Some(spec.check_version(&reader.read_string(MAX_STRING)?)?);
            }
            _ => return None,
        }
    }
    let (pixels, hidden_layers) = (pixels?, hidden.unwrap_or(false));
    let images = spec.count_images(pixels.len)?;
    let (pixels, format) = (PixelSource::Message(pixels), ResponseFormat::Digits { hidden_layers });
    Some(InferRequest { pixels, images, format, placements: Vec::new() })
}

/// Decodes an `inference.ModelInferRequest` with UINT8 pixels, raw or in shared memory.
pub fn decode_infer(message: &Message, spec: &ModelSpec, in_stream: bool) -> Option<InferRequest> {
    let (mut name, mut version, mut id, mut input, mut raw) = (None, None, None, None, None);
    let (mut outputs, mut placements) = (OutputTensors::NONE, Vec::new());
    let mut reader = Reader::new(message);
    while !reader.is_at_end() {
        match reader.read_byte()? {
            t if t == tag(1, LENGTH_DELIMITED) && name.is_none() => {
                name = Some((reader.read_string(MAX_STRING)? == spec.name).then_some(())?);
            }
            t if t == tag(2, LENGTH_DELIMITED) && version.is_none() => {
                version = Some(spec.check_version(&reader.read_string(MAX_STRING)?)?);
            }
            t if t == tag(3, LENGTH_DELIMITED) && id.is_none() => id = Some(reader.read_string(MAX_STRING)?),
            t if t == tag(5, LENGTH_DELIMITED) && input.is_none() => input = Some(decode_input(&mut reader.nested()?)?),
            t if t == tag(6, LENGTH_DELIMITED) => {
                let (output, placement) = decode_output(&mut reader.nested()?)?;
                outputs.push(output, placement.is_some())?;
                placements.extend(placement.map(|placement| (output, placement)));
            }
            t if t == tag(7, LENGTH_DELIMITED) && raw.is_none() => raw = Some(reader.read_span()?),
            _ => return None,
        }
    }
    let ((shape, placement), ()) = (input?, name?);
    let (pixels, bytes) = match (raw, placement) {
        (Some(raw), None) => (PixelSource::Message(raw), raw.len),
        (None, Some(placement)) => {
            let bytes = usize::try_from(placement.byte_size).ok()?;
            (PixelSource::Region(placement), bytes)
        }
        _ => return None,
    };
    let images = spec.count_images(bytes)?;
    if shape != images as u64 {
        return None;
    }
    let outputs = if outputs.is_empty() { OutputTensors::ALL } else { outputs };
    let format = ResponseFormat::Tensors { id: id.unwrap_or_default(), outputs, in_stream };
    Some(InferRequest { pixels, images, format, placements })
}

/// Decodes an input tensor that is `pixels`, UINT8, `[n, 784]`; returns n, and its place if it is in shared memory.
fn decode_input(reader: &mut Reader<'_>) -> Option<(u64, Option<Placement>)> {
    let (mut name, mut datatype, mut shape) = (false, false, None);
    let mut parameters = PlacementParameters::default();
    while !reader.is_at_end() {
        match reader.read_byte()? {
            t if t == tag(1, LENGTH_DELIMITED) && !name => name = reader.read_string(MAX_STRING)? == "pixels",
            t if t == tag(2, LENGTH_DELIMITED) && !datatype => datatype = reader.read_string(MAX_STRING)? == "UINT8",
            t if t == tag(3, LENGTH_DELIMITED) && shape.is_none() => {
                let mut packed = reader.nested()?;
                let (n, width) = (packed.read_varint()?, packed.read_varint()?);
                shape = Some((packed.is_at_end() && width == PIXELS as u64).then_some(n)?);
            }
            t if t == tag(4, LENGTH_DELIMITED) => parameters.decode_entry(&mut reader.nested()?)?,
            _ => return None,
        }
    }
    let shape = shape.filter(|_| name && datatype)?;
    Some((shape, parameters.placement().ok()?))
}

/// Decodes a requested output that has only a name, or a place in shared memory too.
fn decode_output(reader: &mut Reader<'_>) -> Option<(OutputTensor, Option<Placement>)> {
    if reader.read_byte()? != tag(1, LENGTH_DELIMITED) {
        return None;
    }
    let output = OutputTensor::from_name(&reader.read_string(MAX_STRING)?)?;
    let mut parameters = PlacementParameters::default();
    while !reader.is_at_end() {
        if reader.read_byte()? != tag(2, LENGTH_DELIMITED) {
            return None;
        }
        parameters.decode_entry(&mut reader.nested()?)?;
    }
    Some((output, parameters.placement().ok()?))
}

/// The parameters of a tensor in shared memory.
#[derive(Default)]
struct PlacementParameters {
    region: Option<String>,
    offset: Option<u64>,
    byte_size: Option<u64>,
}

impl PlacementParameters {
    /// Decodes an entry of a tensor's `parameters`: a key, and an `InferParameter` with one field.
    fn decode_entry(&mut self, entry: &mut Reader<'_>) -> Option<()> {
        if entry.read_byte()? != tag(1, LENGTH_DELIMITED) {
            return None;
        }
        let key = entry.read_string(MAX_STRING)?;
        if entry.read_byte()? != tag(2, LENGTH_DELIMITED) {
            return None;
        }
        let mut value = entry.nested()?;
        let kind = value.read_byte()?;
        let is_int = kind == tag(2, VARINT) || kind == tag(5, VARINT); // int64_param, uint64_param
        match key.as_str() {
            "shared_memory_region" if kind == tag(3, LENGTH_DELIMITED) && self.region.is_none() => {
                self.region = Some(value.read_string(MAX_STRING)?);
            }
            "shared_memory_offset" if is_int && self.offset.is_none() => self.offset = Some(value.read_varint()?),
            "shared_memory_byte_size" if is_int && self.byte_size.is_none() => {
                self.byte_size = Some(value.read_varint()?);
            }
            _ => return None,
        }
        (value.is_at_end() && entry.is_at_end()).then_some(())
    }

    /// `None` if no parameter is there; an error if one of them is missing.
    fn placement(self) -> Result<Option<Placement>, ()> {
        match self {
            Self { region: None, offset: None, byte_size: None } => Ok(None),
            Self { region: Some(region), offset, byte_size: Some(byte_size) } => {
                Ok(Some(Placement { region, offset: offset.unwrap_or_default(), byte_size }))
            }
            _ => Err(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protobuf::put_field;
    use bytes::{Bytes, BytesMut};
    use proptest::prelude::*;

    fn spec() -> ModelSpec {
        ModelSpec { name: "digits".into(), version: "1".into(), max_batch_size: 16 }
    }

    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        let mut out = BytesMut::new();
        put_field(&mut out, number, content);
        out.to_vec()
    }

    fn infer_request(images: u8) -> Vec<Vec<u8>> {
        let shape = field(3, &[images, 0x90, 0x06]);
        let input = [field(1, b"pixels"), field(2, b"UINT8"), shape].concat();
        vec![field(1, b"digits"), field(5, &input), field(7, &vec![9; usize::from(images) * PIXELS])]
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_within_their_bounds_or_left_to_python(
            bytes in prop::collection::vec(any::<u8>(), 0..2000),
            size in 1..500usize,
        ) {
            let mut message = Message::default();
            for chunk in bytes.chunks(size) {
                message.push(Bytes::copy_from_slice(chunk));
            }
            let requests = [decode_predict(&message, &spec()), decode_infer(&message, &spec(), false)];
            for request in requests.into_iter().flatten() {
                if let PixelSource::Message(span) = request.pixels {
                    prop_assert_eq!(message.copy_span(span).len(), request.images * PIXELS);
                }
            }
        }

        #[test]
        fn a_damaged_request_is_decoded_within_its_bounds_or_left_to_python(
            at in 0..900usize, byte: u8, images in 1..3u8,
        ) {
            let mut bytes = infer_request(images).concat();
            let at = at % bytes.len();
            bytes[at] = byte;
            let message = Message::from(Bytes::from(bytes));
            if let Some(request) = decode_infer(&message, &spec(), false) {
                let PixelSource::Message(span) = request.pixels else { panic!("no shared memory") };
                prop_assert_eq!(span.len, request.images * PIXELS);
                prop_assert!(span.start + span.len <= message.len());
            }
        }
    }

    #[test]
    fn fields_are_accepted_in_any_order_and_once_each() {
        let fields = [field(1, &[7; PIXELS * 2]), field(3, b"1"), vec![tag(2, VARINT), 1]];
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
            let message = Message::from(Bytes::from(order.map(|i| fields[i].clone()).concat()));
            let request = decode_predict(&message, &spec()).unwrap();
            assert_eq!((request.images, request.format.needs_hidden_layers()), (2, true));
            let PixelSource::Message(span) = request.pixels else { panic!("no shared memory") };
            assert_eq!(message.copy_span(span), [7; PIXELS * 2]);
        }
        for twice in &fields {
            let message = Message::from(Bytes::from([fields.concat(), twice.clone()].concat()));
            assert!(decode_predict(&message, &spec()).is_none());
        }
    }

    #[test]
    fn an_invalid_request_is_left_to_python() {
        let image = field(1, &[0; PIXELS]);
        for bytes in [
            Vec::new(),
            field(1, &[0; 783]),
            field(1, &vec![0; PIXELS * 17]),
            [image.clone(), field(3, b"2")].concat(),
            [image.clone(), field(4, b"")].concat(),
            [image.clone(), vec![tag(4, VARINT), 1]].concat(), // include_reliability: Python encodes that reply
            [image, vec![tag(2, VARINT), 0x80, 0]].concat(),
        ] {
            assert!(decode_predict(&Message::from(Bytes::from(bytes)), &spec()).is_none());
        }
    }

    /// An entry of a tensor's `parameters`; `value` is an `InferParameter`.
    fn parameter(key: &str, value: &[u8]) -> Vec<u8> {
        [field(1, key.as_bytes()), field(2, value)].concat()
    }

    fn decode_placed(parameters: &[Vec<u8>], raw: &[u8]) -> Option<InferRequest> {
        let tensor = [field(1, b"pixels"), field(2, b"UINT8"), field(3, &[1, 0x90, 0x06])].concat();
        let parameters: Vec<u8> = parameters.iter().flat_map(|entry| field(4, entry)).collect();
        let request = [field(1, b"digits"), field(5, &[tensor, parameters].concat()), raw.to_vec()].concat();
        decode_infer(&Message::from(Bytes::from(request)), &spec(), false)
    }

    #[test]
    fn parameters_of_shared_memory_are_accepted_in_any_order_and_once_each() {
        let region = parameter("shared_memory_region", &field(3, b"r"));
        let size = parameter("shared_memory_byte_size", &[tag(2, VARINT), 0x90, 0x06]);
        let offset = parameter("shared_memory_offset", &[tag(5, VARINT), 8]);
        let placement = |offset| PixelSource::Region(Placement { region: "r".into(), offset, byte_size: 784 });
        for entries in [[&region, &size, &offset], [&offset, &size, &region]] {
            let request = decode_placed(&entries.map(Clone::clone), &[]).unwrap();
            assert_eq!((request.pixels, request.images), (placement(8), 1));
        }
        assert_eq!(decode_placed(&[region.clone(), size.clone()], &[]).unwrap().pixels, placement(0));
        for entries in [
            vec![region.clone()],
            vec![size.clone()],
            vec![region.clone(), region.clone(), size.clone()],
            vec![region.clone(), parameter("shared_memory_byte_size", &field(3, b"784"))],
            vec![region.clone(), size.clone(), parameter("classification", &[tag(2, VARINT), 1])],
        ] {
            assert!(decode_placed(&entries, &[]).is_none());
        }
        assert!(decode_placed(&[region, size], &field(7, &[0; PIXELS])).is_none(), "values in the request too");
    }

    #[test]
    fn outputs_are_those_requested_in_their_order() {
        let decode = |names: &[&str]| {
            let mut fields = infer_request(2);
            fields.extend(names.iter().map(|name| field(6, &field(1, name.as_bytes()))));
            decode_infer(&Message::from(Bytes::from(fields.concat())), &spec(), false)
        };
        let names = |request: InferRequest| match request.format {
            ResponseFormat::Tensors { outputs, .. } => outputs.iter().map(OutputTensor::name).collect::<Vec<_>>(),
            ResponseFormat::Digits { .. } => Vec::new(),
        };
        assert_eq!(names(decode(&[]).unwrap()), ["activations", "digit", "layer1", "layer2"]);
        assert_eq!(names(decode(&["layer2", "digit"]).unwrap()), ["layer2", "digit"]);
        assert!(decode(&["softmax"]).is_none());
        assert!(decode(&["digit", "digit"]).is_none());
    }
}
