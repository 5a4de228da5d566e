"""The configuration that both transports receive, except the security of the port."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from grpc_health.v1 import health

if TYPE_CHECKING:
    from service.transports.limits import Limits


@dataclass(frozen=True, kw_only=True)
class TransportConfig:
    """The limits of the port, and its standard services."""

    limits: Limits
    reflection: bool = True
    """Whether the port serves gRPC reflection."""
    health_without_token: bool = True
    """Whether health checks need no token."""

    @property
    def services_without_token(self) -> frozenset[str]:
        """The full names of the services that need no token."""
        return frozenset({health.SERVICE_NAME} if self.health_without_token else ())
