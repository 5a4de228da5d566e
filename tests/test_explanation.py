"""Explain does not block other calls: large requests run in a thread, from a bounded queue."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from conftest import ANSWERS_WITHIN, until
from prometheus_client import CollectorRegistry

from service.batching.batcher import Batcher
from service.errors import DeadlineExceeded, Overloaded
from service.handlers.digits import DigitsHandler
from service.handlers.predictor import Predictor
from service.inference.explain import Explainer
from service.inference.model import Model
from service.observability.metrics import Metrics
from service.observability.statistics import Statistics
from service.pb.digits.v1.digits_pb2 import ExplainRequest, PredictRequest

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

SMALL, LARGE = ExplainRequest(pixels=bytes(784)), ExplainRequest(pixels=bytes(784 * 1024))
QUEUE = 64  # requests of the largest kind


class Gate:
    """A gate that blocks explanations until it opens."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.open, self.entered = threading.Event(), threading.Event()
        self.was_opened = True
        explain: Any = Explainer.explain

        def gated(*arguments: Any) -> Any:
            if len(arguments[-2]) > 1:
                self.entered.set()
                self.was_opened &= self.open.wait(ANSWERS_WITHIN / 4)
            return explain(*arguments)

        patch.setattr(Explainer, "explain", gated)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry())


@pytest.fixture
def handler(model_path: Path, metrics: Metrics) -> DigitsHandler:
    batcher = Batcher(Model(model_path), metrics, Statistics(), max_batch_size=1024, max_queued_images=2**20)
    return DigitsHandler(Predictor(batcher, max_batch_size=1024), metrics.requests_dropped.labels("overloaded").inc)


async def test_other_calls_are_answered_during_a_large_explanation(
    handler: DigitsHandler, gate: Gate, digits: np.ndarray
) -> None:
    large = asyncio.create_task(handler.explain(LARGE.SerializeToString()))
    await until(gate.entered.is_set)
    assert await handler.predict(PredictRequest(pixels=digits.tobytes()).SerializeToString())
    assert await handler.explain(SMALL.SerializeToString())
    gate.open.set()
    assert await large
    assert gate.was_opened, "the event loop waited until it timed out"


async def test_a_full_queue_rejects_explain_with_a_retry_delay(
    handler: DigitsHandler, gate: Gate, metrics: Metrics
) -> None:
    queued = [asyncio.create_task(handler.explain(LARGE.SerializeToString())) for _ in range(QUEUE)]
    await until(gate.entered.is_set)
    with pytest.raises(Overloaded, match="queue full: 65536 explanations queued, limit 65536") as rejected:
        await handler.explain(SMALL.SerializeToString())
    assert rejected.value.retry_after > 0
    assert metrics.requests_dropped.labels("overloaded")._value.get() == 1
    gate.open.set()
    await asyncio.gather(*queued)
    assert await handler.explain(SMALL.SerializeToString())


async def test_an_explanation_past_its_deadline_is_not_computed(handler: DigitsHandler, gate: Gate) -> None:
    first = asyncio.create_task(handler.explain(LARGE.SerializeToString()))
    await until(gate.entered.is_set)
    deadline = time.monotonic() + 1
    second = asyncio.create_task(handler.explain(LARGE.SerializeToString(), deadline))
    await until(lambda: time.monotonic() > deadline)
    gate.open.set()
    assert await first
    with pytest.raises(DeadlineExceeded):
        await second


async def test_requests_of_disconnected_clients_leave_the_queue(handler: DigitsHandler, gate: Gate) -> None:
    first = asyncio.create_task(handler.explain(LARGE.SerializeToString()))
    await until(gate.entered.is_set)
    left = [asyncio.create_task(handler.explain(LARGE.SerializeToString())) for _ in range(QUEUE - 1)]
    await asyncio.sleep(0)
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    assert await handler.explain(SMALL.SerializeToString())
    gate.open.set()
    assert await first
