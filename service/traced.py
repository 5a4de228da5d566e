"""The batcher and the predictor with spans for their steps, each with the interface of the plain one.

They stand in for the plain ones where traces are asked for, so that a server without traces runs nothing of this.
"""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from service.batcher import Batcher
from service.handlers.predicting import Predictor
from service.model import Predictions

if TYPE_CHECKING:
    from collections.abc import Callable

    from service.batcher import Runnable
    from service.handlers.predicting import Batching
    from service.metrics import Metrics
    from service.model import ModelInfo, Pixels
    from service.statistics import Statistics
    from service.tracing import Part, Tracing


class _Run(NamedTuple):
    """A run of the model, which several requests may share: from when to when, in nanoseconds of Unix time."""

    number: int
    images: int
    began: int
    ended: int


class _Timed(Predictions):
    """Predictions that know the run that they come from."""

    run: _Run

    @classmethod
    def of(cls, predictions: Predictions, run: _Run) -> _Timed:
        """The same predictions, with their run."""
        timed = cls(*predictions)
        timed.run = run
        return timed

    def rows(self, start: int, stop: int) -> _Timed:
        """Those of some images, of the same run."""
        return self.of(super().rows(start, stop), self.run)


class _Runs:
    """What the runs of a process' models are numbered by, and those that failed by what they raised."""

    def __init__(self) -> None:
        self.numbers = itertools.count(1)
        self.failed: WeakKeyDictionary[BaseException, _Run] = WeakKeyDictionary()


class _TimedModel:
    """A `service.batcher.Runnable` that tells with its answers when it ran."""

    def __init__(self, model: Runnable, runs: _Runs) -> None:
        self.info = model.info
        self.parameters = model.parameters
        self._model = model
        self._runs = runs

    def predict(self, pixels: Pixels) -> Predictions:
        """Run the images."""
        number, began = next(self._runs.numbers), time.time_ns()
        try:
            predictions = self._model.predict(pixels)
        except Exception as error:
            self._runs.failed[error] = _Run(number, len(pixels), began, time.time_ns())
            raise
        return _Timed.of(predictions, _Run(number, len(pixels), began, time.time_ns()))


class TracedBatcher(Batcher):
    """A batcher that records for each request how long it waited and the run that answered it.

    Requests that shared a run have a span of it each, all of the same times, since each trace is read by itself;
    `digits.run`, the number of the run, finds the others.
    """

    def __init__(
        self, model: Runnable, metrics: Metrics, statistics: Statistics, *, tracing: Tracing, **limits: int
    ) -> None:
        self._tracing = tracing
        self._runs = _Runs()
        super().__init__(_TimedModel(model, self._runs), metrics, statistics, **limits)

    def swap(self, model: Runnable, statistics: Statistics) -> None:
        """As `Batcher.swap`."""
        super().swap(_TimedModel(model, self._runs), statistics)

    async def predict(self, pixels: Pixels, deadline: float = float("inf")) -> Predictions:
        """As `Batcher.predict`."""
        part = self._tracing.current()
        if not part.recorded:
            return await super().predict(pixels, deadline)
        came, version = time.time_ns(), self.info.version
        try:
            found = await super().predict(pixels, deadline)
        except BaseException as error:
            self._record(part, came, self._runs.failed.get(error), version, error)
            raise
        assert isinstance(found, _Timed)
        self._record(part, came, found.run, version)
        return found

    def _record(
        self, part: Part, came: int, run: _Run | None, version: str, error: BaseException | None = None
    ) -> None:
        if run is None:  # given up before its run
            part.step("queue", came, time.time_ns(), error)
            return
        part.step("queue", came, max(came, run.began))
        attributes: dict[str, Any] = {
            "digits.run": run.number,
            "digits.batch.images": run.images,
            "digits.model.version": version,
        }
        part.step("run", run.began, run.ended, error, attributes)


class TracedPredictor(Predictor):
    """A predictor that records how long each request took to decode and to encode."""

    def __init__(self, batcher: Batching, *, max_batch: int, tracing: Tracing) -> None:
        super().__init__(batcher, max_batch=max_batch)
        self._tracing = tracing

    async def answer(
        self, decode: Callable[[], tuple[Pixels, float]], encode: Callable[[Predictions, ModelInfo], bytes]
    ) -> bytes:
        """As `Predictor.answer`."""
        call = self._tracing.current()
        if not call.recorded:
            return await super().answer(decode, encode)
        with call.message() as part:
            if not part.recorded:
                return await super().answer(decode, encode)
            return await super().answer(
                lambda: self._decoded(part, decode),
                lambda found, info: part.timed("encode", lambda: encode(found, info)),
            )

    def _decoded(self, part: Part, decode: Callable[[], tuple[Pixels, float]]) -> tuple[Pixels, float]:
        found = part.timed("decode", decode)
        part.note(images=len(found[0]))
        return found
