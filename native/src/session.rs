//! A session of ONNX Runtime on the CPU that runs without the interpreter.
//!
//! It has the options of the Python session of `service.inference.sessions`. Its input is floats: the copy out of the
//! message converts the pixels, in place of the graph's own conversion.

use std::ffi::{c_char, c_int, c_void, CStr};
use std::fmt;
use std::path::Path;
use std::ptr::null_mut;
use std::sync::{Mutex, PoisonError};

use crate::inference::{CLASSES, HIDDEN, PIXELS};
use crate::onnxruntime::{RawSession, Runtime, SessionOptions, Value, DEFAULT_RUN, LOG_ERRORS};

/// Images of one run at most: as floats they fill a part of a core's cache.
pub const MAX_RUN: usize = 128;

const INPUTS: [&CStr; 1] = [c"pixels"];
const OUTPUTS: [&CStr; 4] = [c"digit", c"activations", c"layer1", c"layer2"];
/// `ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT` and `_INT64`.
const FLOAT: c_int = 1;
const INT64: c_int = 7;

/// One library a process: it is loaded once, and never unloaded.
static RUNTIME: Mutex<Option<&'static Runtime>> = Mutex::new(None);

fn runtime(library: &Path) -> Result<&'static Runtime, String> {
    let mut runtime = RUNTIME.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(runtime) = *runtime {
        return Ok(runtime);
    }
    Ok(*runtime.insert(Box::leak(Box::new(Runtime::load(library)?))))
}

/// Safe to run on several threads at once.
pub struct Session {
    runtime: &'static Runtime,
    raw: *mut RawSession,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("version", &self.runtime.version).finish_non_exhaustive()
    }
}

// SAFETY: ONNX Runtime allows concurrent runs of a session, and its release on any thread.
#[allow(unsafe_code)]
unsafe impl Send for Session {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for Session {}

/// The arrays that a run writes, one row for each image. The hidden layers may be left out.
pub struct OutputRows<'a> {
    pub digits: &'a mut [i64],
    pub activations: &'a mut [f32],
    pub hidden_layers: Option<[&'a mut [f32]; 2]>,
}

impl Session {
    /// Loads a model whose input `pixels` is float; `library` is ONNX Runtime's.
    pub fn load(library: &Path, graph: &[u8]) -> Result<Self, String> {
        let runtime = runtime(library)?;
        let options = Options::new(runtime)?;
        let mut raw = null_mut();
        // SAFETY: the graph and the options live until the call returns; it keeps copies.
        #[allow(unsafe_code)]
        runtime.api.check(unsafe {
            let (data, len) = (graph.as_ptr().cast::<c_void>(), graph.len());
            (runtime.api.create_session_from_array)(runtime.env, data, len, options.raw, &raw mut raw)
        })?;
        Ok(Self { runtime, raw })
    }

    /// The version of the library.
    pub fn version(&self) -> &str {
        &self.runtime.version
    }

    /// Runs `pixels`, whole images; the outputs have a row for each.
    pub fn run(&self, pixels: &[f32], outputs: OutputRows<'_>) -> Result<(), String> {
        let images = outputs.digits.len();
        let OutputRows { digits, activations, hidden_layers } = outputs;
        let input = self.tensor(pixels.as_ptr().cast_mut().cast(), FLOAT, pixels.len(), images, Some(PIXELS))?;
        let mut values = Vec::with_capacity(OUTPUTS.len());
        values.push(self.tensor(digits.as_mut_ptr().cast(), INT64, digits.len(), images, None)?);
        values.push(self.tensor(activations.as_mut_ptr().cast(), FLOAT, activations.len(), images, Some(CLASSES))?);
        for layer in hidden_layers.into_iter().flatten() {
            values.push(self.tensor(layer.as_mut_ptr().cast(), FLOAT, layer.len(), images, Some(HIDDEN))?);
        }
        let mut raw_values = [null_mut(); OUTPUTS.len()];
        for (raw, value) in raw_values.iter_mut().zip(&values) {
            *raw = value.raw;
        }
        let (input_names, output_names) = (INPUTS.map(CStr::as_ptr), OUTPUTS.map(CStr::as_ptr));
        let (inputs, count) = ([input.raw.cast_const()], values.len());
        // SAFETY: the names are constant strings, and `count` of them and of the values are valid. The tensors are views of
        // slices borrowed until the end of this function: the input shared, the outputs exclusively.
        #[allow(unsafe_code)]
        self.runtime.api.check(unsafe {
            let (names, values) = (output_names.as_ptr(), raw_values.as_mut_ptr());
            (self.runtime.api.run)(
                self.raw,
                DEFAULT_RUN,
                input_names.as_ptr(),
                inputs.as_ptr(),
                1,
                names,
                count,
                values,
            )
        })
    }

