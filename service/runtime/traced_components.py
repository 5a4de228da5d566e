"""The batcher and the predictor with spans for their steps, each with the interface of the plain one.

They replace the plain ones if tracing is on, so that a server without tracing runs none of this.
"""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from service.batching.batcher import Batcher
from service.handlers.predictor import Predictor
from service.handlers.request_timer import RequestTimer
from service.network import Predictions

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from types import TracebackType

    from service.batching.batcher import InferenceModel
    from service.handlers.predictor import BatcherProtocol
    from service.network import Pixels
    from service.observability.metrics import Metrics
    from service.observability.statistics import Statistics
    from service.observability.tracing import SpanScope, Tracing

_RUN = "failed run"
"""The attribute of an exception that holds its run: Python's own exceptions have no weak references."""


class _Run(NamedTuple):
    """A run of the model, which several requests may share; its times are nanoseconds of Unix time."""

    number: int
    images: int
    started: int
    ended: int


class _TimedPredictions(Predictions):
    """Predictions with the run that made them."""

    run: _Run

    @classmethod
    def of(cls, predictions: Predictions, run: _Run) -> _TimedPredictions:
        """Add the run to predictions."""
        timed = cls(*predictions)
        timed.run = run
        return timed

    def rows(self, start: int, stop: int) -> _TimedPredictions:
        """Return the predictions of some images, with the same run."""
        return self.of(super().rows(start, stop), self.run)


class _RunRegistry:
    """The number of traced requests in progress, and the numbers of the runs that are timed for them."""

    def __init__(self) -> None:
        self.traced_requests = 0
        self.numbers = itertools.count(1)


class _TimedModel:
    """An `InferenceModel` whose predictions and exceptions have their run, while there are traced requests."""

    def __init__(self, model: InferenceModel, registry: _RunRegistry) -> None:
        self.info = model.info
        self.parameters = model.parameters
        self._model = model
        self._registry = registry

    def predict(self, pixels: Pixels) -> Predictions:
        """Run the images."""
        if not self._registry.traced_requests:
            return self._model.predict(pixels)
        number, started = next(self._registry.numbers), time.time_ns()
        try:
            predictions = self._model.predict(pixels)
        except Exception as error:
            vars(error)[_RUN] = _Run(number, len(pixels), started, time.time_ns())
            raise
        return _TimedPredictions.of(predictions, _Run(number, len(pixels), started, time.time_ns()))


class TracedBatcher(Batcher):
    """A batcher that records the time of each request in the queue and the run that answered it.

    Each trace is read by itself, so each request of a shared run has a span of the run, with the same times. The
    attribute `digits.run`, the number of the run, finds the others.
    """

    def __init__(
        self, model: InferenceModel, metrics: Metrics, statistics: Statistics, *, tracing: Tracing, **limits: Any
    ) -> None:
        self._tracing = tracing
        self._registry = _RunRegistry()
        super().__init__(_TimedModel(model, self._registry), metrics, statistics, **limits)

    def swap(self, model: InferenceModel, statistics: Statistics) -> None:
        """As `Batcher.swap`."""
        super().swap(_TimedModel(model, self._registry), statistics)

    def predict(self, pixels: Pixels, deadline: float = float("inf")) -> Coroutine[Any, Any, Predictions]:
        """As `Batcher.predict`."""
        scope = self._tracing.current()
        return self._predict(scope, pixels, deadline) if scope.recorded else super().predict(pixels, deadline)

    async def _predict(self, scope: SpanScope, pixels: Pixels, deadline: float) -> Predictions:
        arrived, version = time.time_ns(), self.info.version
        self._registry.traced_requests += 1
        try:
            predictions = await super().predict(pixels, deadline)
        except BaseException as error:
            _record_run(scope, arrived, vars(error).get(_RUN), version, error)
            raise
        finally:
            self._registry.traced_requests -= 1
        assert isinstance(predictions, _TimedPredictions)
        _record_run(scope, arrived, predictions.run, version)
        return predictions


def _record_run(
    scope: SpanScope, arrived: int, run: _Run | None, version: str, error: BaseException | None = None
) -> None:
    if run is None:  # the request failed before its run
        scope.record_child("queue", arrived, time.time_ns(), error)
        return
    scope.record_child("queue", arrived, max(arrived, run.started))
    attributes: dict[str, Any] = {
        "digits.run": run.number,
        "digits.batch.images": run.images,
        "digits.model.version": version,
    }
    scope.record_child("run", run.started, run.ended, error, attributes)


class TracedPredictor(Predictor):
    """A predictor whose timer records spans of decoding and encoding."""

    def __init__(self, batcher: BatcherProtocol, *, max_batch_size: int, tracing: Tracing) -> None:
        super().__init__(batcher, max_batch_size=max_batch_size)
        self._tracing = tracing

    def time_request(self) -> RequestTimer:
        """As `Predictor.time_request`."""
        call = self._tracing.current()
        return _TracedRequestTimer(self.statistics, call) if call.recorded else super().time_request()

    def run_batch(self, pixels: Pixels, requests: int, deadline: float) -> Predictions | None:
        """As `Predictor.run_batch`; None for the messages of a traced call, each of which has a span of its own."""
        return None if self._tracing.current().recorded else super().run_batch(pixels, requests, deadline)


class _TracedRequestTimer(RequestTimer):
    """A timer that records the steps as spans of `call`, or of a message of it."""

    __slots__ = ("_message", "_scope", "_step_started")

    def __init__(self, statistics: Statistics, call: SpanScope) -> None:
        super().__init__(statistics)
        self._message = call.message()

    def __enter__(self) -> Self:
        self._scope = self._message.__enter__()
        self._step_started = time.time_ns()
        return super().__enter__()

    def decoded(self, images: int) -> None:
        super().decoded(images)
        if self._scope.recorded:
            self._scope.record_child("decode", self._step_started, time.time_ns())
            self._scope.set_attributes(images=images)

    def predicted(self) -> None:
        super().predicted()
        self._step_started = time.time_ns()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, traceback)
        if self._scope.recorded:
            if self._predicted:
                self._scope.record_child("encode", self._step_started, time.time_ns(), error)
            elif not self._decoded:
                self._scope.record_child("decode", self._step_started, time.time_ns(), error)
        self._message.__exit__(kind, error, traceback)
