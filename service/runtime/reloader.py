"""Other versions of the model while it serves: loaded beside, verified, warmed up, swapped in one step, or refused."""

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

PATIENCE = 120.0
"""Seconds that a look at the folder, or loading a model, may take; TensorRT makes its engines in less."""

RETRY_INTERVAL = 10.0
"""Seconds between two attempts at a refused file that has not changed since: its volume or its device may have."""

T = TypeVar("T")


class Reloader:
    """Has `model`, the one that serves; the constructor loads the first.

    Where the newest version in a folder cannot serve, it begins with the newest that can, so that a bad file does not
    keep a restarted server down. Raises ModelFileError where none can, ProviderError where its device cannot.
    """

    def __init__(self, place: ModelRepository, metrics: Metrics, log: FilteringBoundLogger) -> None:
        self._place = place
        self._metrics = metrics
        self._log = log
        self._one_at_a_time = asyncio.Lock()
        self._refusal = ""
        self._retry_at = 0.0
        self._seen: object = None
        self._hangs: asyncio.Future[Any] | None = None
        self._ignored: dict[str, str] = {}
        self._warned_of: dict[str, str] = {}
        self.model = self._first()

    async def look(self, swap: Callable[[Model], None], *, asked: bool = True) -> None:
        """Load what should serve now, where that is another file than before, and give it to `swap`.

        Raises ReloadRejected where it cannot serve. A refused file is tried again when `asked`, and by itself every
        RETRY_INTERVAL; the same refusal is logged and counted again only when `asked`.
        """
        async with self._one_at_a_time:
            seen = await self._what_lies_there()
            is_due = bool(self._refusal) and (asked or time.monotonic() >= self._retry_at)
            if seen == self._seen and not is_due:
                return
            is_new, self._seen = seen != self._seen, seen
            try:
                model = await self._on_a_thread(self._load_newest)
            except (ModelFileError, ProviderError) as e:
                self._retry_at = time.monotonic() + RETRY_INTERVAL
                if asked or is_new or str(e) != self._refusal:
                    self._refused(e)
                raise ReloadRejected(f"version {self.model.info.version} serves on: {self._refusal}") from None
            self._refusal = ""
            self._metrics.last_reload_successful.labels("model").set(1)
            if model.info != self.model.info:
                swap(model)
                self._loaded(model)

    async def watch(self, swap: Callable[[Model], None], interval: float) -> None:
        """Look every `interval` seconds, for ever."""
        while True:
            await asyncio.sleep(interval)
            await self.look_in_background(swap, asked=False)

    async def look_in_background(self, swap: Callable[[Model], None], *, asked: bool) -> None:
        """As `look`, where nobody waits for the answer: a refusal is logged and counted, which is enough."""
        try:
            await self.look(swap, asked=asked)
        except ReloadRejected:
            pass
        except Exception as e:  # noqa: BLE001 (whatever failed, the old model serves on and later looks may succeed)
            self._metrics.model_reloads.labels("rejected").inc()
            self._metrics.last_reload_successful.labels("model").set(0)
            self._log.error("model reload failed", exc_info=e)

    async def _what_lies_there(self) -> object:
        """Changes whenever another file should serve, or none can."""
        try:
            return await self._on_a_thread(self._newest_stamp)
        except ModelFileError as e:
            return str(e)

    def _newest_stamp(self) -> object:
        self._warn_of_ignored(self._ignored)
        return self._place.candidates()[0].fingerprint()

    async def _on_a_thread(self, read: Callable[[], T]) -> T:
        """What `read` gives. ModelFileError where its volume does not answer, at once for as long as that lasts."""
        if self._hangs is None or self._hangs.done():
            reading: asyncio.Future[T] = asyncio.ensure_future(asyncio.to_thread(read))
            done, _ = await asyncio.wait({reading}, timeout=PATIENCE)
            if done:
                return reading.result()
            reading.add_done_callback(_forget)
            self._hangs = reading
        raise ModelFileError(f"{self._place.path}: could not be read within {PATIENCE:g} s: its volume does not answer")

    def _first(self) -> Model:
        candidates = self._place.candidates()
        self._warn_of_ignored()
        self._seen = candidates[0].fingerprint()
        for candidate in candidates[:-1]:
            try:
                return self._place.load(candidate)
            except ModelFileError as e:
                self._refused(e)
        return self._place.load(candidates[-1])

    def _warn_of_ignored(self, before: dict[str, str] | None = None) -> None:
        """Warn once of each folder that does not serve and was there `before`: others may still be being made."""
        self._ignored = found = self._place.skipped_folders()
        rests = {name: reason for name, reason in found.items() if before is None or before.get(name) == reason}
        for name, reason in rests.items():
            if self._warned_of.get(name) != reason:
                self._log.warning("model folder ignored", folder=str(self._place.path / name), reason=reason)
        self._warned_of = rests
        self._metrics.model_folders_ignored.set(len(rests))

    def _load_newest(self) -> Model:
        candidate: Candidate = self._place.candidates()[0]
        model = self._place.load(candidate)
        if model.info.name != (name := self.model.info.name):
            raise ModelFileError(f"{candidate.path}: is the model {model.info.name!r}; expected {name!r}")
        return model

    def _loaded(self, model: Model) -> None:
        before, self.model = self.model.info, model
        self._metrics.model_reloads.labels("loaded").inc()
        self._log.info(
            "model loaded",
            model_version=model.info.version,
            previous_version=before.version,
            activation=model.info.activation,
            weights_sha256=model.info.weights_sha256,
        )

    def _refused(self, error: ModelFileError | ProviderError) -> None:
        self._refusal = str(error)
        self._metrics.model_reloads.labels("rejected").inc()
        self._metrics.last_reload_successful.labels("model").set(0)
        self._log.error("model rejected", reason=str(error))


def _forget(read: asyncio.Future[Any]) -> None:
    """Nobody waits any more for what was read; asyncio would report its error."""
    if not read.cancelled():
        read.exception()
