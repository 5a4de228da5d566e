"""The model that serves: monitored, counted, and swapped when the reloader loads another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.inference.plugins import short_name
from service.inference.providers import CPU
from service.observability.statistics import Statistics

if TYPE_CHECKING:
    from service.batching.batcher import Batcher, InferenceModel
    from service.inference.model import Model
    from service.observability.metrics import Metrics
    from service.runtime.device_recovery import DeviceRecovery
    from service.runtime.reloader import Reloader
    from service.runtime.watchdog import Watchdog
    from service.transports.native.transport import NativeBatcher


class ModelSwapper:
    """Gives the batcher each model that the reloader loads, behind the watchdog and, on a device, a circuit breaker."""

    def __init__(
        self, reloader: Reloader, watchdog: Watchdog, device_recovery: DeviceRecovery, metrics: Metrics, transport: str
    ) -> None:
        self._reloader = reloader
        self._watchdog = watchdog
        self._device_recovery = device_recovery
        self._metrics = metrics
        self._transport = transport
        self._batcher: Batcher | NativeBatcher
        self.monitored = self._monitor(reloader.model)
        """The first model, for the batcher."""

    @property
    def model(self) -> Model:
        """The model that serves now."""
        return self._reloader.model

    def connect(self, batcher: Batcher | NativeBatcher) -> None:
        """Swap models in `batcher`, which has the first one."""
        self._batcher = batcher
        self._publish(self.model)

    async def reload(self) -> None:
        """Load the model that should serve now; ReloadRejected if it cannot."""
        await self._reloader.reload(self._swap)

    async def reload_in_background(self) -> None:
        """Do the same as `reload`; a rejection is logged and counted."""
        await self._reloader.reload_in_background(self._swap, force=True)

    async def poll(self, interval: float) -> None:
        """Check for another model every `interval` seconds, until cancelled."""
        await self._reloader.poll(self._swap, interval)

    def _swap(self, model: Model) -> None:
        self._batcher.swap(self._monitor(model), Statistics())
        self._publish(model)

    def _monitor(self, model: Model) -> InferenceModel:
        """Add the watchdog, and a circuit breaker unless the CPU runs the model, whose failure is a bug."""
        is_on_cpu = short_name(model.provider) == CPU
        return self._watchdog.monitor(model if is_on_cpu else self._device_recovery.guard(model))

    def _publish(self, model: Model) -> None:
        self._metrics.set_model_info(
            model.info, provider=model.provider, runtime=model.runtime, transport=self._transport
        )
