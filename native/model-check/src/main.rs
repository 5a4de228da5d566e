//! Searches the crate with one mistake in it, the first argument: a process of its own, for it aborts where one is found.

use digitserve_native_model_check as variants;
use digitserve_native_model_check::search;

macro_rules! searches {
    ($($mistake:ident: $module:ident::$scenario:ident;)*) => {
        fn scenario(name: &str) -> fn() {
            match name {
                $(stringify!($mistake) => variants::$mistake::$module::search::$scenario,)*
                _ => panic!("no such mistake: {name}"),
            }
        }
    };
}

searches! {
    told_locked: queue::python_asks_while_a_late_call_is_told;
    late_forgotten: queue::python_asks_while_a_late_call_is_told;
    bound_in_two_steps: queue::the_bound_holds_for_both_lanes;
    closed_unlocked: queue::all_are_answered_and_the_drain_ends;
    closed_silently: queue::all_are_answered_and_the_drain_ends;
    rest_kept: queue::large_calls_are_shared_with_the_thread_that_reads;
    shed_twice: budget::one_connection_is_ended_at_a_time;
    room_missed: budget::who_waits_for_room_gets_it;
    held_after_drop: budget::all_that_is_held_is_given_back;
}

fn main() {
    let name = std::env::args().nth(1).expect("the mistake to search with");
    search(2, scenario(&name));
}
