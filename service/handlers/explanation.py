"""The cost of Explain requests, the queue of the thread that computes explanations, and their encoding."""

from __future__ import annotations

import asyncio
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

import numpy as np

from service.errors import MIN_RETRY_AFTER, InvalidInput, Overloaded, deadline_exceeded
from service.handlers.fields import pack_field, pack_floats, pack_header
from service.pb.digits.v1.digits_pb2 import Neuron

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from service.inference.explain import Explainer, Explanations
    from service.network import Pixels, Predictions

MAX_EXPLANATIONS = 1024
"""In one message: images times neurons, those of layer 1 counted twice.

One of layer 1 is 6.3 kB of reply and any other 3.2 kB. So no reply exceeds 4 MiB, a gRPC client's default limit.
"""

_MAX_QUEUED = 64 * MAX_EXPLANATIONS
"""Queued explanations, about 0.3 s of work; the 64 largest requests hold 100 MB."""

_INLINE = 64
"""Explanations that take 0.2 ms, less than a switch to the thread and back. All neurons of one image cost 58."""

_EXPLANATION = bytes([9 << 3 | 2])  # ExplainResponse's
_NEURON, _CONTRIBUTIONS, _GRADIENT = (bytes([number << 3 | 2]) for number in (1, 3, 4))  # Explanation's
_BIAS = bytes([2 << 3 | 5])  # 4 bytes, without a length


class ExplanationQueue:
    """Admits requests by cost and computes explanations on one thread; small requests run on the event loop.

    `on_reject` is called for each request that the full queue rejects.
    """

    def __init__(self, on_reject: Callable[[], object]) -> None:
        self._on_reject = on_reject
        self._queued = 0
        self._seconds_each = 1e-5
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="explain")

    def admit(self, explanations: int) -> None:
        """Add so many explanations to the queue; Overloaded if that exceeds its limit."""
        if self._queued + explanations > _MAX_QUEUED:
            self._on_reject()
            raise Overloaded(
                f"queue full: {self._queued} explanations queued, limit {_MAX_QUEUED}",
                max(MIN_RETRY_AFTER, self._queued * self._seconds_each),
            )
        self._queued += explanations

    def release(self, explanations: int) -> None:
        """Remove so many explanations from the queue, computed or not."""
        self._queued -= explanations

    async def run(self, explanations: int, deadline: float, work: Callable[[], bytes]) -> bytes:
        """Return the result of `work`, which computes so many explanations; DeadlineExceeded if it starts too late."""

        def run() -> tuple[bytes, float]:
            started = time.monotonic()
            if started >= deadline:
                raise deadline_exceeded()
            return work(), time.monotonic() - started

        if explanations <= _INLINE:
            return run()[0]
        reply, seconds = await asyncio.get_running_loop().run_in_executor(self._thread, run)
        self._seconds_each = seconds / explanations
        return reply


class Admission:
    """The place of one request in the queue, from `admit` to the end of the `with` block."""

    def __init__(self, queue: ExplanationQueue, deadline: float) -> None:
        self._queue = queue
        self._deadline = deadline
        self._explanations = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._queue.release(self._explanations)

    def admit(self, explanations: int) -> None:
        """As `ExplanationQueue.admit`."""
        self._queue.admit(explanations)
        self._explanations = explanations

    async def run(self, work: Callable[[], bytes]) -> bytes:
        """As `ExplanationQueue.run`."""
        return await self._queue.run(self._explanations, self._deadline, work)


def compute_cost(neurons: Sequence[Neuron], sizes: Sequence[int], images: int) -> int:
    """Count the explanations of a request, those of layer 1 twice; InvalidInput for wrong neurons or too many."""
    first: dict[tuple[int, int], int] = {}
    for i, neuron in enumerate(neurons):
        if not 1 <= neuron.layer <= 3:
            raise InvalidInput(f"neurons[{i}].layer", f"is {neuron.layer}; expected 1, 2 or 3")
        size = sizes[neuron.layer - 1]
        if neuron.index >= size:
            raise InvalidInput(
                f"neurons[{i}].index", f"is {neuron.index}; layer {neuron.layer} has neurons 0 to {size - 1}"
            )
        if (before := first.setdefault((neuron.layer, neuron.index), i)) != i:
            raise InvalidInput(f"neurons[{i}]", f"is neurons[{before}] once more; expected each neuron at most once")
    if (explanations := count_explanations(neurons, images)) > MAX_EXPLANATIONS:
        raise InvalidInput(
            "neurons",
            f"{explanations} explanations, {images} images x {len(neurons) or 1} neurons with those of "
            f"layer 1 counted twice; expected at most {MAX_EXPLANATIONS}, which keeps the reply below 4 MiB",
        )
    return explanations


def count_explanations(neurons: Sequence[Neuron], images: int) -> int:
    """Count images times neurons, those of layer 1 twice; without neurons, the output of each image's digit."""
    return images * (sum(2 if neuron.layer == 1 else 1 for neuron in neurons) or 1)


def pack_explanations(
    explainer: Explainer, neurons: list[tuple[int, int]], pixels: Pixels, predictions: Predictions
) -> list[bytes]:
    """Pack a field for each neuron of each image, image by image; without neurons, of each image's digit."""
    count = len(neurons) or 1
    requested = np.array(neurons * len(pixels) or [(3, digit) for digit in predictions.digit], np.int64)
    fields = [b""] * len(requested)
    for layer in (1, 2, 3):
        places = np.flatnonzero(requested[:, 0] == layer)
        indices = requested[places, 1]
        explanations = explainer.explain(layer, indices, places // count, pixels, predictions)
        for place, packed in zip(places.tolist(), _pack_layer(layer, indices.tolist(), explanations), strict=True):
            fields[place] = packed
    return fields


def _pack_layer(layer: int, indices: list[int], explanations: Explanations) -> list[bytes]:
    contributions, gradients = pack_floats(explanations.contributions), pack_floats(explanations.gradients)
    below, pixels = (4 * array.shape[1] for array in explanations[1:])
    middle, end = pack_header(_CONTRIBUTIONS, below), pack_header(_GRADIENT, pixels)
    heads = dict[int, bytes]()
    for index, bias in zip(indices, explanations.biases.tolist(), strict=True):
        if index not in heads:
            neuron = pack_field(_NEURON, Neuron(layer=layer, index=index).SerializeToString())
            start = neuron + _BIAS + struct.pack("<f", bias) + middle
            heads[index] = pack_header(_EXPLANATION, len(start) + below + len(end) + pixels) + start
    return [
        b"".join(
            (heads[index], contributions[i * below : (i + 1) * below], end, gradients[i * pixels : (i + 1) * pixels])
        )
        for i, index in enumerate(indices)
    ]
