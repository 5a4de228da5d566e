"""The steps of every request for predictions, in either protocol."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

import numpy as np

from service.errors import InvalidInput, ModelNotFound
from service.handlers.request_timer import RequestTimer
from service.network import PIXELS

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from service.network import ModelInfo, Parameters, Pixels, Predictions
    from service.observability.statistics import Statistics

_MAX_ECHO = 32  # characters of a client's text that an error repeats


class BatcherProtocol(Protocol):
    """The batcher as handlers see it; `service.batching.batcher.Batcher` is one.

    `info`, `parameters` and `statistics` belong to the active model, which answers the next request.
    """

    @property
    def info(self) -> ModelInfo:
        """The metadata of the model file."""
        ...

    @property
    def parameters(self) -> Parameters:
        """The model's weights and biases."""
        ...

    @property
    def statistics(self) -> Statistics:
        """The model's statistics."""
        ...

    def predict(self, pixels: Pixels, deadline: float = ...) -> Awaitable[Predictions]:
        """Predict the images of one request; raises DeadlineExceeded or Overloaded."""
        ...

    def run_batch(self, pixels: Pixels, requests: int) -> Predictions | None:
        """Predict the images of several requests at once, without waiting; None if that is not possible now."""
        ...


class Predictor:
    """The model behind every protocol; a message may hold at most `max_batch_size` images.

    A handler reads `info` first and calls `predict` without waiting in between, so that both belong to one model.
    """

    def __init__(self, batcher: BatcherProtocol, *, max_batch_size: int) -> None:
        self.max_batch_size = max_batch_size
        self._batcher = batcher

    @property
    def info(self) -> ModelInfo:
        """The metadata of the active model."""
        return self._batcher.info

    @property
    def parameters(self) -> Parameters:
        """The weights and biases of the active model."""
        return self._batcher.parameters

    @property
    def statistics(self) -> Statistics:
        """The statistics of the active model."""
        return self._batcher.statistics

    def time_request(self) -> RequestTimer:
        """Return the timer of one request."""
        return RequestTimer(self._batcher.statistics)

    def time_batch(self, requests: int) -> RequestTimer:
        """Return the timer of so many requests that one run answers."""
        return RequestTimer(self._batcher.statistics, requests)

    def predict(self, pixels: Pixels, deadline: float) -> Awaitable[Predictions]:
        """Predict the images of one request; raises DeadlineExceeded or Overloaded."""
        return self._batcher.predict(pixels, deadline)

    def run_batch(self, pixels: Pixels, requests: int, deadline: float) -> Predictions | None:
        """Predict the images of several requests at once; None if the deadline has passed or the model is busy."""
        if time.monotonic() >= deadline:
            return None
        return self._batcher.run_batch(pixels, requests)

    def view_images(self, data: bytes, field: str) -> Pixels:
        """View bytes as images (n, 784); InvalidInput for `field` unless n is a whole number, 1 to `max_batch_size`."""
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

    def check_model(self, name: str, version: str) -> None:
        """Raise ModelNotFound unless the active model has this name, and this version if one is given."""
        if name != self.info.name:
            raise ModelNotFound(f"model_name: there is no model {echo(name)}; {self.info.name!r} serves")
        self.check_version(version)

    def check_version(self, version: str) -> None:
        """Raise ModelNotFound unless `version` is empty or the active model's."""
        if version not in ("", self.info.version):
            raise ModelNotFound(f"model_version: there is no version {echo(version)}; {self.info.version!r} serves")


def echo(text: str) -> str:
    """Quote a client's text for an error message, shortened."""
    return repr(text[:_MAX_ECHO])
