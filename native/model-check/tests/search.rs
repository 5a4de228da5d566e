//! The crate as it is: no schedule breaks it.

use digitserve_native_model_check::right::{budget, queue};
use digitserve_native_model_check::search;

macro_rules! searched {
    ($($module:ident, $preemptions:literal: $($scenario:ident)*;)*) => {
        $($(
            #[test]
            fn $scenario() {
                search($preemptions, $module::search::$scenario);
            }
        )*)*
    };
}

searched! {
    queue, 2:
        python_asks_while_a_late_call_is_told
        python_asks_while_a_late_large_call_is_told
        all_are_answered_and_the_drain_ends
        large_calls_are_shared_with_the_thread_that_reads
        the_bound_holds_for_both_lanes
        a_caller_who_leaves_is_counted_once
        a_failed_run_fails_its_callers
        a_replaced_model_is_freed_after_its_last_request;
    budget, 2:
        all_that_is_held_is_given_back
        who_waits_for_room_gets_it
        one_connection_is_ended_at_a_time
        who_leaves_while_it_is_ended_leaves_nothing;
}
