//! What a caller asks of the model, read from the two request messages, and the replies written from the model's arrays.
//!
//! A request is taken here only where its form leaves no doubt: every field known, each at most once, every value one
//! that is served. `None` is no refusal: the Python handler gets the same bytes and says what is wrong, if anything is.

use bytes::{BufMut, BytesMut};

use crate::protobuf::{
    field_len, open_field, put_field, put_floats, put_varint, tag, varint_len, Message, Span, LENGTH, VARINT,
};

pub const PIXELS: usize = 784;
const HIDDEN: usize = 16;
const DIGITS: usize = 10;
const LONGEST_TEXT: usize = 1024;

/// What stands in every request and reply: the model's name and version, and the most images in one message.
#[derive(Debug)]
pub struct Serves {
    pub name: String,
    pub version: String,
    pub max_batch_size: usize,
}

/// A well-formed request: its images, `n` times 784 bytes at `span` of the message, and how to answer.
#[derive(Debug)]
pub struct Asked {
    pub span: Span,
    pub images: usize,
    pub form: Form,
}

/// How the reply is written.
#[derive(Debug)]
pub enum Form {
    Digits { hidden: bool },
    Tensors { id: String, outputs: Outputs, in_stream: bool },
}

/// What stands in a reply besides its tensors: about so much.
const REPLY_HEAD: usize = 64;
const TENSORS_HEAD: usize = 256;

impl Form {
    /// About what the reply for so many images takes.
    pub fn reply_size(&self, images: usize) -> usize {
        match self {
            Self::Digits { hidden } => REPLY_HEAD + images * (1 + 4 * (DIGITS + if *hidden { 2 * HIDDEN } else { 0 })),
            Self::Tensors { id, outputs, .. } => {
                TENSORS_HEAD + id.len() + outputs.iter().map(|output| output.bytes(images)).sum::<usize>()
            }
        }
    }

    /// The caller's own id of the request.
    pub fn id(&self) -> &str {
        match self {
            Self::Digits { .. } => "",
            Self::Tensors { id, .. } => id,
        }
    }

    /// Whether the reply needs the hidden layers.
    pub fn hidden(&self) -> bool {
        match self {
            Self::Digits { hidden } => *hidden,
            Self::Tensors { outputs, .. } => {
                outputs.iter().any(|output| matches!(output, Output::Layer1 | Output::Layer2))
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    Activations,
    Digit,
    Layer1,
    Layer2,
}

/// At most four outputs, in the order asked for.
#[derive(Clone, Copy, Debug)]
pub struct Outputs {
    list: [Output; 4],
    len: usize,
}

impl Outputs {
    const ALL: Self = Self { list: [Output::Activations, Output::Digit, Output::Layer1, Output::Layer2], len: 4 };
    const NONE: Self = Self { list: Self::ALL.list, len: 0 };

    fn iter(&self) -> impl Iterator<Item = Output> + '_ {
        self.list[..self.len].iter().copied()
    }

    fn push(&mut self, output: Output) -> Option<()> {
        if self.iter().any(|known| known == output) {
            return None;
        }
        self.list[self.len] = output;
        self.len += 1;
        Some(())
    }
}

impl Output {
    fn named(name: &str) -> Option<Self> {
        Outputs::ALL.iter().find(|output| output.name() == name)
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Activations => "activations",
            Self::Digit => "digit",
            Self::Layer1 => "layer1",
            Self::Layer2 => "layer2",
        }
    }

    const fn datatype(self) -> &'static str {
        if matches!(self, Self::Digit) {
            "INT64"
        } else {
            "FP32"
        }
    }

    const fn width(self) -> usize {
        match self {
            Self::Activations => DIGITS,
            Self::Digit => 1,
            Self::Layer1 | Self::Layer2 => HIDDEN,
        }
    }

    const fn bytes(self, images: usize) -> usize {
        images * self.width() * if matches!(self, Self::Digit) { 8 } else { 4 }
    }
}

impl Serves {
    fn knows(&self, version: &str) -> Option<()> {
        (version.is_empty() || version == self.version).then_some(())
    }

    fn whole_images(&self, span: Span) -> Option<usize> {
        let images = span.len / PIXELS;
        (span.len % PIXELS == 0 && images >= 1 && images <= self.max_batch_size).then_some(images)
    }
}

