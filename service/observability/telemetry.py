"""The metrics, the log and the tracing of a process, as the parts that need all of them receive them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from service.observability.metrics import Metrics
    from service.observability.tracing import Tracing


@dataclass(frozen=True)
class Telemetry:
    """The metrics, log and traces of a component."""

    metrics: Metrics
    log: FilteringBoundLogger
    tracing: Tracing | None = None
    """None if tracing is off."""
