"""A model on a device, which may fail while it serves: what callers hear of it, and how it comes back.

Nothing moves to the CPU. A failed run fails its own callers with UNAVAILABLE, which says that they may try again.
After several in a row the model is unwell: health says NOT_SERVING, calls fail at once, and in the background new
sessions are tried until one is as good as at a start. The process does not end itself: whether that would help is for
whoever started it to judge, who sees NOT_SERVING.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

from service.errors import ModelUnavailable, ProviderError

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import FilteringBoundLogger

    from service.inference.model import Model
    from service.network import Pixels, Predictions
    from service.observability.metrics import Metrics

FAILURES_IN_A_ROW = 3
"""Runs; one alone may be a batch too large for the memory that others have left."""

SHORTEST_WAIT, LONGEST_WAIT = 1.0, 60.0
"""Seconds between tries. The first comes at once, unless the model has been well for less than the longest."""


class OnDevice:
    """`model` as the batcher sees it; `failing` is called, by whatever thread ran it, when it has become unwell."""

    def __init__(self, model: Model, metrics: Metrics, log: FilteringBoundLogger, failing: Callable[[], None]) -> None:
        self.info = model.info
        self.parameters = model.parameters
        self.provider = model.provider
        self.renew = model.renew
        self.well = True
        self._model = model
        self._metrics = metrics
        self._log = log
        self._failing = failing
        self._in_a_row = 0  # threads may lose one another's failures, which only the next has to make good

    def predict(self, pixels: Pixels) -> Predictions:
        """As `Model.predict`, but ModelUnavailable where the run fails, or others have and no session is back yet."""
        if not self.well:
            raise ModelUnavailable(f"the model cannot run: {self.provider} has failed and is being tried again")
        try:
            found = self._model.predict(pixels)
        except Exception as e:
            self._failed(e)
            raise ModelUnavailable(f"the model's run on {self.provider} failed: send the request again") from e
        self._in_a_row = 0
        return found

    def recovered(self) -> None:
        """Run again."""
        self._in_a_row = 0
        self.well = True

    def _failed(self, error: Exception) -> None:
        self._in_a_row += 1
        self._metrics.device_failures.labels("memory" if "out of memory" in str(error).lower() else "run").inc()
        self._log.error("run failed", provider=self.provider, consecutive_failures=self._in_a_row, exc_info=error)
        if self.well and self._in_a_row >= FAILURES_IN_A_ROW:
            self.well = False
            self._failing()


class Keeper:
    """Keeps the model that serves well; `changed` is called when `trouble` has, and tells health.

    Construct it on the event loop, on which `keep` and `run` belong too.
    """

    def __init__(self, metrics: Metrics, log: FilteringBoundLogger, changed: Callable[[], object]) -> None:
        self._metrics = metrics
        self._log = log
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._kept: OnDevice | None = None

    @property
    def trouble(self) -> str:
        """What ails the model that serves, in a line for the operator; nothing while it is well."""
        if self._kept is None or self._kept.well:
            return ""
        return f"{self._kept.provider} failed {FAILURES_IN_A_ROW} runs in a row and is being tried again"

    def keep(self, model: Model) -> OnDevice:
        """`model`, watched from now on in place of the one before."""
        self._kept = OnDevice(model, self._metrics, self._log, self._wake)
        self._news.set()
        return self._kept

    async def run(self) -> None:
        """For ever: wait until the model that serves is unwell, say so, bring it back, say so."""
        wait, well_since = 0.0, float("-inf")
        while True:
            await self._news.wait()
            self._news.clear()
            if not self.trouble:
                continue
            since = time.monotonic()
            wait = 0.0 if since - well_since > LONGEST_WAIT else wait
            self._log.error("model unhealthy", reason=self.trouble)
            self._changed()
            while self.trouble:
                await self._pause(wait)
                wait = min(LONGEST_WAIT, max(SHORTEST_WAIT, 2 * wait))
                await self._try()
            well_since = time.monotonic()
            self._changed()
            self._log.info("model recovered", seconds=round(well_since - since, 3))

    def _wake(self) -> None:
        self._loop.call_soon_threadsafe(self._news.set)

    async def _pause(self, seconds: float) -> None:
        """Wait, or until another model is kept."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), seconds)
        self._news.clear()

    async def _try(self) -> None:
        kept = self._kept
        if kept is None or kept.well:
            return
        try:
            await asyncio.to_thread(kept.renew)
        except Exception as e:  # noqa: BLE001 (whatever failed, a later try may succeed)
            self._metrics.device_failures.labels("session").inc()
            reason = e.reason if isinstance(e, ProviderError) else repr(e)
            self._log.error("session recreation failed", provider=kept.provider, reason=reason)
        else:
            kept.recovered()
