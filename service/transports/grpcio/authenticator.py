"""The authentication of calls by bearer token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from service.errors import Unauthenticated

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from service.observability.metrics import Metrics
    from service.observability.rpc_metrics import RpcMetrics
    from service.security.tokens import Tokens


class Authenticator:
    """Checks the calls of every service but `services_without_token`; of none without `tokens`."""

    def __init__(
        self, tokens: Tokens | None = None, metrics: Metrics | None = None, services_without_token: Collection[str] = ()
    ) -> None:
        self._tokens = tokens
        self._metrics = metrics
        self._services_without_token = services_without_token
        self.protected: set[str] = set()
        """The methods whose calls `check` must accept."""

    def register(self, rpc: RpcMetrics) -> None:
        """Protect an RPC if it needs a token."""
        if self._tokens is not None and rpc.rpc.grpc_service not in self._services_without_token:
            self.protected.add(rpc.method)

    def check(self, metadata: Iterable[tuple[str, Any]]) -> None:
        """Raise Unauthenticated, and count it, unless the metadata has a valid token."""
        assert self._tokens is not None
        assert self._metrics is not None
        try:
            self._tokens.check(metadata)
        except Unauthenticated:
            self._metrics.requests_dropped.labels("unauthenticated").inc()
            raise
