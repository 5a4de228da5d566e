"""Bare ONNX Runtime on one core: the upper limit."""

from __future__ import annotations

import statistics
import time

from bench.messages import sample_images
from bench.server import MODEL
from service.inference.model import Model

SIZES = (1, 8, 64, 256, 1024, 4096)
_SECONDS = 0.2
_REPEATS = 5


def images_a_second() -> dict[int, float]:
    """Images a second for each batch size, the model called in a loop; the median of several."""
    model, results = Model(MODEL), {}
    for size in SIZES:
        pixels, rates = sample_images(size), []
        for _ in range(_REPEATS):
            runs, began = 0, time.perf_counter()
            while time.perf_counter() - began < _SECONDS:
                model.predict(pixels)
                runs += 1
            rates.append(runs * size / (time.perf_counter() - began))
        results[size] = statistics.median(rates)
    return results
