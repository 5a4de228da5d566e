"""The adaptive batch size: a lone request runs at once, and a batch waits for as many requests as the last one had."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.batching.adaptive import (
    INITIAL_PROBE_INTERVAL,
    MAX_DELAY,
    MAX_INTERARRIVAL,
    MAX_PROBE_INTERVAL,
    MIN_DELAY,
    AdaptiveBatchSize,
)


def run_batch(batch_size: AdaptiveBatchSize, clients: int, interarrival: float = MAX_INTERARRIVAL / 2) -> bool:
    """Run one batch of clients that send their next request after each reply; return whether it timed out."""
    if batch_size.should_run_now():
        batch_size.record_batch(1, 0.0)
        return False
    requests = min(clients, batch_size.target)
    timed_out = requests < batch_size.target
    batch_size.record_batch(requests, batch_size.max_delay if timed_out else interarrival * requests)
    return timed_out


def test_a_single_client_waits_less_and_less_often() -> None:
    batch_size = AdaptiveBatchSize()
    waits = [i for i in range(20_000) if run_batch(batch_size, clients=1)]
    assert waits[0] == INITIAL_PROBE_INTERVAL
    assert waits[-1] - waits[-2] == MAX_PROBE_INTERVAL
    assert len(waits) < 25


def test_the_target_approaches_the_number_of_clients() -> None:
    batch_size = AdaptiveBatchSize()
    for _ in range(500):
        run_batch(batch_size, clients=32)
    assert 22 <= batch_size.target <= 33


def test_a_batch_waits_only_once_for_clients_that_left() -> None:
    batch_size = AdaptiveBatchSize()
    for _ in range(500):
        run_batch(batch_size, clients=32)
    assert run_batch(batch_size, clients=1)
    assert batch_size.should_run_now()


def test_few_clients_rarely_wait_for_more() -> None:
    batch_size = AdaptiveBatchSize()
    waits = [run_batch(batch_size, clients=4) for _ in range(10_000)]
    assert batch_size.target == 4
    assert sum(waits) < 30


def test_slow_requests_are_not_batched() -> None:
    batch_size = AdaptiveBatchSize()
    waits = 0
    for _ in range(10_000):
        waits += batch_size.target > 1
        run_batch(batch_size, clients=100, interarrival=4 * MAX_INTERARRIVAL)
    assert waits < 50


def test_whether_a_request_runs_now_depends_on_recorded_batches_alone() -> None:
    batch_size = AdaptiveBatchSize()
    assert all(batch_size.should_run_now() for _ in range(10 * MAX_PROBE_INTERVAL))


@given(st.lists(st.tuples(st.integers(0, 100), st.floats(0, 0.1)), max_size=300))
def test_the_target_and_the_delay_stay_within_bounds(batches: list[tuple[int, float]]) -> None:
    batch_size = AdaptiveBatchSize()
    for requests, seconds in batches:
        batch_size.record_batch(requests, seconds)
        assert batch_size.target >= 1
        assert MIN_DELAY <= batch_size.max_delay <= MAX_DELAY
