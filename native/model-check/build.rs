//! Copies the modules that threads meet in out of `../src`: as they are, and once more with each of the mistakes that the
//! search has to find.

use std::path::Path;
use std::{env, fs};

/// From the crate; the rest of a variant is ours.
const REAL: [&str; 5] = ["budget", "inline", "queue", "responder", "model_version"];
const OURS: [&str; 2] = ["server_state", "runner"];
/// Those of which `src/variant/*_search.rs` is a child, which sees what is private.
const SEARCHED: [&str; 2] = ["budget", "queue"];

struct Mistake {
    name: &'static str,
    module: &'static str,
    right: &'static str,
    wrong: &'static str,
}

const MISTAKES: [Mistake; 9] = [
    // The deadlock that was once found by chance: Python is told of a late request with the lane locked.
    Mistake {
        name: "told_locked",
        module: "queue",
        right: "let taken = self.take(&mut lock(&self.small), self.max_batch_size);\n        taken.batch(model)",
        wrong: "let mut lane = lock(&self.small);\n        self.take(&mut lane, self.max_batch_size).batch(model)",
    },
    Mistake {
        name: "late_forgotten",
        module: "queue",
        right: "item.fail(Trouble::Late);",
        wrong: "drop(item);",
    },
    Mistake {
        name: "bound_in_two_steps",
        module: "queue",
        right: "self.images.fetch_update(Relaxed, Relaxed, |waiting| {
            Some(waiting + images).filter(|all| is_next || *all <= self.max_queued_images)
        })",
        wrong: "let waiting = self.images();
        if !is_next && waiting + images > self.max_queued_images {
            return Err(waiting);
        }
        Ok(self.images.fetch_add(images, Relaxed))",
    },
    Mistake { name: "closed_unlocked", module: "queue", right: "let _lane = lock(&self.large);", wrong: "" },
    Mistake { name: "closed_silently", module: "queue", right: "self.large_waits.notify_all();", wrong: "" },
    Mistake {
        name: "rest_kept",
        module: "queue",
        right: "if !lane.is_empty() {\n            self.large_waits.notify_one();\n        }",
        wrong: "",
    },
    Mistake {
        name: "shed_twice",
        module: "budget",
        right: "let usages = self.usages();\n        if self.ending.load(Relaxed) > 0 {\n            return true;\n        }",
        wrong: "if self.ending.load(Relaxed) > 0 {\n            return true;\n        }\n        let usages = self.usages();",
    },
    Mistake {
        name: "room_missed",
        module: "budget",
        right: "notified.as_mut().enable();\n            if self.has_room(bytes) {\n                return;\n            }",
        wrong: "if self.has_room(bytes) {\n                return;\n            }",
    },
    Mistake {
        name: "held_after_drop",
        module: "budget",
        right: "self.usage.release(self.bytes);\n    }\n}\n\n/// Room kept",
        wrong: "}\n}\n\n/// Room kept",
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
    fs::write(path, out).expect("the folder is cargo's");
}

fn variant(name: &str, mistake: Option<&Mistake>) -> String {
    let mut out = format!("pub mod {name} {{\n");
    for module in REAL {
        let mut text = read(&format!("../src/{module}.rs"));
        if let Some(mistake) = mistake.filter(|mistake| mistake.module == module) {
            assert_eq!(text.matches(mistake.right).count(), 1, "{name}: not found in src/{module}.rs, or twice");
            text = text.replace(mistake.right, mistake.wrong);
        }
        if SEARCHED.contains(&module) {
            let search = read(&format!("src/variant/{module}_search.rs"));
            text += &format!("pub mod search {{\n{search}\n}}\n");
        }
        out += &nested(name, module, &text);
    }
    for module in OURS {
        out += &nested(name, module, &read(&format!("src/variant/{module}.rs")));
    }
    out + "}\n"
}

/// A module within the variant's: what it says of modules that each variant has is said of its own.
fn nested(variant: &str, module: &str, text: &str) -> String {
    let mut text: String = text.lines().filter(|line| !line.starts_with("//!")).flat_map(|line| [line, "\n"]).collect();
    for other in REAL.iter().chain(&OURS) {
        text = text.replace(&format!("crate::{other}::"), &format!("crate::{variant}::{other}::"));
    }
    format!("pub mod {module} {{\n{text}}}\n")
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"))
}
