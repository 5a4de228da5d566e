"""The path of every request for predictions, whichever protocol it came by: decode, check, predict, encode."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

import numpy as np

from service.errors import InvalidInput, ModelNotFound
from service.network import PIXELS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from service.network import ModelInfo, Parameters, Pixels, Predictions
    from service.observability.statistics import Statistics

    Decode = Callable[[], tuple[Pixels, float]]
    Encode = Callable[[Predictions, ModelInfo], bytes]
    RunEncode = Callable[[Callable[[], bytes]], Awaitable[bytes]]
    DecodeAll = Callable[[], tuple[list[Pixels], float] | None]
    EncodeAll = Callable[[Predictions, Sequence[int], ModelInfo], list[bytes]]


class Batching(Protocol):
    """The model as concurrent callers see it, as `service.batching.batcher.Batcher` is.

    `info`, `parameters` and `statistics` are of the model that answers whoever comes now.
    """

    @property
    def info(self) -> ModelInfo:
        """What the model's file says of itself."""
        ...

    @property
    def parameters(self) -> Parameters:
        """The weights and biases that it computes with."""
        ...

    @property
    def statistics(self) -> Statistics:
        """What the model did."""
        ...

    async def predict(self, pixels: Pixels, deadline: float = ...) -> Predictions:
        """Each caller's own rows; DeadlineExceeded or Overloaded."""
        ...

    def run_together(self, pixels: Pixels, requests: int) -> Predictions | None:
        """At once what so many requests hold; None where that cannot be."""
        ...


_LONGEST_ECHO = 32  # characters of a caller's text that an error repeats


class Predictor:
    """One model behind every protocol; a message may hold at most `max_batch_size` images."""

    def __init__(self, batcher: Batching, *, max_batch_size: int) -> None:
        self.max_batch_size = max_batch_size
        self._batcher = batcher

    @property
    def info(self) -> ModelInfo:
        """Of the model that answers whoever comes now."""
        return self._batcher.info

    @property
    def parameters(self) -> Parameters:
        """Of that model too."""
        return self._batcher.parameters

    @property
    def statistics(self) -> Statistics:
        """Of that model alone."""
        return self._batcher.statistics

    async def answer(self, decode: Decode, encode: Encode, run_encode: RunEncode | None = None) -> bytes:
        """The reply to one message, counted with what each step of it took; what a step raises passes through.

        `decode` gives the images and when the caller stops waiting, on the clock of `time.monotonic`. `encode` is told
        which model answered: that of the moment of `decode`, since nothing else happens before the batcher has the
        request. `run_encode` runs it, if given: on a thread, for example.
        """
        statistics, info, began = self.statistics, self.info, time.perf_counter_ns()
        try:
            pixels, deadline = decode()
            decoded = time.perf_counter_ns()
            predictions = await self._batcher.predict(pixels, deadline)
            predicted = time.perf_counter_ns()
            if run_encode is None:
                reply = encode(predictions, info)
            else:
                reply = await run_encode(lambda: encode(predictions, info))
        except BaseException:
            statistics.fail.add(time.perf_counter_ns() - began)
            raise
        statistics.answered(began, decoded, predicted)
        return reply

    def answer_together(self, decode: DecodeAll, encode: EncodeAll) -> list[bytes] | None:
        """As `answer` for messages that came together; None, with nothing counted, where each is to go by itself.

        That is so where `decode` gives nothing, the deadline has passed or the model is busy. `encode` is told how many
        images each message holds.
        """
        statistics, info, began = self.statistics, self.info, time.perf_counter_ns()
        if (found := decode()) is None or time.monotonic() >= found[1]:
            return None
        images = found[0]
        sizes, pixels, decoded = [*map(len, images)], np.concatenate(images), time.perf_counter_ns()
        try:
            if (predictions := self._batcher.run_together(pixels, len(sizes))) is None:
                return None
            predicted = time.perf_counter_ns()
            replies = encode(predictions, sizes, info)
        except BaseException:
            statistics.fail.add(time.perf_counter_ns() - began, len(sizes))
            raise
        statistics.answered(began, decoded, predicted, len(sizes))
        return replies

    def images(self, data: bytes, field: str) -> Pixels:
        """Bytes as images, a view (n, 784); InvalidInput, naming the field, unless 1 to `max_batch_size` whole ones."""
        images, rest = divmod(len(data), PIXELS)
        if not data:
            raise InvalidInput(field, f"is empty; expected n x {PIXELS} bytes, n at least 1")
        if rest:
            raise InvalidInput(field, f"holds {len(data)} bytes; expected a multiple of {PIXELS}")
        if images > self.max_batch_size:
            raise InvalidInput(
                field, f"holds {images} images; at most {self.max_batch_size} are allowed in one message"
            )
        return np.frombuffer(data, dtype=np.uint8).reshape(images, PIXELS)

    def check_version(self, version: str) -> None:
        """ModelNotFound unless the caller asked for no version or for the one that serves."""
        if version not in ("", self.info.version):
            raise ModelNotFound(f"model_version: there is no version {echo(version)}; {self.info.version!r} serves")


def echo(text: str) -> str:
    """A caller's text as an error may repeat it: quoted, and not much of it."""
    return repr(text[:_LONGEST_ECHO])
