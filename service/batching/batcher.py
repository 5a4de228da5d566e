"""The model as concurrent callers see it: runs at once where it can, gathers what arrives while the model is busy.

A small request that finds the model idle runs right where it is, since handing it to a thread costs more than the
run. A large one leaves the event loop for the model's thread; what arrives meanwhile waits, and becomes the next batch.

Small requests that come many at a time gather on the event loop until as many are there as came together last time;
see `service.batching.adaptive`. One that comes alone waits for nobody.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from service.batching.adaptive import Company
from service.errors import DeadlineExceeded, Overloaded, deadline_exceeded, overloaded

if TYPE_CHECKING:
    from service.network import ModelInfo, Parameters, Pixels, Predictions
    from service.observability.metrics import Metrics
    from service.observability.statistics import Statistics

INLINE_IMAGES = 1024
"""A run of so many takes 0.2 ms, about what every call takes of grpcio's event loop; handing it over costs 0.5 ms."""

ROOM_AGAIN = 0.75
"""Share of the line: once found full, it counts as full until no more than this of it is taken."""


class Runnable(Protocol):
    """What is batched: pixels (n, 784) uint8 in, all layers for the n images out."""

    info: ModelInfo
    parameters: Parameters

    def predict(self, pixels: Pixels) -> Predictions:
        """Run the images."""
        ...


class _Served(NamedTuple):
    """A model and the statistics of its runs; it answers the requests that were queued under it."""

    model: Runnable
    statistics: Statistics


@dataclass(slots=True, eq=False)
class _Waiting:
    """A request in line; it holds its own reply."""

    pixels: Pixels
    deadline: float
    since: float
    served: _Served
    reply: asyncio.Future[Predictions]


