"""The statistics of a model since its start, as Triton's ModelStatistics defines them, over all protocols."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Duration:
    """A count and a total of nanoseconds."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int, times: int = 1) -> None:
        """Add `times` events of `ns` nanoseconds each."""
        self.count += times
        self.ns += ns * times


@dataclass(slots=True)
class Statistics:
    """The statistics of one model. `success` to `compute_output` count requests, `batches` runs by number of images.

    As in Triton, each request of a shared run has the duration of the whole run. Runs are sequential, and all
    else is on the event loop, so no lock is needed.
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

    def record_success(self, started: int, decoded: int, predicted: int, requests: int = 1) -> None:
        """Count requests whose replies are encoded now; all times are of `time.perf_counter_ns`."""
        ended = time.perf_counter_ns()
        self.compute_input.add(decoded - started, requests)
        self.compute_output.add(ended - predicted, requests)
        self.success.add(ended - started, requests)

    def record_run(self, images: int, ns: int) -> None:
        """Count one run of the model."""
        self.images += images
        self.last_inference_ms = time.time_ns() // 1_000_000
        batch = self.batches.get(images)
        if batch is None:
            batch = self.batches[images] = Duration()
        batch.add(ns)

    def add_runs(self, images: int, runs: int, ns: int) -> None:
        """Add runs of `images` each, with `ns` nanoseconds in total."""
        self.images += images * runs
        batch = self.batches.setdefault(images, Duration())
        batch.count += runs
        batch.ns += ns

    @property
    def runs(self) -> int:
        """Return the number of runs."""
        return sum(batch.count for batch in self.batches.values())
