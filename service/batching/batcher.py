"""Batches concurrent requests: runs a request at once if possible, and queues requests while the model is busy.

A small request that finds the model idle runs on the event loop, because a switch to a thread costs more than the run.
A large request runs on the model's thread. Requests that arrive meanwhile wait in the queue and become the next batch.

Small requests that arrive close together gather on the event loop until there are as many as the target of
`service.batching.adaptive`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from service.batching.adaptive import AdaptiveBatchSize
from service.errors import DeadlineExceeded, Overloaded, deadline_exceeded, overloaded

if TYPE_CHECKING:
    from service.network import ModelInfo, Parameters, Pixels, Predictions
    from service.observability.metrics import Metrics
    from service.observability.statistics import Statistics

INLINE_IMAGES = 1024
"""A run of so many images takes 0.2 ms, as long as grpcio's event loop takes for a call; a thread switch costs 0.5 ms.
"""

LOW_WATERMARK = 0.75
"""Share of the queue's limit. Load shedding begins at the limit and ends at this share."""


class InferenceModel(Protocol):
    """A model to batch: pixels (n, 784) uint8 in, all layers of the n images out."""

    info: ModelInfo
    parameters: Parameters

    def predict(self, pixels: Pixels) -> Predictions:
        """Run the images."""
        ...


class _ActiveModel(NamedTuple):
    """A model and its statistics; it answers the requests that arrived while it was active."""

    model: InferenceModel
    statistics: Statistics


@dataclass(slots=True, eq=False)
class QueuedRequest:
    """A request in the queue, with its own reply."""

    pixels: Pixels
    deadline: float
    enqueued_at: float
    active: _ActiveModel
    reply: asyncio.Future[Predictions]


