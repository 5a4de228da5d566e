"""Reloads the model while it serves: another version is loaded, verified, warmed up, then swapped in or rejected."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, TypeVar

from service.errors import ModelFileError, ProviderError, ReloadRejected

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import FilteringBoundLogger

    from service.inference.model import Model
    from service.inference.repository import Candidate, ModelRepository
    from service.observability.metrics import Metrics

READ_TIMEOUT = 120.0
"""Seconds for reading the folder, or for loading a model; TensorRT builds its engines in less."""

RETRY_INTERVAL = 10.0
"""Seconds between two attempts at a rejected file that has not changed since: its volume or device may have."""

T = TypeVar("T")


class Reloader:
    """Holds `model`, the one that serves; the constructor loads the first.

    If the newest version in a folder cannot serve, the newest that can is the first. A bad file does not prevent a
    restart. Raises ModelFileError if none can, ProviderError if the device cannot run it.
    """

    def __init__(self, repository: ModelRepository, metrics: Metrics, log: FilteringBoundLogger) -> None:
        self._repository = repository
        self._metrics = metrics
        self._log = log
        self._lock = asyncio.Lock()
        self._rejection = ""
        self._retry_at = 0.0
        self._last_fingerprint: object = None
        self._hung_read: asyncio.Future[Any] | None = None
        self._ignored: dict[str, str] = {}
        self._warned_of: dict[str, str] = {}
        self.model = self._load_first()

    async def reload(self, swap: Callable[[Model], None], *, force: bool = True) -> None:
        """Load the file that should serve now, if it is another than before, and pass the model to `swap`.

        Raises ReloadRejected if it cannot serve. A rejected file is loaded again with `force`, and without it every
        RETRY_INTERVAL; the same rejection is logged and counted again only with `force`.
        """
        async with self._lock:
            fingerprint = await self._fingerprint()
            is_retry_due = bool(self._rejection) and (force or time.monotonic() >= self._retry_at)
            if fingerprint == self._last_fingerprint and not is_retry_due:
                return
            is_new, self._last_fingerprint = fingerprint != self._last_fingerprint, fingerprint
            try:
                model = await self._run_on_thread(self._load_newest)
            except (ModelFileError, ProviderError) as e:
                self._retry_at = time.monotonic() + RETRY_INTERVAL
                if force or is_new or str(e) != self._rejection:
                    self._record_rejection(e)
                raise ReloadRejected(f"version {self.model.info.version} still serves: {self._rejection}") from None
            self._rejection = ""
            self._metrics.last_reload_successful.labels("model").set(1)
            if model.info != self.model.info:
                swap(model)
                self._record_swap(model)

    async def poll(self, swap: Callable[[Model], None], interval: float) -> None:
        """Reload every `interval` seconds, until cancelled."""
        while True:
            await asyncio.sleep(interval)
            await self.reload_in_background(swap, force=False)

    async def reload_in_background(self, swap: Callable[[Model], None], *, force: bool) -> None:
        """Do the same as `reload` without waiting: a rejection is logged and counted, not raised."""
        try:
            await self.reload(swap, force=force)
        except ReloadRejected:
            pass
        except Exception as e:  # noqa: BLE001 (the old model still serves after any failure, and a later reload may succeed)
            self._metrics.record_reload("model", "rejected")
            self._log.error("model reload failed", exc_info=e)

    async def _fingerprint(self) -> object:
        """Return a value that changes when another file should serve, or when none can."""
        try:
            return await self._run_on_thread(self._newest_fingerprint)
        except ModelFileError as e:
            return str(e)

    def _newest_fingerprint(self) -> object:
        self._warn_of_ignored(self._ignored)
        return self._repository.candidates()[0].fingerprint()

    async def _run_on_thread(self, read: Callable[[], T]) -> T:
        """Return the result of `read`; ModelFileError if its volume hangs, at once while an earlier read still does."""
        if self._hung_read is None or self._hung_read.done():
            reading: asyncio.Future[T] = asyncio.ensure_future(asyncio.to_thread(read))
            done, _ = await asyncio.wait({reading}, timeout=READ_TIMEOUT)
            if done:
                return reading.result()
            reading.add_done_callback(_retrieve_error)
            self._hung_read = reading
        path = self._repository.path
        raise ModelFileError(f"{path}: could not be read within {READ_TIMEOUT:g} s: its volume does not answer")

    def _load_first(self) -> Model:
        candidates = self._repository.candidates()
        self._warn_of_ignored()
        self._last_fingerprint = candidates[0].fingerprint()
        for candidate in candidates[:-1]:
            try:
                return self._repository.load(candidate)
            except ModelFileError as e:
                self._record_rejection(e)
        return self._repository.load(candidates[-1])

    def _warn_of_ignored(self, before: dict[str, str] | None = None) -> None:
        """Warn once of each folder that cannot serve and existed `before`: another may be incomplete."""
        self._ignored = folders = self._repository.skipped_folders()
        stable = {name: reason for name, reason in folders.items() if before is None or before.get(name) == reason}
        for name, reason in stable.items():
            if self._warned_of.get(name) != reason:
                self._log.warning("model folder ignored", folder=str(self._repository.path / name), reason=reason)
        self._warned_of = stable
        self._metrics.model_folders_ignored.set(len(stable))

    def _load_newest(self) -> Model:
        candidate: Candidate = self._repository.candidates()[0]
        model = self._repository.load(candidate)
        if model.info.name != (name := self.model.info.name):
            raise ModelFileError(f"{candidate.path}: is the model {model.info.name!r}; expected {name!r}")
        return model

    def _record_swap(self, model: Model) -> None:
        before, self.model = self.model.info, model
        self._metrics.record_reload("model", "loaded")
        self._log.info(
            "model loaded",
            model_version=model.info.version,
            previous_version=before.version,
            activation=model.info.activation,
            weights_sha256=model.info.weights_sha256,
        )

    def _record_rejection(self, error: ModelFileError | ProviderError) -> None:
        self._rejection = str(error)
        self._metrics.record_reload("model", "rejected")
        self._log.error("model rejected", reason=str(error))


def _retrieve_error(read: asyncio.Future[Any]) -> None:
    """Retrieve the error of an abandoned read, which asyncio would report."""
    if not read.cancelled():
        read.exception()