/// A `digits.v1.PredictRequest`.
pub fn predict(message: &Message, serves: &Serves) -> Option<Asked> {
    let (mut pixels, mut hidden, mut version) = (None, None, None);
    let mut reader = message.reader();
    while !reader.is_done() {
        match reader.byte()? {
            t if t == tag(1, LENGTH) && pixels.is_none() => pixels = Some(reader.span()?),
            t if t == tag(2, VARINT) && hidden.is_none() => hidden = Some(reader.varint()? != 0),
            t if t == tag(3, LENGTH) && version.is_none() => version = Some(serves.knows(&reader.text(LONGEST_TEXT)?)?),
            _ => return None,
        }
    }
    let span = pixels?;
    Some(Asked { span, images: serves.whole_images(span)?, form: Form::Digits { hidden: hidden.unwrap_or(false) } })
}

/// An `inference.ModelInferRequest` with raw UINT8 contents.
pub fn infer(message: &Message, serves: &Serves, in_stream: bool) -> Option<Asked> {
    let (mut name, mut version, mut id, mut shape, mut raw) = (None, None, None, None, None);
    let mut outputs = Outputs::NONE;
    let mut reader = message.reader();
    while !reader.is_done() {
        match reader.byte()? {
            t if t == tag(1, LENGTH) && name.is_none() => {
                name = (reader.text(LONGEST_TEXT)? == serves.name).then_some(());
                name?;
            }
            t if t == tag(2, LENGTH) && version.is_none() => version = Some(serves.knows(&reader.text(LONGEST_TEXT)?)?),
            t if t == tag(3, LENGTH) && id.is_none() => id = Some(reader.text(LONGEST_TEXT)?),
            t if t == tag(5, LENGTH) && shape.is_none() => shape = Some(input(&mut reader.within()?)?),
            t if t == tag(6, LENGTH) => {
                let mut inner = reader.within()?;
                if inner.byte()? != tag(1, LENGTH) {
                    return None;
                }
                let output = Output::named(&inner.text(LONGEST_TEXT)?)?;
                if !inner.is_done() {
                    return None;
                }
                outputs.push(output)?;
            }
            t if t == tag(7, LENGTH) && raw.is_none() => raw = Some(reader.span()?),
            _ => return None,
        }
    }
    let (span, ()) = (raw?, name?);
    let images = serves.whole_images(span)?;
    if shape? != images as u64 {
        return None;
    }
    let outputs = if outputs.len == 0 { Outputs::ALL } else { outputs };
    Some(Asked { span, images, form: Form::Tensors { id: id.unwrap_or_default(), outputs, in_stream } })
}

/// An input tensor that is `pixels`, UINT8, `[n, 784]`: its n.
fn input(reader: &mut crate::protobuf::Reader<'_>) -> Option<u64> {
    let (mut name, mut datatype, mut shape) = (false, false, None);
    while !reader.is_done() {
        match reader.byte()? {
            t if t == tag(1, LENGTH) && !name => name = reader.text(LONGEST_TEXT)? == "pixels",
            t if t == tag(2, LENGTH) && !datatype => datatype = reader.text(LONGEST_TEXT)? == "UINT8",
            t if t == tag(3, LENGTH) && shape.is_none() => {
                let mut packed = reader.within()?;
                let (n, width) = (packed.varint()?, packed.varint()?);
                shape = Some((packed.is_done() && width == PIXELS as u64).then_some(n)?);
            }
            _ => return None,
        }
    }
    shape.filter(|_| name && datatype)
}

/// What the model said of a batch: digits one a byte, the layers row after row; the hidden ones where someone asked.
#[derive(Debug, Default)]
pub struct Predictions {
    pub digits: Vec<u8>,
    pub activations: Vec<f32>,
    pub layer1: Vec<f32>,
    pub layer2: Vec<f32>,
}

impl Predictions {
    fn layer(&self, output: Output) -> &[f32] {
        match output {
            Output::Activations | Output::Digit => &self.activations,
            Output::Layer1 => &self.layer1,
            Output::Layer2 => &self.layer2,
        }
    }

    fn rows(&self, output: Output, first: usize, images: usize) -> &[f32] {
        let width = output.width();
        &self.layer(output)[first * width..(first + images) * width]
    }
}

/// Which rows of the predictions are a caller's.
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    pub first: usize,
    pub images: usize,
}

/// The entry of a response's `parameters` that marks it as the last to its request: `triton_final_response`, true.
const FINAL_RESPONSE: &[u8] = b"\x0a\x15triton_final_response\x12\x02\x08\x01";

/// The length of a gRPC message's frame before the message: not compressed, and how long.
pub const PREFIX: usize = 5;

/// Writes the reply's gRPC frame.
pub fn put_reply(out: &mut BytesMut, form: &Form, found: &Predictions, rows: Rows, serves: &Serves) {
    match form {
        Form::Digits { hidden } => put_digits(out, *hidden, found, rows, serves),
        Form::Tensors { id, outputs, in_stream } => put_tensors(out, id, outputs, *in_stream, found, rows, serves),
    }
}

