"""What the model did since the start, counted as Triton's ModelStatistics counts it; whichever protocol asked."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Duration:
    """How often, and for how many nanoseconds in all."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int, times: int = 1) -> None:
        """Count `times` more, of `ns` nanoseconds each."""
        self.count += times
        self.ns += ns * times


@dataclass(slots=True)
class Statistics:
    """One model's. `success` to `compute_output` count requests, `batches` runs by their number of images.

    Where several requests share a run each of them took the whole of it, as in Triton. Only one run is under way at
    any time and everything else happens on the event loop, so that no lock is needed.
    """

    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    batches: dict[int, Duration] = field(default_factory=dict)
    images: int = 0
    last_inference_ms: int = 0

    def answered(self, began: int, decoded: int, predicted: int, requests: int = 1) -> None:
        """Count requests whose replies are encoded now; all times of `time.perf_counter_ns`."""
        ended = time.perf_counter_ns()
        self.compute_input.add(decoded - began, requests)
        self.compute_output.add(ended - predicted, requests)
        self.success.add(ended - began, requests)

    def record_run(self, images: int, ns: int) -> None:
        """Count one run of the model."""
        self.images += images
        self.last_inference_ms = time.time_ns() // 1_000_000
        batch = self.batches.get(images)
        if batch is None:
            batch = self.batches[images] = Duration()
        batch.add(ns)

    def add_runs(self, images: int, runs: int, ns: int) -> None:
        """Count runs of `images` each that happened elsewhere, `ns` nanoseconds in all."""
        self.images += images * runs
        batch = self.batches.setdefault(images, Duration())
        batch.count += runs
        batch.ns += ns

    @property
    def runs(self) -> int:
        """Return the number of runs."""
        return sum(batch.count for batch in self.batches.values())
