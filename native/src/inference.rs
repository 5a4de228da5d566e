//! The types of inference: a request, the format of its reply, and the result of a run of the model.

use crate::message::Span;

/// Bytes of one image.
pub const PIXELS: usize = 784;
/// Units of a hidden layer.
pub const HIDDEN: usize = 16;
/// Digits that the model distinguishes.
pub const CLASSES: usize = 10;

/// An output of the model as a digit; `None` if it is out of range.
pub fn to_digit(output: i64) -> Option<u8> {
    u8::try_from(output).ok().filter(|digit| usize::from(*digit) < CLASSES)
}

/// Name and version of the model, and the most images in one message.
#[derive(Clone, Debug)]
pub struct ModelSpec {
    pub name: String,
    pub version: String,
    pub max_batch_size: usize,
}

impl ModelSpec {
    /// `None` if a request for `version` is not for this model. An empty version means any.
    pub fn check_version(&self, version: &str) -> Option<()> {
        (version.is_empty() || version == self.version).then_some(())
    }

    /// The images in so many bytes; `None` if they are not whole images, or too many.
    pub fn count_images(&self, bytes: usize) -> Option<usize> {
        let images = bytes / PIXELS;
        (bytes % PIXELS == 0 && images >= 1 && images <= self.max_batch_size).then_some(images)
    }
}

/// A valid request: its images, `images` times `PIXELS` bytes, and the reply's format.
#[derive(Debug)]
pub struct InferRequest {
    pub pixels: PixelSource,
    pub images: usize,
    pub format: ResponseFormat,
    /// Of the outputs that go into shared memory.
    pub placements: Vec<(OutputTensor, Placement)>,
}

/// The place of a request's pixels.
#[derive(Debug, PartialEq, Eq)]
pub enum PixelSource {
    Message(Span),
    Region(Placement),
}

/// The place of a tensor in shared memory, as the request names it: the bytes of a region from `offset` on.
#[derive(Debug, PartialEq, Eq)]
pub struct Placement {
    pub region: String,
    pub offset: u64,
    pub byte_size: u64,
}

/// How the reply is encoded.
#[derive(Debug)]
pub enum ResponseFormat {
    /// As a `digits.v1.PredictResponse`.
    Digits { hidden_layers: bool },
    /// As an `inference.ModelInferResponse`, in a `ModelStreamInferResponse` if `in_stream`.
    Tensors { id: String, outputs: OutputTensors, in_stream: bool },
}

/// Approximate bytes of a reply besides its arrays.
const PREDICT_OVERHEAD: usize = 64;
const TENSORS_OVERHEAD: usize = 256;

impl ResponseFormat {
    /// Approximate bytes of the reply for so many images.
    pub fn estimate_size(&self, images: usize) -> usize {
        match self {
            Self::Digits { hidden_layers } => {
                let floats = CLASSES + if *hidden_layers { 2 * HIDDEN } else { 0 };
                PREDICT_OVERHEAD + images * (1 + 4 * floats)
            }
            Self::Tensors { id, outputs, .. } => {
                TENSORS_OVERHEAD
                    + id.len()
                    + outputs.iter().map(|output| outputs.reply_len(output, images)).sum::<usize>()
            }
        }
    }

    /// The request's `id` field.
    pub fn id(&self) -> &str {
        match self {
            Self::Digits { .. } => "",
            Self::Tensors { id, .. } => id,
        }
    }

    pub fn needs_hidden_layers(&self) -> bool {
        match self {
            Self::Digits { hidden_layers } => *hidden_layers,
            Self::Tensors { outputs, .. } => {
                outputs.iter().any(|output| matches!(output, OutputTensor::Layer1 | OutputTensor::Layer2))
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputTensor {
    Activations,
    Digit,
    Layer1,
    Layer2,
}

impl OutputTensor {
    pub fn from_name(name: &str) -> Option<Self> {
        OutputTensors::ALL.iter().find(|output| output.name() == name)
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Activations => "activations",
            Self::Digit => "digit",
            Self::Layer1 => "layer1",
            Self::Layer2 => "layer2",
        }
    }

    pub const fn datatype(self) -> &'static str {
        if matches!(self, Self::Digit) {
            "INT64"
        } else {
            "FP32"
        }
    }

    /// Values for each image.
    pub const fn width(self) -> usize {
        match self {
            Self::Activations => CLASSES,
            Self::Digit => 1,
            Self::Layer1 | Self::Layer2 => HIDDEN,
        }
    }

    pub const fn byte_len(self, images: usize) -> usize {
        images * self.width() * if matches!(self, Self::Digit) { 8 } else { 4 }
    }
}

/// At most four output tensors, in the order requested.
#[derive(Clone, Copy, Debug)]
pub struct OutputTensors {
    list: [OutputTensor; 4],
    len: usize,
    /// By output: whether its values go into shared memory.
    is_placed: [bool; 4],
}

impl OutputTensors {
    pub const ALL: Self = Self {
        list: [OutputTensor::Activations, OutputTensor::Digit, OutputTensor::Layer1, OutputTensor::Layer2],
        len: 4,
        is_placed: [false; 4],
    };
    pub const NONE: Self = Self { len: 0, ..Self::ALL };

    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn iter(&self) -> impl Iterator<Item = OutputTensor> + '_ {
        self.list[..self.len].iter().copied()
    }

    /// `None` if the output is there already.
    pub fn push(&mut self, output: OutputTensor, is_placed: bool) -> Option<()> {
        if self.iter().any(|other| other == output) {
            return None;
        }
        self.list[self.len] = output;
        self.len += 1;
        self.is_placed[output as usize] = is_placed;
        Some(())
    }

    pub const fn is_placed(&self, output: OutputTensor) -> bool {
        self.is_placed[output as usize]
    }

    /// Bytes of an output's values in the reply.
    pub const fn reply_len(&self, output: OutputTensor, images: usize) -> usize {
        if self.is_placed(output) {
            0
        } else {
            output.byte_len(images)
        }
    }
}

/// The outputs of a run: one digit a byte, the layers row by row. The hidden layers are empty unless requested.
#[derive(Debug, Default)]
pub struct Predictions {
    pub digits: Vec<u8>,
    pub activations: Vec<f32>,
    pub layer1: Vec<f32>,
    pub layer2: Vec<f32>,
}

impl Predictions {
    /// Shortens the layers to as many rows as there are digits.
    pub fn truncate(&mut self) {
        let images = self.digits.len();
        self.activations.truncate(images * CLASSES);
        self.layer1.truncate(images * HIDDEN);
        self.layer2.truncate(images * HIDDEN);
    }

    /// The values of a layer for these rows.
    pub fn layer_rows(&self, output: OutputTensor, rows: Rows) -> &[f32] {
        let layer = match output {
            OutputTensor::Activations | OutputTensor::Digit => &self.activations,
            OutputTensor::Layer1 => &self.layer1,
            OutputTensor::Layer2 => &self.layer2,
        };
        let width = output.width();
        &layer[rows.first * width..(rows.first + rows.images) * width]
    }
}

/// The rows of the predictions that belong to one request.
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    pub first: usize,
    pub images: usize,
}
