//! A run of the model. The interpreter is held before it and after it, because `session.run` releases it.

use bytes::BytesMut;

use crate::call_error::CallError;
use crate::inference::{Predictions, Rows};
use crate::prelude::{Py, Python};
use crate::lane::Entry;
use crate::responder::BatchOutput;

pub struct Runner {
    pub fails: bool,
}

impl Runner {
    pub fn run(&mut self, batch: Vec<Entry>) {
        let images: usize = batch.iter().map(|entry| entry.images).sum();
        assert!(batch.iter().all(|entry| entry.model.is_same(&batch[0].model)), "one model a batch");
        Python::attach(|_| ()); // gathers the pixels
        if self.fails {
            // As in `runner.rs`: with the interpreter held.
            return Python::attach(|py| {
                let error = CallError::Exception(Py::new());
                for entry in batch {
                    entry.fail(error.clone_ref(py));
                }
            });
        }
        Python::attach(|_| ()); // reads the arrays
        let predictions = Predictions {
            digits: vec![3; images],
            activations: vec![0.5; images * 10],
            layer1: vec![0.5; images * 16],
            layer2: vec![0.5; images * 16],
        };
        let output = BatchOutput { predictions, object: Some(Py::new()) };
        let (mut buffer, mut first) = (BytesMut::new(), 0);
        for entry in batch {
            let rows = Rows { first, images: entry.images };
            first += entry.images;
            entry.responder.send(&entry.model, &output, rows, &mut buffer);
        }
    }
}
