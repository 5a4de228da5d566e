"""The model as concurrent callers see it: runs at once where it can, gathers what arrives while the model is busy.

There is no timer. A small request that finds the model idle runs right where it is, since handing it to a thread
costs more than the run. A large one leaves the event loop for the model's thread; what arrives meanwhile waits, and
becomes the next batch. So an idle server adds no latency and a busy one makes large batches by itself.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from service.errors import DeadlinePassed, Overloaded

if TYPE_CHECKING:
    from service.metrics import Metrics
    from service.model import ModelInfo, Pixels, Predictions
    from service.statistics import Statistics

SHORTEST_RETRY = 0.01


class Runnable(Protocol):
    """What is batched: pixels (n, 784) uint8 in, all layers for the n images out."""

    info: ModelInfo

    def predict(self, pixels: Pixels) -> Predictions:
        """Run the images."""
        ...


@dataclass(slots=True, eq=False)
class _Waiting:
    """A request in line; it holds its own reply."""

    pixels: Pixels
    deadline: float
    since: float
    reply: asyncio.Future[Predictions]


class Batcher:
    """Asks `model` for many callers on one event loop.

    At most `max_batch` images go into one run (one request is never split) and at most `max_waiting` images wait.
    Requests of up to `inline` images run on the event loop when the model is idle.
    """

    def __init__(
        self,
        model: Runnable,
        metrics: Metrics,
        statistics: Statistics,
        *,
        max_batch: int,
        max_waiting: int,
        inline: int,
    ) -> None:
        self.info = model.info
        self._model = model
        self._metrics = metrics
        self._statistics = statistics
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._inline = inline
        self._line: deque[_Waiting] = deque()
        self._images = 0
        self._seconds_per_image = 1e-6
        self._worker: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        metrics.waiting.set_function(lambda: self._images)
        metrics.waiting_limit.set(max_waiting)
        metrics.last_success.set_function(lambda: statistics.last_inference_ms / 1e3)

    async def predict(self, pixels: Pixels, deadline: float = float("inf")) -> Predictions:
        """Each caller's own rows, for uint8 pixels (n, 784).

        `deadline` is on the clock of `time.monotonic`. Raises DeadlinePassed where it has passed before the run, and
        Overloaded where the line is full.
        """
        now = time.monotonic()
        if now >= deadline:
            raise self._too_late()
        if self._worker is None and len(pixels) <= self._inline:
            self._waited(0.0)
            return self._run(pixels, 1)
        return await self._enqueue(pixels, deadline, now)

    async def close(self) -> None:
        """Answer all that waits, then end the thread."""
        if self._worker is not None:
            await self._worker
        self._thread.shutdown()

    def _enqueue(self, pixels: Pixels, deadline: float, now: float) -> asyncio.Future[Predictions]:
        if self._images + len(pixels) > self._max_waiting:
            self._metrics.dropped.labels("overloaded").inc()
            retry_after = max(SHORTEST_RETRY, self._images * self._seconds_per_image)
            raise Overloaded(f"{self._images} images wait already; at most {self._max_waiting} may", retry_after)
        item = _Waiting(pixels, deadline, now, asyncio.get_running_loop().create_future())
        self._line.append(item)
        self._images += len(pixels)
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        return item.reply

    async def _work(self) -> None:
        """Run batch after batch until nobody waits."""
        loop = asyncio.get_running_loop()
        try:
            while batch := self._next_batch():
                rows = batch[0].pixels if len(batch) == 1 else np.concatenate([item.pixels for item in batch])
                try:
                    result = await loop.run_in_executor(self._thread, self._run, rows, len(batch))
                except Exception as e:  # noqa: BLE001 (whatever failed, its own callers must hear of it)
                    _fail(batch, e)
                else:
                    _answer(batch, result)
        finally:
            self._worker = None

    def _next_batch(self) -> list[_Waiting]:
        """The longest run of waiting requests that fits; those that left or are late cost nothing."""
        batch: list[_Waiting] = []
        size = 0
        now = time.monotonic()
        while self._line and (not batch or size + len(self._line[0].pixels) <= self._max_batch):
            item = self._line.popleft()
            self._images -= len(item.pixels)
            if item.reply.done():
                self._metrics.dropped.labels("cancelled").inc()
            elif now >= item.deadline:
                item.reply.set_exception(self._too_late())
            else:
                self._waited(now - item.since)
                batch.append(item)
                size += len(item.pixels)
        return batch

    def _waited(self, seconds: float) -> None:
        self._metrics.queue.observe(seconds)
        self._statistics.queue.add(int(seconds * 1e9))

    def _run(self, pixels: Pixels, requests: int) -> Predictions:
        started = time.perf_counter_ns()
        result = self._model.predict(pixels)
        ns = time.perf_counter_ns() - started
        self._seconds_per_image = ns / 1e9 / len(pixels)
        self._metrics.ran(result.digit, result.activations, ns / 1e9)
        self._statistics.ran(len(pixels), ns)
        self._statistics.compute_infer.add(ns, requests)
        return result

    def _too_late(self) -> DeadlinePassed:
        self._metrics.dropped.labels("deadline").inc()
        return DeadlinePassed("the deadline passed before the model could run")


def _answer(batch: list[_Waiting], result: Predictions) -> None:
    start = 0
    for item in batch:
        stop = start + len(item.pixels)
        if not item.reply.done():
            item.reply.set_result(result.rows(start, stop))
        start = stop


def _fail(batch: list[_Waiting], error: Exception) -> None:
    for item in batch:
        if not item.reply.done():
            item.reply.set_exception(error)
