"""Many mixed requests during reloads: memory, handles and errors stay constant."""

from __future__ import annotations

import collections
import json
import os
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
import numpy as np
import pytest
from conftest import ROOT, serving
from digitserve_client import DigitsClient, DigitsError
from hostile import INFER, LONG, PREDICT, h2load, handles, loaded, resident
from test_reloader import add

from bench.messages import infer_request, predict_request, sample_images

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import ServiceProcess

TOTAL = int(os.environ.get("SOAK_REQUESTS", "1000000"))
SETTLED = TOTAL // 10
"""The number of requests after which memory and handles are the baseline."""

HEALTH = "grpc.health.v1.Health"
"""The first call of each new client."""

ROUND = ((PREDICT, predict_request, 1, 12_000), (INFER, infer_request, 1, 6_000), (PREDICT, predict_request, 5, 1_900))
LARGE = (PREDICT, predict_request, 300, 100)


class Seen(NamedTuple):
    """Memory and handles after that many answered requests."""

    requests: int
    megabytes: float
    handles: float
    reloads: float


class Odd(threading.Thread):
    """A client of unusual calls, with counts: wrong versions, wrong sizes, hidden layers and new channels."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self._address, self._done = address, threading.Event()
        self.asked, self.refused, self.wrong = 0, 0, list[str]()

    def run(self) -> None:
        blank = np.zeros((1, 784), np.uint8)
        while not self._done.is_set():
            with DigitsClient(self._address, timeout=20) as client:
                for number in range(50):
                    try:
                        self.asked += 1
                        version = "999999999" if number % 10 == 0 else ""
                        client.predict(blank, model_version=version, include_hidden_layers=number % 2 == 0)
                    except DigitsError as e:
                        self.refused += 1
                        if e.code is not grpc.StatusCode.NOT_FOUND:
                            self.wrong.append(str(e))

    def stop(self) -> None:
        self._done.set()
        self.join()


@pytest.mark.skipif(not LONG, reason="takes minutes: `make chaos` runs it")
def test_soak(tmp_path: Path, tell: Callable[[str], None], transport: str) -> None:
    folder, seen = tmp_path / "digits", list[Seen]()
    add(folder, 1)
    with serving(folder, "--model-poll", "0.25") as service:
        began, answered, version = time.monotonic(), 0, 1
        odd = Odd(service.address)
        odd.start()
        while answered < TOTAL:
            for path, message, images, count in (*ROUND, LARGE):
                options = ("--requests", count, "--clients=4", "--max-concurrent-streams=8")
                calls = loaded(h2load(service, tmp_path, message(sample_images(images)), *options, path=path))
                assert calls == (count, 0)
                answered += count
            version += 1
            add(folder, version)
            seen.append(look(service, answered + odd.asked))
        odd.stop()
        series = service.series()
    codes: collections.Counter[str] = collections.Counter()
    for (name, labels), count in series.items():
        if name == "grpc_server_handled_total" and labels[-1] == "unary" and HEALTH not in labels:
            codes[labels[0]] += int(count)
    level = [one for one in seen if one.requests >= SETTLED]
    first, last = (float(np.median([one.megabytes for one in some])) for some in (level[:5], level[-5:]))
    tell(
        f"{transport}: soak, {answered + odd.asked} requests in {time.monotonic() - began:.0f} s, "
        f"{odd.refused} rejected as expected, {seen[-1].reloads:.0f} reloads. "
        f"Memory {first:.0f} MB after {level[0].requests}, "
        f"{max(one.megabytes for one in level):.0f} at most, {last:.0f} at the end. Handles "
        f"{min(one.handles for one in level):.0f} to {max(one.handles for one in level):.0f}"
    )
    keep(transport, seen)
    assert odd.wrong == []
    assert +codes == {"OK": answered + odd.asked - odd.refused, "NotFound": odd.refused}
    assert seen[-1].reloads > len(seen) / 2
    assert max(one.handles for one in level) <= min(one.handles for one in level) + 6
    assert last < 1.05 * first


def look(service: ServiceProcess, requests: int) -> Seen:
    series = service.series()
    return Seen(requests, resident(service), handles(service), series["digits_model_reloads_total", ("loaded",)])


def keep(transport: str, seen: list[Seen]) -> None:
    """Write the series for `scripts/draw_soak.py`, which draws docs/images/soak.png."""
    found: dict[str, Any] = {}
    path = ROOT / "build" / "soak.json"
    path.parent.mkdir(exist_ok=True)
    if path.exists():
        found = json.loads(path.read_text())
    found[transport] = [one._asdict() for one in seen]
    path.write_text(json.dumps(found))
