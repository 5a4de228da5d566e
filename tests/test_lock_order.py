"""No two locks of the server are acquired in both orders, in a run of all operations that acquire locks.

Two threads that acquire two locks in opposite orders can deadlock. The deadlock is rare, but both orders are always
recorded.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from certificates import Authority, put
from conftest import ANSWERS_WITHIN, on_both_transports, serving
from digitserve_client import DigitsClient, DigitsError

from export import checkpoint, graph

if TYPE_CHECKING:
    from collections.abc import Iterable

    from conftest import ServiceProcess

HERE = Path(__file__).parent / "lock_order"
FIRST, SECOND = "first-token-0123456789", "second-token-0123456789"
BLANK = np.zeros((1, 784), np.uint8)
BOTH_ORDERS = """from threading import Condition, Lock, RLock, Thread
a = Lock()
b = Condition()
def one():
    with a, b:
        b.wait(0.001)
def other():
    with b, b, a:
        pass
for f in (one, other):
    thread = Thread(target=f)
    thread.start()
    thread.join()
"""


def orders(file: Path) -> list[tuple[str, str]]:
    return [(held, asked) for held, asked in map(json.loads, file.read_text().splitlines())]


def cycle(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """Return a cycle of locks, each acquired while its predecessor is held; empty if there is none."""
    order: TopologicalSorter[str] = TopologicalSorter()
    for held, asked in pairs:
        order.add(asked, held)
    try:
        order.prepare()
    except CycleError as e:
        return list(e.args[1])
    return []


def add(folder: Path, version: int) -> None:
    network = checkpoint.load(checkpoint.committed("sigmoid"))
    (folder / str(version)).mkdir(parents=True)
    put(folder / str(version) / "model.onnx", graph.build(network, version=str(version)))


@dataclass
class Traffic:
    """Calls and scrapes until the test ends; rejected calls count as answered."""

    service: ServiceProcess
    tls_ca: Path
    done: threading.Event = field(default_factory=threading.Event)
    answered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def call(self, token_file: Path) -> None:
        with DigitsClient(self.service.address, tls_ca=self.tls_ca, token_file=token_file) as client:
            while not self.done.is_set():
                with contextlib.suppress(DigitsError):  # after a token rotation, or during the drain
                    client.predict(BLANK, include_hidden_layers=True)
                    client.explain(BLANK)
                self.answered.release()

    def scrape(self) -> None:
        while not self.done.is_set():
            self.service.get("/metrics")
            self.service.get("/healthz")
            self.answered.release()

    def go_on(self) -> None:
        for _ in range(20):
            assert self.answered.acquire(timeout=ANSWERS_WITHIN)


@pytest.mark.slow
@on_both_transports
def test_no_two_locks_are_acquired_in_both_orders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, noted, tokens, second = (tmp_path / name for name in ("digits", "orders", "tokens", "second"))
    authority = Authority(tmp_path / "ours")
    pair = authority.issue("server")
    add(folder, 1)
    put(tokens, FIRST.encode())
    put(second, SECOND.encode())
    monkeypatch.setenv("LOCK_ORDER", str(noted))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]))
    options = ["--model-poll", "0.05", "--tokens-file", tokens, "--tls-cert", pair.certificate, "--tls-key", pair.key]
    with serving(folder, *options) as service, ThreadPoolExecutor() as pool:
        traffic = Traffic(service, authority.certificate)
        calls = [pool.submit(traffic.call, token_file) for token_file in (tokens, tokens, second)]
        scrapes = [pool.submit(traffic.scrape) for _ in range(2)]
        try:
            traffic.go_on()
            add(folder, 2)
            service.wait_for("model loaded", model_version="2")
            put(tokens, SECOND.encode())
            service.wait_for("credentials loaded", kind="tokens")
            authority.issue("server")
            service.wait_for("credentials loaded", kind="tls")
            service.process.send_signal(signal.SIGHUP)
            traffic.go_on()
        finally:
            traffic.done.set()
        for scraping in scrapes:
            scraping.result(ANSWERS_WITHIN)
        assert service.stop() == 0  # calls may be in flight
        for calling in calls:
            calling.result(ANSWERS_WITHIN)
    found = orders(noted)
    assert found  # the recorder works
    assert not cycle(found)


def test_two_locks_acquired_in_both_orders_are_recorded_without_a_deadlock(tmp_path: Path) -> None:
    noted = tmp_path / "orders"
    environment = {**os.environ, "LOCK_ORDER": str(noted), "PYTHONPATH": str(HERE)}
    subprocess.run([sys.executable, "-c", BOTH_ORDERS], env=environment, check=True, timeout=ANSWERS_WITHIN)
    assert cycle(orders(noted))
    assert ["<string>:2", "<string>:3"] in [list(pair) for pair in orders(noted)]
