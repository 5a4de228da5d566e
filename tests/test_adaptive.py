"""Whether a gathering waits, and for how many: nobody who is alone, as many as came in pace before."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.batching.adaptive import FIRST_INTERVAL, LONGEST_INTERVAL, LONGEST_WAIT, PACE, SHORTEST_WAIT, Company


def gather(company: Company, present: int, pace: float = PACE / 2) -> bool:
    """One gathering among so many callers that ask again at once; whether it waited in vain."""
    if company.none_expected():
        return False
    came = min(present, company.expected)
    in_vain = came < company.expected
    company.came(came, company.patience if in_vain else pace * came)
    return in_vain


def test_a_caller_alone_waits_ever_more_seldom() -> None:
    company = Company()
    waits = [i for i in range(20_000) if gather(company, present=1)]
    assert waits[0] == FIRST_INTERVAL - 1
    assert waits[-1] - waits[-2] == LONGEST_INTERVAL - 1
    assert len(waits) < 25


def test_callers_that_keep_a_pace_are_expected_together() -> None:
    company = Company()
    for _ in range(500):
        gather(company, present=32)
    assert 22 <= company.expected <= 33


def test_company_that_has_gone_is_waited_for_once() -> None:
    company = Company()
    for _ in range(500):
        gather(company, present=32)
    assert gather(company, present=1)
    assert company.none_expected()


def test_few_callers_are_not_made_to_wait_for_more_again_and_again() -> None:
    company = Company()
    waits = [gather(company, present=4) for _ in range(10_000)]
    assert company.expected == 4
    assert sum(waits) < 30


def test_requests_that_come_slowly_are_not_brought_together() -> None:
    company = Company()
    waited = 0
    for _ in range(10_000):
        waited += company.expected > 1
        gather(company, present=100, pace=4 * PACE)
    assert waited < 50


@given(st.lists(st.tuples(st.integers(0, 100), st.floats(0, 0.1)), max_size=300))
def test_whatever_comes_one_is_expected_and_none_waits_long(gatherings: list[tuple[int, float]]) -> None:
    company = Company()
    for requests, seconds in gatherings:
        if not company.none_expected():
            company.came(requests, seconds)
        assert company.expected >= 1
        assert SHORTEST_WAIT <= company.patience <= LONGEST_WAIT
