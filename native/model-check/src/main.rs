//! Searches the crate with one mistake, named by the first argument. A process of its own, because a finding aborts it.

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
    fails_locked: queue::python_submits_while_an_expired_call_is_failed;
    expired_forgotten: queue::python_submits_while_an_expired_call_is_failed;
    limit_in_two_steps: queue::the_limit_holds_for_both_lanes;
    closed_unlocked: queue::all_are_answered_and_the_drain_ends;
    closed_silently: queue::all_are_answered_and_the_drain_ends;
    rest_kept: queue::large_calls_are_shared_with_the_io_thread;
    wrong_thread_woken: queue::two_io_threads_share_the_large_lane;
    models_mixed: queue::two_io_threads_share_a_run_of_one_model;
    closed_twice: budget::one_connection_is_closed_at_a_time;
    capacity_missed: budget::a_waiting_call_gets_its_capacity;
    charge_kept: budget::every_charge_is_released;
    written_unregistered: regions::nothing_is_written_after_unregister;
}

fn main() {
    let name = std::env::args().nth(1).expect("the mistake to search with");
    search(2, scenario(&name));
}
