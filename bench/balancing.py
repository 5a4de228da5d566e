"""Simulate balancing over replicas call by call: the choice of the replica, its frequency, and the waiting time.

A discrete-event simulation. Replicas are queues with one server each. A client chooses the replica: a program with its
own channel, or an Envoy for all. Times are in seconds; the same seed gives the same run. tests/test_balancing.py
compares it with queueing theory, and docs/scaling.md has the results.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Callable

Policy = Literal["pick_first", "round_robin", "least_request"]
"""The replica of a call. pick_first uses the client's only connection, as a ClusterIP does, and round_robin the next
replica. least_request, as in Envoy, uses the less busy of two drawn at random, by the client's own calls."""


@dataclass(frozen=True, kw_only=True)
class Outage:
    """A replica that drains from `begin` to `end`: it answers its queue, and clients leave it at once."""

    replica: int
    begin: float
    end: float


@dataclass(frozen=True, kw_only=True)
class SimulationConfig:
    """The simulated load. Either `rate` calls/s arrive at random, or each of `concurrency` calls follows another."""

    replicas: int
    service: float
    """Seconds of a replica that a call takes, on average."""
    policy: Policy
    fixed: bool = False
    """Every call takes the same; otherwise exponentially distributed, as long as the last was short."""
    clients: int = 1
    rate: float = 0.0
    concurrency: int = 0
    seconds: float
    warm_up: float = 0.0
    """Seconds at the start whose calls are not counted."""
    age: float = float("inf")
    """Maximum age of a connection, +-10%. Its client then resolves the name again; pick_first gets any replica."""
    resolves: float = float("inf")
    """Seconds between looks of a client by itself, as Envoy's DNS refresh."""
    outages: tuple[Outage, ...] = ()
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The answered calls after the warm-up: the arrival of each, its time in seconds, and its replica."""

    arrivals: npt.NDArray[np.float64]
    took: npt.NDArray[np.float64]
    replica: npt.NDArray[np.int64]
    sent: npt.NDArray[np.int64]
    """Calls by the replica that they were sent to, answered or still waiting at the end."""
    seconds: float
    mean_in_system: float
    """Calls waiting or being answered, averaged over the time after the warm-up."""

    @property
    def rate(self) -> float:
        """Calls answered a second."""
        return len(self.took) / self.seconds

    @property
    def shares(self) -> npt.NDArray[np.float64]:
        """Of the calls answered, by replica."""
        return np.bincount(self.replica, minlength=len(self.sent)) / max(1, len(self.replica))

    def shares_over_time(self, window: float) -> npt.NDArray[np.float64]:
        """Of the calls that came in each window, by window and replica."""
        if not len(self.arrivals):
            return np.zeros((0, len(self.sent)))
        windows = (self.arrivals // window).astype(np.int64)
        counts = np.zeros((int(windows.max()) + 1, len(self.sent)))
        np.add.at(counts, (windows, self.replica), 1)
        return np.asarray(counts / np.maximum(1, counts.sum(axis=1, keepdims=True)))


@dataclass
class _Replica:
    up: bool = True
    busy: bool = False
    line: deque[tuple[int, float]] = field(default_factory=deque)
    """Client and time of each call that waits."""


@dataclass
class _Client:
    known: list[int]
    """The replicas that it has connections to; of pick_first, one."""
    connections: dict[int, int]
    """Replica: the number of the connection to it, so that an old one's end is not taken for that of the next."""
    open_calls: npt.NDArray[np.int64]
    turn: int


