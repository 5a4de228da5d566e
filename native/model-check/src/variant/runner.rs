//! A run of the model: the interpreter is held before it and after it, as `session.run` lets go of it.

use bytes::BytesMut;

use crate::decode::{Predictions, Rows};
use crate::queue::Item;
use crate::prelude::{Py, Python};
use crate::responder::{Found, Trouble};

pub struct Runner {
    pub fails: bool,
}

impl Runner {
    pub fn run(&mut self, batch: Vec<Item>) {
        let images: usize = batch.iter().map(|item| item.images).sum();
        assert!(batch.iter().all(|item| std::sync::Arc::ptr_eq(&item.served, &batch[0].served)), "one model a batch");
        Python::attach(|_| ()); // the pixels are gathered
        if self.fails {
            // As `runner.rs` has it: with the interpreter held.
            return Python::attach(|py| {
                let error = Trouble::Failed(Py::new());
                for item in batch {
                    item.fail(error.duplicate(py));
                }
            });
        }
        Python::attach(|_| ()); // the arrays are read
        let predictions = Predictions {
            digits: vec![3; images],
            activations: vec![0.5; images * 10],
            layer1: vec![0.5; images * 16],
            layer2: vec![0.5; images * 16],
        };
        let found = Found { predictions, object: Some(Py::new()) };
        let (mut out, mut first) = (BytesMut::new(), 0);
        for item in batch {
            let rows = Rows { first, images: item.images };
            first += item.images;
            item.reply.answer(&item.served, &found, rows, &mut out);
        }
    }
}
