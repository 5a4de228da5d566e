//! The C API of ONNX Runtime, loaded from the library that the Python package ships: the functions that a session needs.
//!
//! The functions stand at fixed places of one table. ONNX Runtime only appends to it, so that a table of `API_VERSION` is
//! a prefix of every later one. (`onnxruntime_c_api.h`, `struct OrtApi`.)
#![allow(unsafe_code)] // a C API; each call states why it is sound

use std::ffi::{c_char, c_int, c_void, CStr};
use std::path::Path;
use std::ptr::{null, null_mut};

use libloading::Library;

/// ONNX Runtime 1.17, the oldest that `pyproject.toml` allows.
const API_VERSION: u32 = 17;
/// `ORT_LOGGING_LEVEL_ERROR`.
pub const LOG_ERRORS: c_int = 3;

macro_rules! opaque {
    ($($name:ident)*) => { $(#[repr(C)] pub struct $name(c_void);)* };
}
opaque!(Env Status MemoryInfo RawSession Value SessionOptions RunOptions);

/// A function of the table that is not used here.
type Unused = unsafe extern "C" fn();
type Checked = *mut Status;

#[repr(C)]
struct ApiBase {
    get_api: unsafe extern "C" fn(u32) -> *const Api,
    get_version_string: unsafe extern "C" fn() -> *const c_char,
}

/// The table's prefix, with the place of each function.
#[repr(C)]
pub struct Api {
    _0: [Unused; 2],
    get_error_message: unsafe extern "C" fn(*const Status) -> *const c_char, // 2
    create_env: unsafe extern "C" fn(c_int, *const c_char, *mut *mut Env) -> Checked,
    _4: [Unused; 2],
    disable_telemetry: unsafe extern "C" fn(*const Env) -> Checked, // 6
    _7: Unused,
    pub create_session_from_array:
        unsafe extern "C" fn(*const Env, *const c_void, usize, *const SessionOptions, *mut *mut RawSession) -> Checked, // 8
    pub run: unsafe extern "C" fn(
        *mut RawSession,
        *const RunOptions,
        *const *const c_char,
        *const *const Value,
        usize,
        *const *const c_char,
        usize,
        *mut *mut Value,
    ) -> Checked, // 9
    pub create_session_options: unsafe extern "C" fn(*mut *mut SessionOptions) -> Checked, // 10
    _11: [Unused; 11],
    pub set_log_severity: unsafe extern "C" fn(*mut SessionOptions, c_int) -> Checked, // 22
    _23: Unused,
    pub set_intra_op_threads: unsafe extern "C" fn(*mut SessionOptions, c_int) -> Checked, // 24
    pub set_inter_op_threads: unsafe extern "C" fn(*mut SessionOptions, c_int) -> Checked, // 25
    _26: [Unused; 23],
    pub create_tensor: unsafe extern "C" fn(
        *const MemoryInfo,
        *mut c_void,
        usize,
        *const i64,
        usize,
        c_int,
        *mut *mut Value,
    ) -> Checked, // 49
    _50: [Unused; 19],
    create_cpu_memory_info: unsafe extern "C" fn(c_int, c_int, *mut *mut MemoryInfo) -> Checked, // 69
    _70: [Unused; 23],
    release_status: unsafe extern "C" fn(*mut Status), // 93
    _94: Unused,
    pub release_session: unsafe extern "C" fn(*mut RawSession), // 95
    pub release_value: unsafe extern "C" fn(*mut Value),        // 96
    _97: [Unused; 3],
    pub release_session_options: unsafe extern "C" fn(*mut SessionOptions), // 100
    _101: [Unused; 29],
    pub add_session_config: unsafe extern "C" fn(*mut SessionOptions, *const c_char, *const c_char) -> Checked, // 130
}

/// The loaded library with its environment, for the rest of the process.
pub struct Runtime {
    pub api: &'static Api,
    pub env: *const Env,
    pub cpu_memory: *const MemoryInfo,
    pub version: String,
}

// SAFETY: the table and its strings are constant, and ONNX Runtime locks its environment itself.
unsafe impl Send for Runtime {}
// SAFETY: as above.
unsafe impl Sync for Runtime {}

impl Runtime {
    /// Loads the library at `path`; the error contains the reason.
    pub fn load(path: &Path) -> Result<Self, String> {
        // SAFETY: the initialisers of ONNX Runtime's library have no requirements, and the symbol has this type in every
        // version of it.
        let base = unsafe {
            let library = Box::leak(Box::new(Library::new(path).map_err(|error| error.to_string())?));
            let symbol = library.get::<unsafe extern "C" fn() -> *const ApiBase>(b"OrtGetApiBase\0");
            symbol.map_err(|error| error.to_string())?().as_ref()
        };
        let base = base.ok_or("OrtGetApiBase: is null")?;
        // SAFETY: both are constant for the life of the library, which is never unloaded. The table is null if the
        // version is not supported.
        let (api, version) =
            unsafe { ((base.get_api)(API_VERSION).as_ref(), CStr::from_ptr((base.get_version_string)())) };
        let version = version.to_string_lossy().into_owned();
        let api = api.ok_or_else(|| format!("ONNX Runtime {version}: has no API {API_VERSION}"))?;
        let (mut env, mut cpu_memory) = (null_mut(), null_mut());
        // SAFETY: the strings are constant, and each pointer receives an object that is never released.
        unsafe {
            api.check((api.create_env)(LOG_ERRORS, c"digitserve".as_ptr(), &raw mut env))?;
            api.check((api.disable_telemetry)(env))?;
            // The allocator of the device, with the default type of memory.
            api.check((api.create_cpu_memory_info)(0, 0, &raw mut cpu_memory))?;
        }
        Ok(Self { api, env, cpu_memory, version })
    }
}

impl Api {
    /// Turns a status, which it releases, into a result with the error's message.
    pub fn check(&self, status: Checked) -> Result<(), String> {
        if status.is_null() {
            return Ok(());
        }
        // SAFETY: a status that is not null belongs to this function until its release.
        unsafe {
            let message = CStr::from_ptr((self.get_error_message)(status)).to_string_lossy().into_owned();
            (self.release_status)(status);
            Err(message)
        }
    }
}

/// No options: the defaults of a run.
pub const DEFAULT_RUN: *const RunOptions = null();

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    /// The places in `struct OrtApi` of `onnxruntime_c_api.h`.
    #[test]
    fn each_function_is_at_its_place() {
        let places = [
            (offset_of!(Api, get_error_message), 2),
            (offset_of!(Api, create_env), 3),
            (offset_of!(Api, disable_telemetry), 6),
            (offset_of!(Api, create_session_from_array), 8),
            (offset_of!(Api, run), 9),
            (offset_of!(Api, create_session_options), 10),
            (offset_of!(Api, set_log_severity), 22),
            (offset_of!(Api, set_intra_op_threads), 24),
            (offset_of!(Api, set_inter_op_threads), 25),
            (offset_of!(Api, create_tensor), 49),
            (offset_of!(Api, create_cpu_memory_info), 69),
            (offset_of!(Api, release_status), 93),
            (offset_of!(Api, release_session), 95),
            (offset_of!(Api, release_value), 96),
            (offset_of!(Api, release_session_options), 100),
            (offset_of!(Api, add_session_config), 130),
        ];
        for (offset, place) in places {
            assert_eq!(offset, place * size_of::<Unused>());
        }
    }

    #[test]
    fn a_file_that_is_no_library_is_an_error() {
        for path in ["/nonexistent/libonnxruntime.so", "/dev/null"] {
            assert!(Runtime::load(Path::new(path)).is_err());
        }
    }
}
