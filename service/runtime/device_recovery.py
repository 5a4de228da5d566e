"""A circuit breaker around a model on a device, and the task that recreates the session of one that fails.

No run moves to the CPU. A failed run fails its own clients with UNAVAILABLE, so that they may send the request again.
After FAILURE_THRESHOLD consecutive failures, or one of a session that no run can use again, the model is unhealthy.
Health then reports NOT_SERVING, calls fail at once, and a background task recreates the session until one passes the
checks of a start. The process does not end itself: only its supervisor, which sees NOT_SERVING, can judge whether a
restart would help.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

from service.errors import ModelUnavailable, ProviderError
from service.inference.provider_diagnostics import session_fault

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import FilteringBoundLogger

    from service.inference.model import Model
    from service.network import Pixels, Predictions
    from service.observability.metrics import Metrics

FAILURE_THRESHOLD = 3
"""Consecutive failed runs; a single one may be a batch too large for the memory that other processes leave."""

MIN_BACKOFF, MAX_BACKOFF = 1.0, 60.0
"""Seconds between attempts. The first is immediate, unless the model has been healthy for less than MAX_BACKOFF."""


class CircuitBreaker:
    """`model` as the batcher sees it; `on_open` is called, on the thread of the run, when it becomes unhealthy."""

    def __init__(self, model: Model, metrics: Metrics, log: FilteringBoundLogger, on_open: Callable[[], None]) -> None:
        self.info = model.info
        self.parameters = model.parameters
        self.provider = model.provider
        self.recreate_session = model.recreate_session
        self.unhealthy_reason = ""
        self._model = model
        self._metrics = metrics
        self._log = log
        self._on_open = on_open
        self._consecutive_failures = 0  # a race may lose a failure; then one more run fails before the breaker opens

    def predict(self, pixels: Pixels) -> Predictions:
        """As `Model.predict`; ModelUnavailable if the run fails, or while the breaker is open."""
        if self.unhealthy_reason:
            raise ModelUnavailable(f"the model cannot run: {self.provider} has failed and is being tried again")
        try:
            predictions = self._model.predict(pixels)
        except Exception as e:
            self._record_failure(e)
            raise ModelUnavailable(f"the model's run on {self.provider} failed: send the request again") from e
        self._consecutive_failures = 0
        return predictions

    @property
    def healthy(self) -> bool:
        """Whether runs go through."""
        return not self.unhealthy_reason

    def reset(self) -> None:
        """Let runs through again."""
        self._consecutive_failures = 0
        self.unhealthy_reason = ""

    def _record_failure(self, error: Exception) -> None:
        self._consecutive_failures += 1
        self._metrics.device_failures.labels("memory" if "out of memory" in str(error).lower() else "run").inc()
        self._log.error(
            "run failed", provider=self.provider, consecutive_failures=self._consecutive_failures, exc_info=error
        )
        fault = session_fault(str(error))
        if self.healthy and (fault or self._consecutive_failures >= FAILURE_THRESHOLD):
            fault = fault or f"failed {FAILURE_THRESHOLD} runs in a row"
            self.unhealthy_reason = f"{self.provider} {fault} and is being tried again"
            self._on_open()


class DeviceRecovery:
    """Recreates the session of the model that serves when it fails; `on_change` is called when its health changes.

    Construct it on the event loop, on which `guard` and `run` belong too.
    """

    def __init__(self, metrics: Metrics, log: FilteringBoundLogger, on_change: Callable[[], object]) -> None:
        self._metrics = metrics
        self._log = log
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._state_changed = asyncio.Event()
        self._breaker: CircuitBreaker | None = None

    @property
    def unhealthy_reason(self) -> str:
        """Why the model cannot serve, in a line for the operator; empty while it is healthy."""
        return "" if self._breaker is None else self._breaker.unhealthy_reason

    def guard(self, model: Model) -> CircuitBreaker:
        """Put a circuit breaker around `model`, which takes the place of the model before."""
        self._breaker = CircuitBreaker(model, self._metrics, self._log, self._notify)
        self._state_changed.set()
        return self._breaker

    async def run(self) -> None:
        """Wait until the model is unhealthy, report it, recreate its session, report that; until cancelled."""
        backoff, healthy_since = 0.0, float("-inf")
        while True:
            await self._state_changed.wait()
            self._state_changed.clear()
            if not self.unhealthy_reason:
                continue
            unhealthy_since = time.monotonic()
            backoff = 0.0 if unhealthy_since - healthy_since > MAX_BACKOFF else backoff
            self._log.error("model unhealthy", reason=self.unhealthy_reason)
            self._on_change()
            while self.unhealthy_reason:
                await self._back_off(backoff)
                backoff = min(MAX_BACKOFF, max(MIN_BACKOFF, 2 * backoff))
                await self._attempt_recovery()
            healthy_since = time.monotonic()
            self._on_change()
            self._log.info("model recovered", seconds=round(healthy_since - unhealthy_since, 3))

    def _notify(self) -> None:
        self._loop.call_soon_threadsafe(self._state_changed.set)

    async def _back_off(self, seconds: float) -> None:
        """Wait, or until another model takes the place of this one."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._state_changed.wait(), seconds)
        self._state_changed.clear()

    async def _attempt_recovery(self) -> None:
        breaker = self._breaker
        if breaker is None or breaker.healthy:
            return
        try:
            await asyncio.to_thread(breaker.recreate_session)
        except Exception as e:  # noqa: BLE001 (a later attempt may succeed after any failure)
            self._metrics.device_failures.labels("session").inc()
            reason = e.reason if isinstance(e, ProviderError) else repr(e)
            self._log.error("session recreation failed", provider=breaker.provider, reason=reason)
        else:
            breaker.reset()
