"""The last events of the log, for the status page: rejections apart from changes, so that a flood hides no change."""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import structlog

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

    from structlog.typing import FilteringBoundLogger

CAPACITY = 10
"""Events of each kind."""

MAX_VALUE = 200
"""Characters of a field that are kept: a client chooses some of them."""

REJECTIONS = frozenset({"call rejected", "call failed", "handshake failed"})
"""The events that clients cause."""

_INTERNAL = ("exc_info", "stack")


class Event(NamedTuple):
    """One line of the log."""

    time: float
    level: str
    name: str
    fields: Mapping[str, str]


class RecentEvents:
    """Keeps events on their way to the log. Any thread may log and read."""

    def __init__(self) -> None:
        self._rejections: deque[Event] = deque(maxlen=CAPACITY)
        self._changes: deque[Event] = deque(maxlen=CAPACITY)

    @property
    def rejections(self) -> list[Event]:
        """The last rejected and failed calls, newest first."""
        return [*self._rejections][::-1]

    @property
    def changes(self) -> list[Event]:
        """The last events of the server itself, such as reloads, newest first."""
        return [*self._changes][::-1]

    def record(self, log: FilteringBoundLogger) -> FilteringBoundLogger:
        """Return a log that keeps all its events, and writes them to `log`, by its level."""
        recorder = structlog.wrap_logger(
            log, processors=[self._keep], wrapper_class=structlog.make_filtering_bound_logger(logging.INFO)
        )
        return cast("FilteringBoundLogger", recorder.bind())

    def _keep(
        self, _logger: object, method: str, event: MutableMapping[str, Any]
    ) -> tuple[tuple[str], MutableMapping[str, Any]]:
        name = str(event.pop("event"))
        fields = {key: str(value)[:MAX_VALUE] for key, value in event.items() if key not in _INTERNAL}
        if "exc_info" in event and isinstance(event["exc_info"], BaseException):
            fields["error"] = type(event["exc_info"]).__name__
        events = self._rejections if name in REJECTIONS else self._changes
        events.append(Event(time.time(), method, name, fields))
        return (name,), event
