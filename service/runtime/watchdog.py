"""Whether what must go on does: that each run of the model comes back, the event loop turns, and threads live.

A run that never ends, as on a GPU that hangs, raises nothing: callers only wait, and health would say SERVING for ever.
A thread of its own looks every second. What it finds is for health, the metrics and the log to tell; whether to start
the process anew is for whoever started it to judge.
"""

from __future__ import annotations

import sys
import threading
import traceback
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from structlog.typing import FilteringBoundLogger

    from service.batching.batcher import InferenceModel
    from service.network import Pixels, Predictions
    from service.observability.metrics import Metrics

TICK = 1.0
"""Seconds between two looks."""

_FRAMES = 3
"""Innermost calls that the log names of a thread that does not go on."""


class Watchdog:
    """Looks after `loop`, models and threads; `changed` is called, on the loop, when `unhealthy_reason` has.

    What takes more than `patience` seconds is stuck; 0 is never. Time is counted in ticks of its own thread, so that a
    process that was frozen as a whole, or a clock that jumped, is no stall.
    """

    def __init__(
        self,
        patience: float,
        metrics: Metrics,
        log: FilteringBoundLogger,
        loop: asyncio.AbstractEventLoop,
        changed: Callable[[], object],
    ) -> None:
        self._patience = patience
        self._metrics = metrics
        self._log = log
        self._loop = loop
        self._changed = changed
        self._tick = self._turned = 0
        self._runs: dict[int, int] = {}
        self._threads: Sequence[threading.Thread] = ()
        self._loop_thread = threading.get_ident()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watchdog", daemon=True)

    def watch(self, model: InferenceModel) -> Watched:
        """`model`, each of whose runs is known while it is under way."""
        return Watched(model, self._began, self._came_back)

    @property
    def unhealthy_reason(self) -> str:
        """What does not go on, in a line for the operator; nothing while all does. For any thread to ask."""
        stuck = self._stuck()
        return stuck.what if stuck else ""

    def start(self, threads: Sequence[threading.Thread]) -> None:
        """Look from now on, on the thread of the event loop; `threads` must live until `stop`."""
        self._loop_thread = threading.get_ident()
        self._threads = threads
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _began(self) -> None:
        self._runs[threading.get_ident()] = self._tick

    def _came_back(self) -> None:
        del self._runs[threading.get_ident()]

    def _stuck(self) -> _Stuck | None:
        for ended in self._threads:
            if not ended.is_alive():
                return _Stuck(f"the thread {ended.name} has ended", 0)
        tick, runs = self._tick, self._runs.copy()
        running, since = min(runs.items(), key=lambda run: run[1], default=(0, tick))
        for what, ticks, thread in (  # a run on the event loop holds that up too, and is what should be told
            ("a run of the model has been under way", tick - since, running),
            ("the event loop has stood still", tick - self._turned, self._loop_thread),
        ):
            if 0 < self._patience < ticks * TICK:
                return _Stuck(f"{what} for {ticks * TICK:.0f} s", thread)
        return None

    def _look(self) -> None:
        was_stuck = False
        while not self._ended.wait(TICK):
            self._tick += 1
            self._loop.call_soon_threadsafe(self._turn)
            stuck = self._stuck()
            if bool(stuck) != was_stuck:
                was_stuck = not was_stuck
                self._tell(stuck)
                self._loop.call_soon_threadsafe(self._changed)

    def _turn(self) -> None:
        self._turned = self._tick

    def _tell(self, stuck: _Stuck | None) -> None:
        if stuck is None:
            self._log.info("watchdog recovered")
        else:
            self._metrics.stalls.inc()
            self._log.error("watchdog stall", reason=stuck.what, stack=_place(stuck.thread))


class _Stuck(NamedTuple):
    what: str
    thread: int


class Watched:
    """A model that says when a run begins and when it has come back."""

    __slots__ = ("_began", "_came_back", "_model", "info", "parameters")

    def __init__(self, model: InferenceModel, began: Callable[[], None], came_back: Callable[[], None]) -> None:
        self._model = model
        self.info = model.info
        self.parameters = model.parameters
        self._began = began
        self._came_back = came_back

    def predict(self, pixels: Pixels) -> Predictions:
        """As the model's."""
        self._began()
        try:
            return self._model.predict(pixels)
        finally:
            self._came_back()


def _place(thread: int) -> list[str]:
    """Where that thread is, from the outer to the innermost call."""
    frame = sys._current_frames().get(thread)  # noqa: SLF001 (documented, and the only way)
    if frame is None:
        return []
    calls = traceback.extract_stack(frame)[-_FRAMES:]
    return [f"{call.filename.rpartition('/')[2]}:{call.lineno} {call.name}" for call in calls]
