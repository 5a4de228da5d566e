"""Stopped, replaced and killed servers of a client with two addresses."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from typing import TYPE_CHECKING

import pytest
from conftest import ANSWERS_WITHIN, free_port, launch, until
from digitserve_client import AsyncDigitsClient, DigitsError
from grpc import StatusCode
from hostile import BLANK, LONG, still_serves

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from conftest import ServiceProcess

pytestmark = pytest.mark.slow


class Replicas:
    """Two servers with fixed ports, each of which the test can stop and restart."""

    def __init__(self, model: Path, transport: str) -> None:
        self._model = model
        self.transport = transport
        self.ports = [free_port(), free_port()]
        self.services = [self.begin(port) for port in self.ports]
        self.target = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in self.ports)

    def begin(self, port: int) -> ServiceProcess:
        service = launch(
            *("--model", self._model, "--port", str(port), "--metrics-port", "0"), *("--drain-wait", "0.3")
        )
        service.wait_for("serving")
        return service

    def again(self, number: int) -> float:
        """Restart an ended server; return the seconds until it serves."""
        began = time.monotonic()
        self.services[number].close()
        self.services[number] = self.begin(self.ports[number])
        return time.monotonic() - began


@pytest.fixture
def replicas(model_path: Path, transport: str) -> Iterator[Replicas]:
    both = Replicas(model_path, transport)
    yield both
    for service in both.services:
        service.close()


@contextlib.asynccontextmanager
async def load(target: str, callers: int) -> AsyncIterator[tuple[list[int], list[DigitsError]]]:
    """Run clients until the block ends; yield the number of answers and the failures."""
    answered, failed, done = [0], list[DigitsError](), asyncio.Event()

    async def ask(client: AsyncDigitsClient) -> None:
        while not done.is_set():
            try:
                await client.predict(BLANK, timeout=ANSWERS_WITHIN)
                answered[0] += 1
            except DigitsError as e:
                failed.append(e)

    async with AsyncDigitsClient(target) as client:
        asking = [asyncio.create_task(ask(client)) for _ in range(callers)]
        try:
            yield answered, failed
        finally:
            done.set()
            await asyncio.gather(*asking)


async def test_a_rolling_restart_of_two_loses_no_call(replicas: Replicas, tell: Callable[[str], None]) -> None:
    least = 50_000 if LONG else 1_500
    restarts = 0
    async with load(replicas.target, 8) as (answered, failed):
        while answered[0] < least or restarts < 2:
            number = restarts % 2
            assert await asyncio.to_thread(replicas.services[number].stop) == 0
            await asyncio.to_thread(replicas.again, number)
            restarts += 1
            await asyncio.sleep(3 if LONG else 0.7)
    assert failed == []
    tell(f"{replicas.transport}: rolling restart, {restarts} restarts: {answered[0]} answered, {len(failed)} failed")


async def test_a_killed_replica_loses_at_most_its_calls_in_flight(
    replicas: Replicas, tell: Callable[[str], None]
) -> None:
    kills = 10 if LONG else 1
    slowest, callers = 0.0, 8
    async with load(replicas.target, callers) as (answered, failed):
        for kill in range(kills):
            await asyncio.sleep(1)
            replicas.services[kill % 2].process.send_signal(signal.SIGKILL)
            before = answered[0]
            await asyncio.sleep(0.5)
            await until(lambda before=before: answered[0] > before + callers)  # the other continues to serve
            slowest = max(slowest, await asyncio.to_thread(replicas.again, kill % 2))
            await asyncio.sleep(0.5)
    assert {e.code for e in failed} <= {StatusCode.UNAVAILABLE}
    assert len(failed) <= kills * callers
    for service in replicas.services:
        await asyncio.to_thread(still_serves, service)
    tell(
        f"{replicas.transport}: kill -9, {kills} times: {answered[0]} answered, "
        f"{len(failed)} failed of at most {kills * callers} in flight; "
        f"serving {slowest:.2f} s after its start"
    )