class Batcher:
    """Runs `model` for many concurrent requests on one event loop.

    A run has at most `max_batch_size` images, and a request is never split. The queue has at most `max_queued_images`.
    Requests of up to `inline` images (default INLINE_IMAGES) run on the event loop if the model is idle.
    """

    def __init__(
        self,
        model: InferenceModel,
        metrics: Metrics,
        statistics: Statistics,
        *,
        max_batch_size: int,
        max_queued_images: int,
        inline: int | None = None,
    ) -> None:
        self._active = _ActiveModel(model, statistics)
        self._metrics = metrics
        self._last_run_ms = 0
        self._max_batch_size = max_batch_size
        self._max_queued_images = max_queued_images
        self._inline = INLINE_IMAGES if inline is None else inline
        self._queue: deque[QueuedRequest] = deque()
        self._queued_images = 0
        self._shedding = False
        self._seconds_per_image = 1e-6
        self._worker: asyncio.Task[None] | None = None
        self._batch_size = AdaptiveBatchSize()
        self._gather_timer: asyncio.TimerHandle | asyncio.Handle | None = None
        self._gather_started = 0.0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        metrics.queue_images.set_function(lambda: self._queued_images)
        metrics.queue_capacity.set(max_queued_images)
        metrics.last_success.set_function(lambda: self._last_run_ms / 1e3)

    @property
    def info(self) -> ModelInfo:
        """The metadata of the active model."""
        return self._active.model.info

    @property
    def parameters(self) -> Parameters:
        """The weights and biases of the active model."""
        return self._active.model.parameters

    @property
    def statistics(self) -> Statistics:
        """The statistics of the active model."""
        return self._active.statistics

    def swap(self, model: InferenceModel, statistics: Statistics) -> None:
        """Make `model` active for all later requests; the model before it answers the requests in the queue.

        Call it on the event loop, so that no request runs between two models.
        """
        self._active = _ActiveModel(model, statistics)

    async def predict(self, pixels: Pixels, deadline: float = float("inf")) -> Predictions:
        """Predict the images of one request, uint8 (n, 784).

        `deadline` is on the clock of `time.monotonic`. Raises DeadlineExceeded if it passes before the run, and
        Overloaded if the queue is full.
        """
        now = time.monotonic()
        if now >= deadline:
            raise self._deadline_exceeded()
        is_small = len(pixels) <= self._inline
        is_idle = self._worker is None and self._gather_timer is None
        if is_small and is_idle and self._batch_size.should_run_now():
            self._batch_size.record_batch(1, 0.0)
            self._record_wait(0.0, self.statistics)
            return self._run(self._active, pixels, 1)
        reply = self._enqueue(pixels, deadline, now)
        if self._worker is None:
            if is_small:
                self._gather(now, deadline)
            else:
                self._worker = asyncio.create_task(self._run_queue())
        return await reply

    def run_batch(self, pixels: Pixels, requests: int) -> Predictions | None:
        """Predict the images of several requests in one run, at once; None if the model is busy or they are too many.

        The requests bypass the queue, in which one could take the last place of another.
        """
        if self._worker is not None or len(pixels) > min(self._inline, self._max_batch_size):
            return None
        self._record_wait(0.0, self.statistics, requests)
        return self._run(self._active, pixels, requests)

    @property
    def is_full(self) -> bool:
        """Whether the server sheds load: from a request that the full queue rejected down to the low watermark.

        Meanwhile a transport rejects requests before it reads their messages, which is most of the cost of a rejection.
        """
        self._shedding = self._shedding and self._queued_images > self._max_queued_images * LOW_WATERMARK
        return self._shedding

    def overloaded_error(self) -> Overloaded:
        """Count a request that the full queue rejects, and return its error."""
        self._metrics.requests_dropped.labels("overloaded").inc()
        return overloaded(self._queued_images, self._max_queued_images, self._queued_images * self._seconds_per_image)

    async def close(self) -> None:
        """Answer all queued requests, then end the thread."""
        if self._gather_timer is not None:
            self._run_gathered()
        if self._worker is not None:
            await self._worker
        self._thread.shutdown()

    def _enqueue(self, pixels: Pixels, deadline: float, now: float) -> asyncio.Future[Predictions]:
        if self._queued_images + len(pixels) > self._max_queued_images:
            self._shedding = True
            raise self.overloaded_error()
        request = QueuedRequest(pixels, deadline, now, self._active, asyncio.get_running_loop().create_future())
        self._queue.append(request)
        self._queued_images += len(pixels)
        return request.reply

    def _gather(self, now: float, deadline: float) -> None:
        """Run the queue after a small request has entered it, or wait for more requests."""
        loop = asyncio.get_running_loop()
        is_urgent = self._queued_images >= self._inline or deadline < now + self._batch_size.max_delay
        if self._gather_timer is None:
            self._gather_started = now
            self._gather_timer = loop.call_later(self._batch_size.max_delay, self._run_gathered)
        if is_urgent or len(self._queue) == self._batch_size.target:
            self._gather_timer.cancel()
            self._gather_timer = loop.call_soon(self._run_gathered)  # includes the requests of this loop iteration

    def _run_gathered(self) -> None:
        assert self._gather_timer is not None
        self._gather_timer.cancel()
        self._gather_timer = None
        if self._worker is not None:  # a large request arrived meanwhile, and its task runs the whole queue
            return
        batch = self._next_batch()
        self._batch_size.record_batch(len(batch), time.monotonic() - self._gather_started)
        if batch:
            self._run_inline(batch)
        if self._queue:
            self._worker = asyncio.create_task(self._run_queue())

    def _run_inline(self, batch: list[QueuedRequest]) -> None:
        try:
            predictions = self._run(batch[0].active, _concatenate(batch), len(batch))
        except Exception as e:  # noqa: BLE001 (any failure of the run is the error of its requests)
            _set_error(batch, e)
        else:
            _set_replies(batch, predictions)

    async def _run_queue(self) -> None:
        """Run batch after batch until the queue is empty."""
        loop = asyncio.get_running_loop()
        try:
            while batch := self._next_batch():
                try:
                    predictions = await loop.run_in_executor(
                        self._thread, self._run, batch[0].active, _concatenate(batch), len(batch)
                    )
                except Exception as e:  # noqa: BLE001 (any failure of the run is the error of its requests)
                    _set_error(batch, e)
                else:
                    _set_replies(batch, predictions)
                batch.clear()  # or it would keep an old model in memory until the next batch
        finally:
            self._worker = None

    def _next_batch(self) -> list[QueuedRequest]:
        """Take requests of one model up to the batch limit, without those that were cancelled or are too late."""
        batch: list[QueuedRequest] = []
        size = 0
        now = time.monotonic()
        while self._queue and (not batch or self._fits(self._queue[0], batch[0], size)):
            request = self._queue.popleft()
            self._queued_images -= len(request.pixels)
            if request.reply.done():
                self._metrics.requests_dropped.labels("cancelled").inc()
            elif now >= request.deadline:
                request.reply.set_exception(self._deadline_exceeded())
            else:
                self._record_wait(now - request.enqueued_at, request.active.statistics)
                batch.append(request)
                size += len(request.pixels)
        return batch

    def _fits(self, request: QueuedRequest, first: QueuedRequest, size: int) -> bool:
        return request.active is first.active and size + len(request.pixels) <= self._max_batch_size

    def _record_wait(self, seconds: float, statistics: Statistics, requests: int = 1) -> None:
        self._metrics.queue.observe(seconds, times=requests)
        statistics.queue.add(int(seconds * 1e9), requests)

    def _run(self, active: _ActiveModel, pixels: Pixels, requests: int) -> Predictions:
        model, statistics = active
        started = time.perf_counter_ns()
        predictions = model.predict(pixels)
        ns = time.perf_counter_ns() - started
        self._seconds_per_image = ns / 1e9 / len(pixels)
        self._metrics.record_run(predictions.digit, predictions.activations, ns / 1e9)
        statistics.record_run(len(pixels), ns)
        statistics.compute_infer.add(ns, requests)
        self._last_run_ms = statistics.last_inference_ms
        return predictions

    def _deadline_exceeded(self) -> DeadlineExceeded:
        self._metrics.requests_dropped.labels("deadline").inc()
        return deadline_exceeded()


def _concatenate(batch: list[QueuedRequest]) -> Pixels:
    return batch[0].pixels if len(batch) == 1 else np.concatenate([request.pixels for request in batch])


def _set_replies(batch: list[QueuedRequest], predictions: Predictions) -> None:
    start = 0
    for request in batch:
        stop = start + len(request.pixels)
        if not request.reply.done():
            request.reply.set_result(predictions.rows(start, stop))
        start = stop


def _set_error(batch: list[QueuedRequest], error: Exception) -> None:
    for request in batch:
        if not request.reply.done():
            request.reply.set_exception(error)