class Batcher:
    """Asks `model` for many callers on one event loop.

    At most `max_batch_size` images go into one run (one request is never split) and at most `max_queued_images` wait.
    Requests of up to `inline` images, INLINE_IMAGES unless told, run on the event loop when the model is idle, alone or
    gathered.
    """

    def __init__(
        self,
        model: Runnable,
        metrics: Metrics,
        statistics: Statistics,
        *,
        max_batch_size: int,
        max_queued_images: int,
        inline: int | None = None,
    ) -> None:
        self._served = _Served(model, statistics)
        self._metrics = metrics
        self._last_run_ms = 0
        self._max_batch = max_batch_size
        self._max_waiting = max_queued_images
        self._inline = INLINE_IMAGES if inline is None else inline
        self._line: deque[_Waiting] = deque()
        self._images = 0
        self._found_full = False
        self._seconds_per_image = 1e-6
        self._worker: asyncio.Task[None] | None = None
        self._company = Company()
        self._gathering: asyncio.TimerHandle | asyncio.Handle | None = None
        self._gathering_since = 0.0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        metrics.queue_images.set_function(lambda: self._images)
        metrics.queue_capacity.set(max_queued_images)
        metrics.last_success.set_function(lambda: self._last_run_ms / 1e3)

    @property
    def info(self) -> ModelInfo:
        """Of the model that answers whoever comes now."""
        return self._served.model.info

    @property
    def parameters(self) -> Parameters:
        """Of that model too."""
        return self._served.model.parameters

    @property
    def statistics(self) -> Statistics:
        """Of that model alone."""
        return self._served.statistics

    def swap(self, model: Runnable, statistics: Statistics) -> None:
        """Let `model` answer whoever comes from now on; those in line are answered by the one before it.

        Call it on the event loop: between two requests there is then no moment without a model or with two.
        """
        self._served = _Served(model, statistics)

    async def predict(self, pixels: Pixels, deadline: float = float("inf")) -> Predictions:
        """Each caller's own rows, for uint8 pixels (n, 784).

        `deadline` is on the clock of `time.monotonic`. Raises DeadlineExceeded where it has passed before the run, and
        Overloaded where the line is full.
        """
        now = time.monotonic()
        if now >= deadline:
            raise self._too_late()
        small = len(pixels) <= self._inline
        if small and self._worker is None and self._gathering is None and self._company.none_expected():
            self._waited(0.0, self.statistics)
            return self._run(self._served, pixels, 1)
        reply = self._enqueue(pixels, deadline, now)
        if self._worker is None:
            if small:
                self._gather(now, deadline)
            else:
                self._worker = asyncio.create_task(self._work())
        return await reply

    def run_together(self, pixels: Pixels, requests: int) -> Predictions | None:
        """At once what so many requests that came together hold, in one run; None if the model is busy or it is a lot.

        They take nothing of the line, in which they might take the room from each other.
        """
        if self._worker is not None or len(pixels) > min(self._inline, self._max_batch):
            return None
        self._waited(0.0, self.statistics, requests)
        return self._run(self._served, pixels, requests)

    @property
    def is_full(self) -> bool:
        """Whether a request was refused for want of room, and there is not yet much more of it.

        Whoever comes meanwhile can be refused before its message is read, which is most of what a refusal costs.
        """
        self._found_full = self._found_full and self._images > self._max_waiting * ROOM_AGAIN
        return self._found_full

    def refusal(self) -> Overloaded:
        """What to raise for a request that is not let into the full line; it is counted."""
        self._metrics.requests_dropped.labels("overloaded").inc()
        return overloaded(self._images, self._max_waiting, self._images * self._seconds_per_image)

    async def close(self) -> None:
        """Answer all that waits, then end the thread."""
        if self._gathering is not None:
            self._gathered()
        if self._worker is not None:
            await self._worker
        self._thread.shutdown()

    def _enqueue(self, pixels: Pixels, deadline: float, now: float) -> asyncio.Future[Predictions]:
        if self._images + len(pixels) > self._max_waiting:
            self._found_full = True
            raise self.refusal()
        item = _Waiting(pixels, deadline, now, self._served, asyncio.get_running_loop().create_future())
        self._line.append(item)
        self._images += len(pixels)
        return item.reply

    def _gather(self, now: float, deadline: float) -> None:
        """A small request has come into the line: run those that are there, or wait for as many as are expected."""
        loop = asyncio.get_running_loop()
        is_enough = self._images >= self._inline or deadline < now + self._company.patience
        if self._gathering is None:
            self._gathering_since = now
            self._gathering = loop.call_later(self._company.patience, self._gathered)
        if is_enough or len(self._line) == self._company.expected:
            self._gathering.cancel()
            self._gathering = loop.call_soon(self._gathered)  # so that whoever comes in this turn is with them

    def _gathered(self) -> None:
        assert self._gathering is not None
        self._gathering.cancel()
        self._gathering = None
        if self._worker is not None:  # a large request came between and has its thread take them along
            return
        batch = self._next_batch()
        self._company.came(len(batch), time.monotonic() - self._gathering_since)
        if batch:
            self._answer_here(batch)
        if self._line:
            self._worker = asyncio.create_task(self._work())

    def _answer_here(self, batch: list[_Waiting]) -> None:
        try:
            result = self._run(batch[0].served, _together(batch), len(batch))
        except Exception as e:  # noqa: BLE001 (whatever failed, its own callers must hear of it)
            _fail(batch, e)
        else:
            _answer(batch, result)

    async def _work(self) -> None:
        """Run batch after batch until nobody waits."""
        loop = asyncio.get_running_loop()
        try:
            while batch := self._next_batch():
                try:
                    result = await loop.run_in_executor(
                        self._thread, self._run, batch[0].served, _together(batch), len(batch)
                    )
                except Exception as e:  # noqa: BLE001 (whatever failed, its own callers must hear of it)
                    _fail(batch, e)
                else:
                    _answer(batch, result)
                batch.clear()  # or it would hold an old model until the next batch
        finally:
            self._worker = None

    def _next_batch(self) -> list[_Waiting]:
        """The longest run of waiting requests that fits and has one model; who left or is late costs nothing."""
        batch: list[_Waiting] = []
        size = 0
        now = time.monotonic()
        while self._line and (not batch or self._fits(self._line[0], batch[0], size)):
            item = self._line.popleft()
            self._images -= len(item.pixels)
            if item.reply.done():
                self._metrics.requests_dropped.labels("cancelled").inc()
            elif now >= item.deadline:
                item.reply.set_exception(self._too_late())
            else:
                self._waited(now - item.since, item.served.statistics)
                batch.append(item)
                size += len(item.pixels)
        return batch

    def _fits(self, item: _Waiting, first: _Waiting, size: int) -> bool:
        return item.served is first.served and size + len(item.pixels) <= self._max_batch

    def _waited(self, seconds: float, statistics: Statistics, requests: int = 1) -> None:
        self._metrics.queue.observe(seconds, times=requests)
        statistics.queue.add(int(seconds * 1e9), requests)

    def _run(self, served: _Served, pixels: Pixels, requests: int) -> Predictions:
        model, statistics = served
        started = time.perf_counter_ns()
        result = model.predict(pixels)
        ns = time.perf_counter_ns() - started
        self._seconds_per_image = ns / 1e9 / len(pixels)
        self._metrics.record_run(result.digit, result.activations, ns / 1e9)
        statistics.record_run(len(pixels), ns)
        statistics.compute_infer.add(ns, requests)
        self._last_run_ms = statistics.last_inference_ms
        return result

    def _too_late(self) -> DeadlineExceeded:
        self._metrics.requests_dropped.labels("deadline").inc()
        return deadline_exceeded()


def _together(batch: list[_Waiting]) -> Pixels:
    return batch[0].pixels if len(batch) == 1 else np.concatenate([item.pixels for item in batch])


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
