"""Detects hung runs of the model, a blocked event loop and dead threads.

A run that never ends, such as on a GPU that hangs, raises no error: clients only wait, and health stays SERVING. A
thread of its own checks every second. Health, the metrics and the log report a stall; the orchestrator decides whether
to restart the process.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import traceback
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from structlog.typing import FilteringBoundLogger

    from service.batching.batcher import InferenceModel
    from service.network import Pixels, Predictions
    from service.observability.metrics import Metrics

TICK = 1.0
"""Seconds between two checks."""

_NO_THREAD = 0
"""In place of the thread of a run that Python does not see: its stack is unknown."""

_STACK_DEPTH = 3
"""Innermost calls of a stalled thread in the log."""


class Watchdog:
    """Monitors models, the event loop and threads; `on_change` is called, on the loop, when `unhealthy_reason` changes.

    A stall takes more than `timeout` seconds; 0 disables it. Time is counted in ticks of its own thread, so that a
    frozen process or a clock that jumps is no stall.
    """

    def __init__(
        self, timeout: float, metrics: Metrics, log: FilteringBoundLogger, on_change: Callable[[], object]
    ) -> None:
        self._timeout = timeout
        self._metrics = metrics
        self._log = log
        self._on_change = on_change
        self._loop: asyncio.AbstractEventLoop
        self._tick = self._loop_tick = 0
        self._runs: dict[int, int] = {}
        self._native_runs: dict[int, int] = {}
        self._active_runs: Callable[[], Sequence[int]] = tuple
        self._threads: Sequence[threading.Thread] = ()
        self._loop_thread = threading.get_ident()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._check_until_stopped, name="watchdog", daemon=True)

    def monitor(self, model: InferenceModel) -> MonitoredModel:
        """Wrap `model`, so that the watchdog knows the runs in progress."""
        return MonitoredModel(model, self._on_run_start, self._on_run_end)

    @property
    def unhealthy_reason(self) -> str:
        """The stall, in a line for the operator; empty while there is none. Any thread may read it."""
        stall = self._find_stall()
        return stall.reason if stall else ""

    def start(self, threads: Sequence[threading.Thread], active_runs: Callable[[], Sequence[int]] = tuple) -> None:
        """Start the checks, on the event loop; `threads` must live until `stop`.

        `active_runs` returns the numbers of the runs in progress that Python does not see.
        """
        self._active_runs = active_runs
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._threads = threads
        self._thread.start()

    def stop(self) -> None:
        """Stop the checks."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def _on_run_start(self) -> None:
        self._runs[threading.get_ident()] = self._tick

    def _on_run_end(self) -> None:
        del self._runs[threading.get_ident()]

    def _find_stall(self) -> _Stall | None:
        for thread in self._threads:
            if not thread.is_alive():
                return _Stall(f"the thread {thread.name} has ended", 0)
        tick, runs = self._tick, self._runs.copy()
        runs[_NO_THREAD] = min(self._native_runs.values(), default=tick)
        run_thread, run_start = min(runs.items(), key=lambda run: run[1])
        # A run on the event loop blocks that too, and is the cause to report.
        for description, ticks, thread_id in (
            ("a run of the model has been under way", tick - run_start, run_thread),
            ("the event loop has stood still", tick - self._loop_tick, self._loop_thread),
        ):
            if 0 < self._timeout < ticks * TICK:
                return _Stall(f"{description} for {ticks * TICK:.0f} s", thread_id)
        return None

    def _check_until_stopped(self) -> None:
        was_stalled = False
        while not self._stopped.wait(TICK):
            self._tick += 1
            self._native_runs = {run: self._native_runs.get(run, self._tick) for run in self._active_runs()}
            self._loop.call_soon_threadsafe(self._on_loop_turn)
            stall = self._find_stall()
            if bool(stall) != was_stalled:
                was_stalled = not was_stalled
                self._report(stall)
                self._loop.call_soon_threadsafe(self._on_change)

    def _on_loop_turn(self) -> None:
        self._loop_tick = self._tick

    def _report(self, stall: _Stall | None) -> None:
        if stall is None:
            self._log.info("watchdog recovered")
        else:
            self._metrics.stalls.inc()
            self._log.error("watchdog stall", reason=stall.reason, stack=_stack_of(stall.thread_id))


class _Stall(NamedTuple):
    reason: str
    thread_id: int


class MonitoredModel:
    """A model that reports the start and the end of each run."""

    __slots__ = ("_model", "_on_run_end", "_on_run_start", "info", "parameters")

    def __init__(self, model: InferenceModel, on_run_start: Callable[[], None], on_run_end: Callable[[], None]) -> None:
        self._model = model
        self.info = model.info
        self.parameters = model.parameters
        self._on_run_start = on_run_start
        self._on_run_end = on_run_end

    @property
    def float_graph(self) -> bytes | None:
        """The graph for a run that Python does not see, if the model has one."""
        return getattr(self._model, "float_graph", None)

    def predict(self, pixels: Pixels) -> Predictions:
        """Run the model."""
        self._on_run_start()
        try:
            return self._model.predict(pixels)
        finally:
            self._on_run_end()


def _stack_of(thread_id: int) -> list[str]:
    """Return the innermost calls of a thread, the outer ones first."""
    frame = sys._current_frames().get(thread_id)  # noqa: SLF001 (documented, and the only way)
    if frame is None:
        return []
    calls = traceback.extract_stack(frame)[-_STACK_DEPTH:]
    return [f"{call.filename.rpartition('/')[2]}:{call.lineno} {call.name}" for call in calls]