class Simulation:
    """One run of a config."""

    def __init__(self, config: SimulationConfig) -> None:
        self._config = config
        self._random = np.random.default_rng(config.seed)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._now = 0.0
        self._replicas = [_Replica() for _ in range(config.replicas)]
        self._clients = [
            _Client([], {}, np.zeros(config.replicas, np.int64), int(self._random.integers(config.replicas)))
            for _ in range(config.clients)
        ]
        self._answered: list[tuple[float, float, int]] = []
        self._sent = np.zeros(config.replicas, np.int64)
        self._in_system = 0
        self._area = 0.0

    def run(self) -> Outcome:
        """Return the outcome of the calls. Raises ValueError if the outages leave no replica up."""
        self._set_up()
        while self._events and self._events[0][0] <= self._config.seconds:
            time, _, happens = heapq.heappop(self._events)
            self._pass(time)
            happens()
        self._pass(self._config.seconds)
        counted = self._config.seconds - self._config.warm_up
        answered = np.array(self._answered, np.float64).reshape(-1, 3)
        return Outcome(
            arrivals=answered[:, 0],
            took=answered[:, 1],
            replica=answered[:, 2].astype(np.int64),
            sent=self._sent,
            seconds=counted,
            mean_in_system=self._area / counted,
        )

    def _set_up(self) -> None:
        config = self._config
        for client in self._clients:
            self._poll(client)
            if config.resolves < float("inf"):
                self._at(float(self._random.uniform(0, config.resolves)), partial(self._look_again, client))
        for outage in config.outages:
            self._at(outage.begin, partial(self._drain, outage.replica))
            self._at(outage.end, partial(self._return, outage.replica))
        for number in range(config.concurrency):
            self._arrive(number % config.clients)
        if config.rate:
            self._at(float(self._random.exponential(1 / config.rate)), self._arrive_by_chance)

    def _at(self, time: float, happens: Callable[[], None]) -> None:
        self._count += 1  # events of one time happen in the order in which they were set
        heapq.heappush(self._events, (time, self._count, happens))

    def _pass(self, time: float) -> None:
        self._area += self._in_system * max(0.0, time - max(self._now, self._config.warm_up))
        self._now = time

    # Calls.

    def _arrive_by_chance(self) -> None:
        self._at(self._now + float(self._random.exponential(1 / self._config.rate)), self._arrive_by_chance)
        self._arrive(int(self._random.integers(self._config.clients)))

    def _arrive(self, number: int) -> None:
        client = self._clients[number]
        chosen = self._choose(client)
        client.open_calls[chosen] += 1
        self._sent[chosen] += self._now >= self._config.warm_up
        self._in_system += 1
        self._replicas[chosen].line.append((number, self._now))
        if not self._replicas[chosen].busy:
            self._begin(chosen)

    def _choose(self, client: _Client) -> int:
        if self._config.policy == "round_robin":
            client.turn += 1
            return client.known[client.turn % len(client.known)]
        if self._config.policy == "least_request":
            one, other = (client.known[int(i)] for i in self._random.integers(len(client.known), size=2))
            return one if client.open_calls[one] <= client.open_calls[other] else other
        return client.known[0]

    def _begin(self, replica: int) -> None:
        self._replicas[replica].busy = True
        config = self._config
        took = config.service if config.fixed else float(self._random.exponential(config.service))
        self._at(self._now + took, partial(self._end, replica))

    def _end(self, replica: int) -> None:
        number, arrived_at = self._replicas[replica].line.popleft()
        self._clients[number].open_calls[replica] -= 1
        self._in_system -= 1
        if arrived_at >= self._config.warm_up:
            self._answered.append((arrived_at, self._now - arrived_at, replica))
        self._replicas[replica].busy = False
        if self._replicas[replica].line:
            self._begin(replica)
        if self._config.concurrency:
            self._arrive(number)

    # Connections.

    def _poll(self, client: _Client) -> None:
        """Connect the client to live replicas that it does not know."""
        up = [number for number, replica in enumerate(self._replicas) if replica.up]
        if not up:
            raise ValueError(f"no replica is up at {self._now:g} s: let the outages leave one")
        if self._config.policy == "pick_first":
            new = [] if client.known else [int(self._random.choice(up))]
        else:
            new = [number for number in up if number not in client.known]
        client.known += new
        for replica in new:
            self._count += 1
            client.connections[replica] = self._count
            if self._config.age < float("inf"):
                self._at(self._now + self._lasts(), partial(self._grow_old, client, replica, self._count))

    def _lasts(self) -> float:
        """Seconds of a new connection; those of the start began some time before it."""
        of_age = self._random.uniform(0.9, 1.1) if self._now else self._random.uniform(0.0, 1.0)
        return self._config.age * float(of_age)

    def _look_again(self, client: _Client) -> None:
        self._poll(client)
        self._at(self._now + self._config.resolves, partial(self._look_again, client))

    def _grow_old(self, client: _Client, replica: int, connection: int) -> None:
        if client.connections.get(replica) == connection:
            self._disconnect(client, replica)

    def _disconnect(self, client: _Client, replica: int) -> None:
        client.known.remove(replica)
        del client.connections[replica]
        self._poll(client)

    def _drain(self, replica: int) -> None:
        self._replicas[replica].up = False
        for client in self._clients:
            if replica in client.known:
                self._disconnect(client, replica)

    def _return(self, replica: int) -> None:
        self._replicas[replica].up = True
