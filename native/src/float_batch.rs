//! A run of the model without the interpreter: gathers a batch as floats, in parts that stay in a core's cache.

use crate::inference::{to_digit, Predictions, CLASSES, HIDDEN, PIXELS};
use crate::lane::Entry;
use crate::message::Span;
use crate::session::{OutputRows, Session, MAX_RUN};

/// The images of one run at most, reused by all runs of a thread.
pub struct FloatBatch {
    pixels: Vec<f32>,
    digits: Vec<i64>,
}

impl FloatBatch {
    pub fn new() -> Self {
        Self { pixels: vec![0.0; MAX_RUN * PIXELS], digits: vec![0; MAX_RUN] }
    }

    /// Runs the batch, `images` in all; the error is ONNX Runtime's.
    pub fn predict(
        &mut self,
        session: &Session,
        batch: &[Entry],
        images: usize,
        with_hidden_layers: bool,
    ) -> Result<Predictions, String> {
        let hidden = if with_hidden_layers { images * HIDDEN } else { 0 };
        let mut predictions = Predictions {
            digits: Vec::with_capacity(images),
            activations: vec![0.0; images * CLASSES],
            layer1: vec![0.0; hidden],
            layer2: vec![0.0; hidden],
        };
        let mut filled = 0;
        for entry in batch {
            let Span { mut start, mut len } = entry.pixels;
            while len > 0 {
                let part = Span { start, len: len.min(self.pixels.len() - filled) };
                for slice in entry.message.slices(part) {
                    convert(slice, &mut self.pixels[filled..filled + slice.len()]);
                    filled += slice.len();
                }
                (start, len) = (start + part.len, len - part.len);
                if filled == self.pixels.len() {
                    self.run(session, filled / PIXELS, &mut predictions)?;
                    filled = 0;
                }
            }
        }
        if filled > 0 {
            self.run(session, filled / PIXELS, &mut predictions)?;
        }
        Ok(predictions)
    }

    /// Runs the first `images` images; adds their predictions to those of earlier parts.
    fn run(&mut self, session: &Session, images: usize, predictions: &mut Predictions) -> Result<(), String> {
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
