//! A run of the model without the interpreter: gathers a batch as floats, in parts that stay in a core's cache.

use crate::inference::{to_digit, Predictions, CLASSES, HIDDEN, PIXELS};
use crate::lane::Entry;
use crate::message::Span;
use crate::pixels::Pixels;
use crate::region_error::RegionError;
use crate::regions::RegionSlice;
use crate::session::{OutputRows, Session, MAX_RUN};

/// The images of one run at most, reused by all runs of a thread.
pub struct FloatBatch {
    pixels: Vec<f32>,
    /// The elements of `pixels` that the next run has so far.
    filled: usize,
    digits: Vec<i64>,
    /// Bytes of shared memory, before they are converted; empty until they are needed.
    bytes: Vec<u8>,
}

/// An entry of the batch that could not be read, by its index; it has no predictions.
pub type Unread = (usize, RegionError);

/// Why an entry is not added to the batch.
enum AddError {
    /// Its pixels cannot be read.
    Region(RegionError),
    /// The run of a part failed.
    Run(String),
}

impl FloatBatch {
    pub fn new() -> Self {
        Self { pixels: vec![0.0; MAX_RUN * PIXELS], filled: 0, digits: vec![0; MAX_RUN], bytes: Vec::new() }
    }

    /// Runs the batch, `images` in all, except for its unread entries; the error is ONNX Runtime's.
    pub fn predict(
        &mut self,
        session: &Session,
        batch: &[Entry],
        images: usize,
        with_hidden_layers: bool,
    ) -> Result<(Predictions, Vec<Unread>), String> {
        let hidden = if with_hidden_layers { images * HIDDEN } else { 0 };
        let mut predictions = Predictions {
            digits: Vec::with_capacity(images),
            activations: vec![0.0; images * CLASSES],
            layer1: vec![0.0; hidden],
            layer2: vec![0.0; hidden],
        };
        let mut unread = Vec::new();
        self.filled = 0;
        for (at, entry) in batch.iter().enumerate() {
            let first = predictions.digits.len() + self.filled / PIXELS;
            match self.add(session, &entry.pixels, &mut predictions) {
                Ok(()) => {}
                Err(AddError::Run(error)) => return Err(error),
                Err(AddError::Region(error)) => {
                    unread.push((at, error));
                    self.rewind(first, &mut predictions);
                }
            }
        }
        self.run(session, &mut predictions)?;
        predictions.truncate();
        Ok((predictions, unread))
    }

    /// Adds the pixels of one entry, and runs each part that is full.
    fn add(&mut self, session: &Session, pixels: &Pixels, predictions: &mut Predictions) -> Result<(), AddError> {
        let (mut start, len) = (0, pixels.len());
        while start < len {
            let part = (len - start).min(self.pixels.len() - self.filled);
            match pixels {
                Pixels::Message(message, span) => {
                    for slice in message.slices(Span { start: span.start + start, len: part }) {
                        convert(slice, &mut self.pixels[self.filled..self.filled + slice.len()]);
                        self.filled += slice.len();
                    }
                }
                Pixels::Region(slice) => self.read(slice, start, part).map_err(AddError::Region)?,
            }
            start += part;
            if self.filled == self.pixels.len() {
                self.run(session, predictions).map_err(AddError::Run)?;
            }
        }
        Ok(())
    }

    /// Reads `len` bytes of shared memory from `start` on.
    fn read(&mut self, slice: &RegionSlice, start: usize, len: usize) -> Result<(), RegionError> {
        self.bytes.resize(self.pixels.len(), 0);
        let bytes = &mut self.bytes[..len];
        slice.read(start, bytes)?;
        convert(bytes, &mut self.pixels[self.filled..self.filled + len]);
        self.filled += len;
        Ok(())
    }

    /// Forgets all images from `first` on, which are those of one entry. If a part of them has run, all before have.
    fn rewind(&mut self, first: usize, predictions: &mut Predictions) {
        let done = predictions.digits.len();
        predictions.digits.truncate(first);
        self.filled = first.saturating_sub(done) * PIXELS;
    }

    /// Runs the images so far; adds their predictions to those of earlier parts.
    fn run(&mut self, session: &Session, predictions: &mut Predictions) -> Result<(), String> {
        let images = self.filled / PIXELS;
        if images == 0 {
            return Ok(());
        }
        let first = predictions.digits.len();
        let Predictions { digits, activations, layer1, layer2 } = predictions;
        let hidden = first * HIDDEN..(first + images) * HIDDEN;
        let layers = (!layer1.is_empty()).then(|| [&mut layer1[hidden.clone()], &mut layer2[hidden]]);
        let outputs = OutputRows {
            digits: &mut self.digits[..images],
            activations: &mut activations[first * CLASSES..(first + images) * CLASSES],
            hidden_layers: layers,
        };
        session.run(&self.pixels[..images * PIXELS], outputs)?;
        for digit in &self.digits[..images] {
            digits.push(to_digit(*digit).ok_or("digit: out of range; expected 0 to 9")?);
        }
        self.filled = 0;
        Ok(())
    }
}

/// Converts bytes to floats, exactly.
fn convert(bytes: &[u8], out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has the feature.
        #[allow(unsafe_code)]
        return unsafe { convert_avx2(bytes, out) };
    }
    convert_scalar(bytes, out);
}

/// The same code, compiled for vectors of 8 floats: twice as fast as with the 4 that every x86-64 has.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
#[allow(unsafe_code)]
unsafe fn convert_avx2(bytes: &[u8], out: &mut [f32]) {
    convert_scalar(bytes, out);
}

#[inline(always)]
#[allow(clippy::inline_always)] // so that it is compiled with the features of its caller
fn convert_scalar(bytes: &[u8], out: &mut [f32]) {
    for (out, byte) in out.iter_mut().zip(bytes) {
        *out = f32::from(*byte);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_any_length_are_converted_exactly() {
        let bytes: Vec<u8> = (0..=255).cycle().take(784).collect();
        for len in [0, 1, 7, 8, 9, 255, 784] {
            let mut out = vec![-1.0; len + 1];
            convert(&bytes[..len], &mut out[..len]);
            let expected: Vec<f32> = bytes[..len].iter().map(|byte| f32::from(*byte)).chain([-1.0]).collect();
            assert_eq!(out, expected);
        }
    }
}
