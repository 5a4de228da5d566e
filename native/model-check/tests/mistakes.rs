//! The search finds each single mistake in the crate.

use std::process::Command;

fn check(mistake: &str, expected: &str) {
    let output = Command::new(env!("CARGO_BIN_EXE_digitserve-native-model-check"))
        .arg(mistake)
        .env("RUST_BACKTRACE", "0")
        .output()
        .expect("cargo builds it");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{mistake}: nothing found");
    assert!(stderr.contains(expected), "{mistake}: something else was found: {stderr}");
}

macro_rules! found {
    ($($mistake:ident: $expected:literal;)*) => {
        $(
            #[test]
            fn $mistake() {
                check(stringify!($mistake), $expected);
            }
        )*
    };
}

found! {
    fails_locked: "deadlock";
    expired_forgotten: "answered once";
    limit_in_two_steps: "at most 3 may";
    closed_unlocked: "deadlock";
    closed_silently: "deadlock";
    rest_kept: "deadlock";
    wrong_thread_woken: "deadlock";
    models_mixed: "one model a batch";
    closed_twice: "one at a time";
    capacity_missed: "deadlock";
    charge_kept: "one charge";
    written_unregistered: "written after";
}
