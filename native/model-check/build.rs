//! Copies the modules in which threads meet out of `../src`: unchanged, and once more with each of the mistakes that the
//! search must find.

use std::path::Path;
use std::{env, fs};

/// Modules of the crate. The rest of a variant are stand-ins.
const REAL: [&str; 10] =
    ["budget", "call", "charges", "inline", "lane", "pixels", "queue", "regions", "responder", "response"];
const STAND_INS: [&str; 3] = ["python_host", "runner", "server_state"];
/// Modules that get `src/variant/*_search.rs` as a child, which can use their private items.
const SEARCHED: [&str; 3] = ["budget", "queue", "regions"];

struct Mistake {
    name: &'static str,
    module: &'static str,
    right: &'static str,
    wrong: &'static str,
}

const MISTAKES: [Mistake; 12] = [
    // A deadlock that once occurred: an expired request is failed, which calls Python, with the lane locked.
    Mistake {
        name: "fails_locked",
        module: "queue",
        right: "let dequeued = requests.dequeue(&mut requests.lock(), self.max_batch_size);\n        \
                self.release(dequeued).into_batch(metrics)",
        wrong: "let mut locked = requests.lock();\n        \
                let dequeued = requests.dequeue(&mut locked, self.max_batch_size);\n        \
                self.release(dequeued).into_batch(metrics)",
    },
    Mistake {
        name: "expired_forgotten",
        module: "lane",
        right: "entry.fail(CallError::DeadlineExceeded);",
        wrong: "drop(entry);",
    },
    Mistake {
        name: "limit_in_two_steps",
        module: "queue",
        right: "self.queued_images.fetch_update(Relaxed, Relaxed, |queued| {
            Some(queued + images).filter(|all| is_next || *all <= self.max_queued_images)
        })",
        wrong: "let queued = self.queued_images();
        if !is_next && queued + images > self.max_queued_images {
            return Err(queued);
        }
        Ok(self.queued_images.fetch_add(images, Relaxed))",
    },
    Mistake { name: "closed_unlocked", module: "queue", right: "let _requests = self.large.lock();", wrong: "" },
    Mistake { name: "closed_silently", module: "queue", right: "self.large_ready.notify_all();", wrong: "" },
    Mistake {
        name: "rest_kept",
        module: "queue",
        right: "if !requests.is_empty() {\n            self.large_ready.notify_one();\n        }\n        drop(requests);\n        \
                self.release(dequeued)",
        wrong: "drop(requests);\n        self.release(dequeued)",
    },
    Mistake {
        name: "wrong_thread_woken",
        module: "queue",
        right: "self.small[lane].ready.notify_one();",
        wrong: "self.small[0].ready.notify_one();",
    },
    Mistake {
        name: "models_mixed",
        module: "lane",
        right: "images + next.images <= max_images && first.model.is_same(&next.model)",
        wrong: "images + next.images <= max_images",
    },
    Mistake {
        name: "closed_twice",
        module: "budget",
        right: "let usages = self.usages();\n        if self.closing.load(Relaxed) > 0 {\n            return true;\n        }",
        wrong: "if self.closing.load(Relaxed) > 0 {\n            return true;\n        }\n        let usages = self.usages();",
    },
    Mistake {
        name: "capacity_missed",
        module: "budget",
        right: "notified.as_mut().enable();\n            if self.has_capacity(bytes) {\n                return;\n            }",
        wrong: "if self.has_capacity(bytes) {\n                return;\n            }",
    },
    Mistake {
        name: "written_unregistered",
        module: "regions",
        right: "let is_registered = self.region.is_registered.read().unwrap_or_else(PoisonError::into_inner);\n        \
                if !*is_registered {",
        wrong: "let is_registered = *self.region.is_registered.read().unwrap_or_else(PoisonError::into_inner);\n        \
                loom::thread::yield_now(); // loom changes threads at its own operations alone\n        \
                if !is_registered {",
    },
    Mistake {
        name: "charge_kept",
        module: "charges",
        right: "self.usage.remove_reply_bytes(self.bytes);\n    }\n}\n\n/// Bytes reserved",
        wrong: "}\n}\n\n/// Bytes reserved",
    },
];

fn main() {
    println!("cargo::rerun-if-changed=../src");
    println!("cargo::rerun-if-changed=src/variant");
    let mut out = variant("right", None);
    for mistake in &MISTAKES {
        out += &variant(mistake.name, Some(mistake));
    }
    let path = Path::new(&env::var("OUT_DIR").expect("set by cargo")).join("variants.rs");
    fs::write(path, out).expect("OUT_DIR is writable");
}

fn variant(name: &str, mistake: Option<&Mistake>) -> String {
    let mut out = format!("pub mod {name} {{\n");
    for module in REAL {
        let mut text = read(&format!("../src/{module}.rs"));
        if let Some(mistake) = mistake.filter(|mistake| mistake.module == module) {
            assert_eq!(text.matches(mistake.right).count(), 1, "{name}: not once in src/{module}.rs");
            text = text.replace(mistake.right, mistake.wrong);
        }
        if SEARCHED.contains(&module) {
            let search = read(&format!("src/variant/{module}_search.rs"));
            text += &format!("pub mod search {{\n{search}\n}}\n");
        }
        out += &nested(name, module, &text);
    }
    for module in STAND_INS {
        out += &nested(name, module, &read(&format!("src/variant/{module}.rs")));
    }
    out + "}\n"
}

/// A module of a variant; its paths to modules that each variant has lead to its own.
fn nested(variant: &str, module: &str, text: &str) -> String {
    let mut text: String = text.lines().filter(|line| !line.starts_with("//!")).flat_map(|line| [line, "\n"]).collect();
    for other in REAL.iter().chain(&STAND_INS) {
        text = text.replace(&format!("crate::{other}::"), &format!("crate::{variant}::{other}::"));
    }
    format!("pub mod {module} {{\n{text}}}\n")
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"))
}
