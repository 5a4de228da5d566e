//! The crate with one mistake each: the search finds it.

use std::process::Command;

fn check(mistake: &str, says: &str) {
    let searched = Command::new(env!("CARGO_BIN_EXE_digitserve-native-model-check"))
        .arg(mistake)
        .env("RUST_BACKTRACE", "0")
        .output()
        .expect("it was built beside");
    let told = String::from_utf8_lossy(&searched.stderr);
    assert!(!searched.status.success(), "{mistake}: nothing found");
    assert!(told.contains(says), "{mistake}: something else was found: {told}");
}

macro_rules! found {
    ($($mistake:ident: $says:literal;)*) => {
        $(
            #[test]
            fn $mistake() {
                check(stringify!($mistake), $says);
            }
        )*
    };
}

found! {
    told_locked: "deadlock";
    late_forgotten: "answered once";
    bound_in_two_steps: "at most 3 may";
    closed_unlocked: "deadlock";
    closed_silently: "deadlock";
    rest_kept: "deadlock";
    shed_twice: "one at a time";
    room_missed: "deadlock";
    held_after_drop: "of what is held";
}