    /// A tensor of `len` elements at `data`, (images, width) or (images).
    fn tensor(
        &self,
        data: *mut c_void,
        kind: c_int,
        len: usize,
        images: usize,
        width: Option<usize>,
    ) -> Result<Tensor, String> {
        if len != images * width.unwrap_or(1) {
            return Err(format!("tensor: {len} elements; expected {images} rows of {}", width.unwrap_or(1)));
        }
        #[allow(clippy::cast_possible_wrap)] // far below 2^63
        let shape = [images as i64, width.unwrap_or(1) as i64];
        let (dimensions, bytes) = (1 + usize::from(width.is_some()), len * if kind == INT64 { 8 } else { 4 });
        let mut raw = null_mut();
        // SAFETY: `data` has so many bytes, by the check above. The tensor refers to them, and is released before them.
        #[allow(unsafe_code)]
        self.runtime.api.check(unsafe {
            let api = self.runtime.api;
            (api.create_tensor)(self.runtime.cpu_memory, data, bytes, shape.as_ptr(), dimensions, kind, &raw mut raw)
        })?;
        Ok(Tensor { runtime: self.runtime, raw })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // SAFETY: no run is left, because a run borrows the session.
        #[allow(unsafe_code)]
        unsafe {
            (self.runtime.api.release_session)(self.raw);
        }
    }
}

/// A view of a slice.
struct Tensor {
    runtime: &'static Runtime,
    raw: *mut Value,
}

impl Drop for Tensor {
    fn drop(&mut self) {
        // SAFETY: it is released once, and no run uses it any more.
        #[allow(unsafe_code)]
        unsafe {
            (self.runtime.api.release_value)(self.raw);
        }
    }
}

/// One thread, no spinning, errors in results alone: `service.inference.sessions.session_options`.
struct Options {
    runtime: &'static Runtime,
    raw: *mut SessionOptions,
}

impl Options {
    fn new(runtime: &'static Runtime) -> Result<Self, String> {
        let (api, mut raw) = (runtime.api, null_mut());
        let (spinning, off): (*const c_char, _) = (c"session.intra_op.allow_spinning".as_ptr(), c"0".as_ptr());
        // SAFETY: the first call makes the options, which are this function's own; the strings are constant.
        #[allow(unsafe_code)]
        unsafe {
            api.check((api.create_session_options)(&raw mut raw))?;
            let options = Self { runtime, raw };
            api.check((api.set_log_severity)(raw, LOG_ERRORS))?;
            api.check((api.set_intra_op_threads)(raw, 1))?;
            api.check((api.set_inter_op_threads)(raw, 1))?;
            api.check((api.add_session_config)(raw, spinning, off))?;
            Ok(options)
        }
    }
}

impl Drop for Options {
    fn drop(&mut self) {
        // SAFETY: made in `new`, and released once.
        #[allow(unsafe_code)]
        unsafe {
            (self.runtime.api.release_session_options)(self.raw);
        }
    }
}