pub fn put_prefix(out: &mut BytesMut, len: usize) {
    out.reserve(PREFIX + len);
    out.put_u8(0);
    #[allow(clippy::cast_possible_truncation)] // a reply holds at most max_batch_size images, far below 4 GiB
    out.put_u32(len as u32);
}

fn put_digits(out: &mut BytesMut, hidden: bool, found: &Predictions, rows: Rows, serves: &Serves) {
    let Rows { first, images } = rows;
    let layers: &[(u8, Output)] = if hidden { &[(4, Output::Layer1), (5, Output::Layer2)] } else { &[] };
    let version = serves.version.as_bytes();
    let len = field_len(images)
        + field_len(Output::Activations.bytes(images))
        + field_len(version.len())
        + layers.iter().map(|(_, layer)| field_len(layer.bytes(images))).sum::<usize>();
    put_prefix(out, len);
    // A digit is below 128, so its varint is the byte itself.
    put_field(out, 1, &found.digits[first..first + images]);
    put_layer(out, 2, Output::Activations, found, rows);
    put_field(out, 3, version);
    for (field, layer) in layers {
        put_layer(out, *field, *layer, found, rows);
    }
}

fn put_layer(out: &mut BytesMut, field: u8, layer: Output, found: &Predictions, rows: Rows) {
    open_field(out, field, layer.bytes(rows.images));
    put_floats(out, found.rows(layer, rows.first, rows.images));
}

fn put_tensors(
    out: &mut BytesMut,
    id: &str,
    outputs: &Outputs,
    in_stream: bool,
    found: &Predictions,
    rows: Rows,
    serves: &Serves,
) {
    let len = head_len(serves, id)
        + if in_stream { field_len(FINAL_RESPONSE.len()) } else { 0 }
        + outputs
            .iter()
            .map(|output| field_len(tensor_len(output, rows.images)) + field_len(output.bytes(rows.images)))
            .sum::<usize>();
    if in_stream {
        put_prefix(out, field_len(len));
        open_field(out, 2, len); // infer_response of ModelStreamInferResponse
    } else {
        put_prefix(out, len);
    }
    put_field(out, 1, serves.name.as_bytes());
    put_field(out, 2, serves.version.as_bytes());
    if !id.is_empty() {
        put_field(out, 3, id.as_bytes());
    }
    if in_stream {
        put_field(out, 4, FINAL_RESPONSE);
    }
    for output in outputs.iter() {
        put_tensor(out, output, rows.images);
    }
    for output in outputs.iter() {
        open_field(out, 6, output.bytes(rows.images));
        if output == Output::Digit {
            for digit in &found.digits[rows.first..rows.first + rows.images] {
                out.put_i64_le(i64::from(*digit));
            }
        } else {
            put_floats(out, found.rows(output, rows.first, rows.images));
        }
    }
}

/// A refusal within a stream, as its gRPC frame: the sentence, and a response that only says which request it is for.
pub fn put_refusal(out: &mut BytesMut, sentence: &str, id: &str) {
    let id_len = if id.is_empty() { 0 } else { field_len(id.len()) };
    let response = id_len + field_len(FINAL_RESPONSE.len());
    put_prefix(out, field_len(sentence.len()) + field_len(response));
    put_field(out, 1, sentence.as_bytes());
    open_field(out, 2, response);
    if !id.is_empty() {
        put_field(out, 3, id.as_bytes());
    }
    put_field(out, 4, FINAL_RESPONSE);
}

fn head_len(serves: &Serves, id: &str) -> usize {
    let id = if id.is_empty() { 0 } else { field_len(id.len()) };
    field_len(serves.name.len()) + field_len(serves.version.len()) + id
}

/// `shape`, packed: n, and the width where there is one.
fn shape_len(output: Output, images: usize) -> usize {
    varint_len(images) + if output == Output::Digit { 0 } else { varint_len(output.width()) }
}

fn tensor_len(output: Output, images: usize) -> usize {
    field_len(output.name().len()) + field_len(output.datatype().len()) + field_len(shape_len(output, images))
}

