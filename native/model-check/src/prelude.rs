//! The stand-in of PyO3: the interpreter as one reentrant lock, and objects that record their method calls.

use std::cell::Cell;
use std::sync::{Arc, Mutex as Unsearched, PoisonError};

use loom::sync::{Mutex, MutexGuard};

loom::lazy_static! {
    static ref INTERPRETER: Mutex<()> = Mutex::new(());
}

loom::thread_local! {
    static IS_ATTACHED: Cell<bool> = Cell::new(false);
}

/// A token: this thread holds the interpreter.
#[derive(Clone, Copy)]
pub struct Python<'py>(#[allow(dead_code)] &'py ());

impl Python<'_> {
    pub fn attach<T>(f: impl FnOnce(Python<'_>) -> T) -> T {
        if IS_ATTACHED.with(Cell::get) {
            return f(Python(&()));
        }
        let guard: MutexGuard<'_, ()> = INTERPRETER.lock().unwrap_or_else(PoisonError::into_inner);
        IS_ATTACHED.with(|is| is.set(true));
        let result = f(Python(&()));
        IS_ATTACHED.with(|is| is.set(false));
        drop(guard);
        result
    }
}

/// An object that records the names of the methods called.
#[derive(Debug, Default)]
pub struct PyAny(Unsearched<Vec<String>>);

#[derive(Debug)]
pub struct Py<T>(Arc<T>);

#[derive(Debug)]
pub struct PyErr;

pub type PyResult<T> = Result<T, PyErr>;

pub struct Bound<'py, T>(Py<T>, Python<'py>);

impl Py<PyAny> {
    pub fn new() -> Self {
        Self(Arc::default())
    }

    pub fn clone_ref(&self, _: Python<'_>) -> Self {
        Self(self.0.clone())
    }

    pub fn bind<'py>(&self, py: Python<'py>) -> Bound<'py, PyAny> {
        Bound(self.clone_ref(py), py)
    }

    pub fn call_method0(&self, _: Python<'_>, name: &str) -> PyResult<Self> {
        self.0 .0.lock().expect("no test panics in it").push(name.to_owned());
        Ok(Self::new())
    }

    pub fn call_method1<A>(&self, py: Python<'_>, name: &str, _: A) -> PyResult<Self> {
        self.call_method0(py, name)
    }

    pub fn into_any(self) -> Self {
        self
    }

    pub fn as_ptr(&self) -> *const PyAny {
        Arc::as_ptr(&self.0)
    }

    /// The methods called so far.
    pub fn calls(&self) -> Vec<String> {
        self.0 .0.lock().expect("no test panics in it").clone()
    }

    /// The number of references.
    pub fn holders(&self) -> usize {
        Arc::strong_count(&self.0)
    }
}

impl Default for Py<PyAny> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'py> Bound<'py, PyAny> {
    pub fn call_method1<A>(&self, name: &str, arguments: A) -> PyResult<Bound<'py, PyAny>> {
        Ok(Bound(self.0.call_method1(self.1, name, arguments)?, self.1))
    }
}

impl PyErr {
    pub fn into_value(self, _: Python<'_>) -> Py<PyAny> {
        Py::new()
    }

    #[allow(clippy::unused_self)]
    pub fn print(&self, _: Python<'_>) {}
}
