"""The simulation of balancing, compared with queueing theory and with measurements behind Envoy."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from bench.balancing import Outage, Outcome, Simulation, SimulationConfig

LONG = {"service": 1.0, "seconds": 200_000.0, "warm_up": 2_000.0}

pytestmark = pytest.mark.slow  # simulations of a million calls


def run(**config: Any) -> Outcome:
    return Simulation(SimulationConfig(**config)).run()


@pytest.mark.parametrize("load", [0.3, 0.7, 0.85])
def test_one_replica_has_the_waiting_time_of_m_m_1(load: float) -> None:
    outcome = run(replicas=1, policy="round_robin", rate=load, **LONG)
    assert outcome.took.mean() - 1 == pytest.approx(load / (1 - load), rel=0.08)
    # The time in the system is exponentially distributed, so its quantiles are known too.
    assert np.quantile(outcome.took, 0.99) == pytest.approx(np.log(100) / (1 - load), rel=0.1)


@pytest.mark.parametrize("load", [0.3, 0.7, 0.85])
def test_calls_of_equal_duration_have_the_waiting_time_of_m_d_1(load: float) -> None:
    outcome = run(replicas=1, policy="round_robin", rate=load, fixed=True, **LONG)
    assert outcome.took.mean() - 1 == pytest.approx(load / (1 - load) / 2, rel=0.08)


def test_clients_with_one_connection_each_give_every_replica_its_own_queue() -> None:
    outcome = run(
        replicas=4, policy="pick_first", clients=4000, rate=2.4, service=1.0, seconds=60_000.0, warm_up=2_000.0
    )
    assert outcome.took.mean() == pytest.approx(1 / (1 - 0.6), rel=0.08), "M/M/1 for each of 4 replicas"


def test_least_request_has_the_waiting_time_of_the_power_of_two_choices() -> None:
    load = 0.9
    outcome = run(replicas=100, policy="least_request", rate=100 * load, service=1.0, seconds=2_000.0, warm_up=300.0)
    # Mitzenmacher, 2001: the share of replicas with i calls or more is load ** (2 ** i - 1), for many replicas.
    in_system = sum(load ** (2**i - 1) for i in range(1, 12))
    assert outcome.mean_in_system / 100 == pytest.approx(in_system, rel=0.06)
    assert outcome.took.mean() == pytest.approx(in_system / load, rel=0.06)


def test_round_robin_waits_less_than_random_and_more_than_one_queue() -> None:
    config = {"replicas": 4, "rate": 2.8, "service": 1.0, "seconds": 40_000.0, "warm_up": 1_000.0}
    turns = run(policy="round_robin", **config).took.mean()
    chance = run(policy="pick_first", clients=4000, **config).took.mean()
    # Erlang's C for four servers at a load of 0.7: the probability that a call waits, and the mean wait of those calls.
    offered = 2.8
    terms = [offered**k / np.prod(range(1, k + 1)) for k in range(5)]
    waits = terms[4] / 0.3 / (sum(terms[:4]) + terms[4] / 0.3)
    one_line = 1 + waits / (4 - offered)
    assert one_line < turns < chance


@given(
    policy=st.sampled_from(["pick_first", "round_robin", "least_request"]),
    replicas=st.integers(2, 5),
    clients=st.integers(1, 6),
    concurrency=st.integers(0, 12),
    age=st.sampled_from([0.5, 3.0, float("inf")]),
    seed=st.integers(0, 1000),
)
def test_the_laws_of_queueing_hold(
    policy: Any, replicas: int, clients: int, concurrency: int, age: float, seed: int
) -> None:
    config = {
        "policy": policy,
        "replicas": replicas,
        "clients": clients,
        "age": age,
        "seed": seed,
        "service": 0.02,
        "concurrency": concurrency,
        "rate": 0.0 if concurrency else 30.0,
        "seconds": 8.0,
        "resolves": 1.0,
        "outages": (Outage(replica=0, begin=2.0, end=4.0),),
    }
    outcome = run(**config)
    assert outcome.shares.sum() == pytest.approx(1)
    assert outcome.took.min() > 0
    assert outcome.arrivals.min() >= 0
    # A replica answers calls in sequence, so at most 1 / 0.02 calls/s on average, and Little's law holds.
    assert outcome.rate <= 1.6 * replicas / 0.02
    assert outcome.rate * outcome.took.mean() == pytest.approx(outcome.mean_in_system, rel=0.35, abs=0.3)
    if concurrency:
        assert outcome.mean_in_system == pytest.approx(concurrency)
    during = (outcome.arrivals > 2.0) & (outcome.arrivals < 4.0)
    assert not (outcome.replica[during] == 0).any(), "a draining replica receives no call"
    again = run(**config)
    assert (outcome.took == again.took).all(), "the same seed, the same run"


def test_a_simulation_without_a_running_replica_is_rejected() -> None:
    with pytest.raises(ValueError, match="no replica is up at 1 s"):
        run(
            replicas=1,
            policy="round_robin",
            service=0.1,
            rate=1.0,
            seconds=5.0,
            outages=(Outage(replica=0, begin=1.0, end=2.0),),
        )


# Measured by tests/e2e/stack.py behind Envoy: 48 clients and one to three replicas with 0.3 of a core each.


def behind_envoy(replicas: int, policy: str = "least_request", concurrency: int = 48, seed: int = 0) -> Outcome:
    return run(
        replicas=replicas,
        policy=policy,
        concurrency=concurrency,
        seed=seed,
        service=1 / 470,
        seconds=9.0,
        warm_up=1.0,
    )


def test_replicas_behind_envoy_reach_the_measured_rates() -> None:
    measured = {1: 470, 2: 1009, 3: 1462}
    for replicas, rate in measured.items():
        assert behind_envoy(replicas).rate == pytest.approx(rate, rel=0.1)


def test_envoy_gives_each_of_three_replicas_a_third_of_the_calls() -> None:
    spread = [behind_envoy(3, concurrency=24, seed=seed).shares for seed in range(10)]
    assert all(0.30 < share < 0.37 for shares in spread for share in shares)
    (all_to_one,) = {max(behind_envoy(3, "pick_first", concurrency=24).shares)}
    assert all_to_one == 1, "without Envoy one connection is one replica"


def test_a_new_replica_gets_its_share_at_the_maximum_connection_age() -> None:
    config = {
        "replicas": 4,
        "clients": 60,
        "rate": 100.0,
        "service": 0.01,
        "seconds": 300.0,
        "outages": (Outage(replica=3, begin=0.0, end=60.0),),
    }

    def share(policy: Any, begin: float, end: float, **more: Any) -> float:
        outcome = run(policy=policy, **config, **more)
        during = (outcome.arrivals > begin) & (outcome.arrivals < end)
        return float((outcome.replica[during] == 3).mean())

    assert share("pick_first", 70, 300) == share("round_robin", 70, 300) == 0
    assert share("pick_first", 200, 300, age=60.0) == pytest.approx(0.25, abs=0.08)
    assert share("round_robin", 140, 300, age=60.0) == pytest.approx(0.25, abs=0.02)
    assert share("round_robin", 63, 300, resolves=1.0) == pytest.approx(0.25, abs=0.02)


@pytest.mark.slow
def test_the_tables_of_the_docs_match_the_simulation() -> None:
    done = subprocess.run(
        [sys.executable, "bench/balancing_report.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