fn put_tensor(out: &mut BytesMut, output: Output, images: usize) {
    open_field(out, 5, tensor_len(output, images));
    put_field(out, 1, output.name().as_bytes());
    put_field(out, 2, output.datatype().as_bytes());
    open_field(out, 3, shape_len(output, images));
    put_varint(out, images);
    if output != Output::Digit {
        put_varint(out, output.width());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;

    fn serves() -> Serves {
        Serves { name: "digits".into(), version: "1".into(), max_batch_size: 16 }
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
        fn any_bytes_are_understood_within_their_bounds_or_left_to_python(
            bytes in prop::collection::vec(any::<u8>(), 0..2000),
            size in 1..500usize,
        ) {
            let mut message = Message::default();
            for piece in bytes.chunks(size) {
                message.push(Bytes::copy_from_slice(piece));
            }
            for asked in [predict(&message, &serves()), infer(&message, &serves(), false)].into_iter().flatten() {
                prop_assert_eq!(message.copied(asked.span).len(), asked.images * PIXELS);
            }
        }

        #[test]
        fn a_damaged_request_is_understood_within_its_bounds_or_left_to_python(
            at in 0..900usize, byte: u8, images in 1..3u8,
        ) {
            let mut bytes = infer_request(images).concat();
            let at = at % bytes.len();
            bytes[at] = byte;
            let message = Message::from(Bytes::from(bytes));
            if let Some(asked) = infer(&message, &serves(), false) {
                prop_assert_eq!(asked.span.len, asked.images * PIXELS);
                prop_assert!(asked.span.start + asked.span.len <= message.len());
            }
        }
    }

    #[test]
    fn fields_are_understood_in_any_order_and_once_each() {
        let fields = [field(1, &[7; PIXELS * 2]), field(3, b"1"), vec![tag(2, VARINT), 1]];
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
            let message = Message::from(Bytes::from(order.map(|i| fields[i].clone()).concat()));
            let asked = predict(&message, &serves()).unwrap();
            assert_eq!((asked.images, asked.form.hidden()), (2, true));
            assert_eq!(message.copied(asked.span), [7; PIXELS * 2]);
        }
        for twice in &fields {
            let message = Message::from(Bytes::from([fields.concat(), twice.clone()].concat()));
            assert!(predict(&message, &serves()).is_none());
        }
    }

    #[test]
    fn what_is_not_served_is_left_to_python() {
        let image = field(1, &[0; PIXELS]);
        for bytes in [
            Vec::new(),
            field(1, &[0; 783]),
            field(1, &vec![0; PIXELS * 17]),
            [image.clone(), field(3, b"2")].concat(),
            [image.clone(), field(4, b"")].concat(),
            [image, vec![tag(2, VARINT), 0x80, 0]].concat(),
        ] {
            assert!(predict(&Message::from(Bytes::from(bytes)), &serves()).is_none());
        }
    }

    #[test]
    fn outputs_are_those_asked_for_in_their_order() {
        let ask = |names: &[&str]| {
            let mut fields = infer_request(2);
            fields.extend(names.iter().map(|name| field(6, &field(1, name.as_bytes()))));
            infer(&Message::from(Bytes::from(fields.concat())), &serves(), false)
        };
        let names = |asked: Asked| match asked.form {
            Form::Tensors { outputs, .. } => outputs.iter().map(Output::name).collect::<Vec<_>>(),
            Form::Digits { .. } => Vec::new(),
        };
        assert_eq!(names(ask(&[]).unwrap()), ["activations", "digit", "layer1", "layer2"]);
        assert_eq!(names(ask(&["layer2", "digit"]).unwrap()), ["layer2", "digit"]);
        assert!(ask(&["softmax"]).is_none());
        assert!(ask(&["digit", "digit"]).is_none());
    }

    #[test]
    fn a_refusal_is_as_long_as_its_prefix_says() {
        for (sentence, id) in [("", ""), ("pixels: is empty", "a"), ("é", "b")] {
            let mut out = BytesMut::new();
            put_refusal(&mut out, sentence, id);
            let len = u32::from_be_bytes(out[1..PREFIX].try_into().unwrap());
            assert_eq!(out.len(), PREFIX + len as usize);
        }
    }

    #[test]
    fn a_reply_is_as_long_as_its_prefix_says() {
        let found = Predictions {
            digits: vec![3; 5],
            activations: vec![0.5; 50],
            layer1: vec![0.25; 80],
            layer2: vec![0.125; 80],
        };
        let serves = serves();
        for in_stream in [false, true] {
            for form in
                [Form::Digits { hidden: in_stream }, Form::Tensors { id: "a".into(), outputs: Outputs::ALL, in_stream }]
            {
                let mut out = BytesMut::new();
                put_reply(&mut out, &form, &found, Rows { first: 1, images: 3 }, &serves);
                let len = u32::from_be_bytes(out[1..PREFIX].try_into().unwrap());
                assert_eq!(out.len(), PREFIX + len as usize);
                let message = Message::from(out.split_off(PREFIX).freeze());
                let mut reader = message.reader();
                while !reader.is_done() {
                    reader.byte().unwrap();
                    reader.span().unwrap();
                }
            }
        }
    }
}
