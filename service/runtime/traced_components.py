"""The batcher and the predictor with spans for their steps, each with the interface of the plain one.

They stand in for the plain ones where traces are asked for, so that a server without traces runs nothing of this.
"""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from service.batching.batcher import Batcher
from service.handlers.predictor import Predictor
from service.network import Predictions

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from service.batching.batcher import Runnable
    from service.handlers.predictor import Batching, Decode, DecodeAll, Encode, EncodeAll, RunEncode
    from service.network import Pixels
    from service.observability.metrics import Metrics
    from service.observability.statistics import Statistics
    from service.observability.tracing import Part, Tracing

_RUN = "run that failed"
"""Where an exception keeps it: one that Python itself raises has no weak references, by which it could be found."""


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


class _Watched:
    """How many requests in progress are recorded, and the numbers of the runs that are timed for them."""

    def __init__(self) -> None:
        self.requests = 0
        self.numbers = itertools.count(1)


class _TimedModel:
    """A `batcher.Runnable` that tells with its answers, or with what it raises, when it ran, if asked to."""

    def __init__(self, model: Runnable, watched: _Watched) -> None:
        self.info = model.info
        self.parameters = model.parameters
        self._model = model
        self._watched = watched

    def predict(self, pixels: Pixels) -> Predictions:
        """Run the images."""
        if not self._watched.requests:
            return self._model.predict(pixels)
        number, began = next(self._watched.numbers), time.time_ns()
        try:
            predictions = self._model.predict(pixels)
        except Exception as error:
            vars(error)[_RUN] = _Run(number, len(pixels), began, time.time_ns())
            raise
        return _Timed.of(predictions, _Run(number, len(pixels), began, time.time_ns()))


class TracedBatcher(Batcher):
    """A batcher that records for each request how long it waited and the run that answered it.

    Requests that shared a run have a span of it each, all of the same times, since each trace is read by itself;
    `digits.run`, the number of the run, finds the others.
    """

    def __init__(
        self, model: Runnable, metrics: Metrics, statistics: Statistics, *, tracing: Tracing, **limits: Any
    ) -> None:
        self._tracing = tracing
        self._watched = _Watched()
        super().__init__(_TimedModel(model, self._watched), metrics, statistics, **limits)

    def swap(self, model: Runnable, statistics: Statistics) -> None:
        """As `Batcher.swap`."""
        super().swap(_TimedModel(model, self._watched), statistics)

    def predict(self, pixels: Pixels, deadline: float = float("inf")) -> Coroutine[Any, Any, Predictions]:
        """As `Batcher.predict`."""
        part = self._tracing.current()
        return self._predict(part, pixels, deadline) if part.recorded else super().predict(pixels, deadline)

    async def _predict(self, part: Part, pixels: Pixels, deadline: float) -> Predictions:
        came, version = time.time_ns(), self.info.version
        self._watched.requests += 1
        try:
            found = await super().predict(pixels, deadline)
        except BaseException as error:
            self._record(part, came, vars(error).get(_RUN), version, error)
            raise
        finally:
            self._watched.requests -= 1
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

    def __init__(self, batcher: Batching, *, max_batch_size: int, tracing: Tracing) -> None:
        super().__init__(batcher, max_batch_size=max_batch_size)
        self._tracing = tracing

    def answer(self, decode: Decode, encode: Encode, run_encode: RunEncode | None = None) -> Coroutine[Any, Any, bytes]:
        """As `Predictor.answer`."""
        call = self._tracing.current()
        if not call.recorded:
            return super().answer(decode, encode, run_encode)
        return self._answer(call, decode, encode, run_encode)

    def answer_together(self, decode: DecodeAll, encode: EncodeAll) -> list[bytes] | None:
        """As `Predictor.answer_together`, but messages that have a span each go by themselves."""
        return None if self._tracing.current().recorded else super().answer_together(decode, encode)

    async def _answer(self, call: Part, decode: Decode, encode: Encode, run_encode: RunEncode | None) -> bytes:
        with call.message() as part:
            if not part.recorded:
                return await super().answer(decode, encode, run_encode)
            return await super().answer(
                lambda: self._decoded(part, decode),
                lambda found, info: part.timed("encode", lambda: encode(found, info)),
                run_encode,
            )

    def _decoded(self, part: Part, decode: Decode) -> tuple[Pixels, float]:
        found = part.timed("decode", decode)
        part.note(images=len(found[0]))
        return found
