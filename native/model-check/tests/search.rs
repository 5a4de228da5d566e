//! The unchanged crate: no schedule fails.

use digitserve_native_model_check::right::{budget, queue, regions};
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
        python_submits_while_an_expired_call_is_failed
        python_submits_while_an_expired_large_call_is_failed
        all_are_answered_and_the_drain_ends
        large_calls_are_shared_with_the_io_thread
        the_limit_holds_for_both_lanes
        the_limit_holds_for_two_io_threads
        two_io_threads_share_the_large_lane
        two_io_threads_and_two_model_threads_end_with_the_drain
        two_io_threads_share_a_run_of_one_model
        a_cancelled_call_is_counted_once
        a_failed_run_fails_its_requests
        a_replaced_model_is_freed_after_its_last_request;
    budget, 2:
        every_charge_is_released
        a_waiting_call_gets_its_capacity
        one_connection_is_closed_at_a_time
        a_connection_that_ends_while_it_is_closed_is_not_counted;
    regions, 2:
        nothing_is_written_after_unregister;
}
