"""The tables of balancing in docs/scaling.md: the simulation and the measurement, three policies, and a picture.

    python bench/balancing_report.py [--plot docs/images/balancing.png] [--check]

With --check it has no output, and ends with status 1 if docs/scaling.md lacks a table.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.balancing import Outage, Outcome, Policy, Simulation, SimulationConfig

DOC = Path(__file__).parent.parent / "docs" / "scaling.md"
MEASURED = {1: 470, 2: 1009, 3: 1462}
"""Calls/s by replicas of three tenths of a core behind Envoy, 48 clients; printed by tests/e2e/stack.py."""
MEASURED_SHARES = (32.1, 33.9, 34.0)
"""Percent of the calls of 24 clients over one connection to Envoy, by replica; from the same run."""
WAYS: dict[str, tuple[Policy, int]] = {
    "each keeps one connection": ("pick_first", 48),
    "each takes turns": ("round_robin", 48),
    "each takes the less busy of two": ("least_request", 48),
    "one Envoy takes the less busy of two": ("least_request", 1),
}
"""For 48 programs: the policy of each, and the number of their clients."""


def run(**values: Any) -> Outcome:
    """One config."""
    return Simulation(SimulationConfig(**values)).run()


def beside_measured() -> list[str]:
    """The simulation against Envoy and one to three replicas. A replica's speed is the first measurement."""
    lines = [
        "| replicas | measured, calls/s | times one | simulated, calls/s | times one |",
        "|---|---|---|---|---|",
    ]
    config = {"service": 1 / MEASURED[1], "policy": "least_request", "seconds": 31.0, "warm_up": 1.0}
    rates = {n: run(replicas=n, concurrency=48, **config).rate for n in MEASURED}
    lines += [
        f"| {n} | {MEASURED[n]:,} | {MEASURED[n] / MEASURED[1]:.2f} | {rates[n]:,.0f} | {rates[n] / rates[1]:.2f} |"
        for n in MEASURED
    ]
    config["seconds"] = 11.0
    shares = [sorted(run(replicas=3, concurrency=24, seed=seed, **config).shares * 100) for seed in range(20)]
    low, _, high = np.mean(shares, axis=0)
    one = run(replicas=3, concurrency=24, **{**config, "policy": "pick_first"}).shares * 100
    lines += [
        "",
        "| shares of three replicas | smallest | largest |",
        "|---|---|---|",
        f"| measured behind Envoy | {min(MEASURED_SHARES):.1f}% | {max(MEASURED_SHARES):.1f}% |",
        f"| simulated, the mean of 20 runs | {low:.1f}% | {high:.1f}% |",
        f"| simulated, one connection without Envoy | {one.min():.1f}% | {one.max():.1f}% |",
    ]
    return lines


def policies() -> list[str]:
    """12 replicas, 48 programs, at 70% of capacity: times in units of a call."""
    lines = [
        "| 48 programs, 12 replicas at 70% | busiest replica's load | mean time | 99% within |",
        "|---|---|---|---|",
    ]
    for name, (policy, clients) in WAYS.items():
        outcome = run(
            replicas=12,
            policy=policy,
            clients=clients,
            rate=0.7 * 12,
            service=1.0,
            seconds=6000.0,
            warm_up=500.0,
        )
        busiest = outcome.sent.max() / outcome.seconds
        mean, late = outcome.took.mean(), np.quantile(outcome.took, 0.99)
        times = f"{mean:,.1f} | {late:,.1f}" if busiest < 1 else "grows without end | grows without end"
        lines.append(f"| {name} | {busiest:.0%} | {times} |")
    return lines


JOIN = 120.0
"""Seconds at which the fourth replica is there."""
LATER: dict[str, dict[str, Any]] = {
    "one connection each, age 3,600 s": {"policy": "pick_first", "age": 3600.0},
    "one connection each, age 300 s": {"policy": "pick_first", "age": 300.0},
    "turns, age 300 s": {"policy": "round_robin", "age": 300.0},
    "turns, age 60 s": {"policy": "round_robin", "age": 60.0},
    "Envoy, looks every second": {"policy": "least_request", "resolves": 1.0, "clients": 1},
}


def joined(**values: Any) -> Outcome:
    """Three replicas and a fourth that joins, with 60 programs."""
    config = {"replicas": 4, "clients": 60, "rate": 200.0, "service": 0.01, "seconds": 900.0}
    return run(**{**config, "outages": (Outage(replica=3, begin=0.0, end=JOIN),), **values})


def scale_up() -> list[str]:
    """How long a new replica waits for half of its share, and its share after 5 minutes."""
    lines = [
        "| a fourth replica joins three | half of its share after | share after 5 minutes |",
        "|---|---|---|",
    ]
    for name, values in LATER.items():
        share = joined(**values).shares_over_time(10.0)[:, 3]
        there = np.flatnonzero(share >= 0.125)
        after = f"{max(0.0, there[0] * 10 - JOIN) + 10:.0f} s" if len(there) else "not within 13 minutes"
        late = share[int((JOIN + 300) // 10) : int((JOIN + 300) // 10) + 6].mean()
        lines.append(f"| {name} | {after} | {late:.0%} |")
    return lines


def draw(path: Path) -> None:
    """Waiting by load and policy, and the new replica's share over time."""
    from matplotlib import pyplot as plt  # noqa: PLC0415 (an extra)

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
    loads = [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    for name, (policy, clients) in WAYS.items():
        late = [
            np.quantile(
                run(
                    replicas=12,
                    policy=policy,
                    clients=clients,
                    rate=load * 12,
                    service=1.0,
                    seconds=2500.0,
                    warm_up=500.0,
                ).took,
                0.99,
            )
            for load in loads
        ]
        left.plot(loads, late, marker="o", label=name)
    left.set(yscale="log", xlabel="load of 12 replicas", ylabel="99% within, in times of a call", ylim=(3, 1000))
    for name, values in LATER.items():
        share = joined(**values).shares_over_time(20.0)[:, 3]
        right.plot((np.arange(len(share)) + 0.5) * 20 - JOIN, share * 100, label=name)
    right.axhline(25, color="#888", linewidth=0.8)
    right.set(xlabel="seconds since a fourth replica joined", ylabel="its share of the calls, %", xlim=(-60, 760))
    for axis in (left, right):
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=80)


def main() -> int:
    """Return the exit status: 0, or 1 if --check finds a table that the docs lack."""
    parser = argparse.ArgumentParser(description="Print the tables of balancing in docs/scaling.md.")
    parser.add_argument("--plot", type=Path, help="write the picture here")
    parser.add_argument("--check", action="store_true", help="check that docs/scaling.md has the tables")
    arguments = parser.parse_args()
    lines = [*beside_measured(), "", *policies(), "", *scale_up()]
    if arguments.plot:
        draw(arguments.plot)
    if not arguments.check:
        print("\n".join(lines))
        return 0
    if missing := [line for line in lines if line not in DOC.read_text()]:
        print(f"docs/scaling.md: lacks {missing[0]}; expected the output of {Path(__file__).name}", file=sys.stderr)
    return bool(missing)


if __name__ == "__main__":
    sys.exit(main())
