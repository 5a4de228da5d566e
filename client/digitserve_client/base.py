"""The common part of both clients: channel, credentials, timeouts and metadata."""

from __future__ import annotations

import json
import math
import re
import time
from typing import TYPE_CHECKING, Any, ClassVar

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest

from digitserve_client.address import authority, is_loopback, validate
from digitserve_client.connection_diagnostics import Tls, is_connection_message, probe
from digitserve_client.credentials import Token, channel_credentials
from digitserve_client.messages import REQUEST_ID, SERVICE, DigitsError, new_request_id, to_error

if TYPE_CHECKING:
    import concurrent.futures
    from collections.abc import Callable, Iterable
    from pathlib import Path

TIMEOUT = 5.0
"""Default timeout of a call, in seconds."""

_MAX_TIMEOUT = 1e9
"""Seconds, 31 years: gRPC takes a longer time for one that is over."""

FIRST_CHECK_TIMEOUT = 0.5
"""Seconds without a connection or an error before a probe looks for the reason."""

_GRPC_DEADLINE_MESSAGE = "Deadline Exceeded"
"""The message of gRPC itself; a server's differs."""

DEADLINE_EXCEEDED = grpc.StatusCode.DEADLINE_EXCEEDED
NO_CONNECTION_CODES = (grpc.StatusCode.UNAVAILABLE, DEADLINE_EXCEEDED)
"""How a call ends that may have met no server."""

SERVER_HEALTH_REQUEST = HealthCheckRequest()

_KEY = re.compile(r"[0-9a-z_.-]+")
_VALUE = re.compile(r"[\x20-\x7e]*")

_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", -1),
    # Reconnects within 0.5 s of the server's start; gRPC's default delay grows to 2 minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    # The server permits a ping every 5 s; a vanished server is noticed within 40.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    (
        "grpc.service_config",
        json.dumps(
            {
                # Round robin over all addresses of a name, except those that are NOT_SERVING.
                "loadBalancingConfig": [{"round_robin": {}}],
                "healthCheckConfig": {"serviceName": SERVICE},
                "methodConfig": [
                    {
                        "name": [{"service": SERVICE}],
                        # Predicting twice is harmless, so UNAVAILABLE is retried after 0.1, 0.2, 0.4 and
                        # 0.8 s +-20%, which covers a restart of the server. An overloaded server
                        # gets no retry: the error has its RetryInfo instead.
                        "retryPolicy": {
                            "maxAttempts": 5,
                            "initialBackoff": "0.1s",
                            "maxBackoff": "1s",
                            "backoffMultiplier": 2,
                            "retryableStatusCodes": ["UNAVAILABLE"],
                        },
                    }
                ],
            }
        ),
    ),
]


class BaseClient:
    """The common part of DigitsClient, which documents the parameters, and AsyncDigitsClient."""

    _api: ClassVar[Any]
    """The module that creates channels: grpc, or grpc.aio."""

    def __init__(
        self,
        address: str = "localhost:50051",
        *,
        timeout: float = TIMEOUT,
        credentials: grpc.ChannelCredentials | None = None,
        tls_ca: str | Path | None = None,
        tls_cert: str | Path | None = None,
        tls_key: str | Path | None = None,
        token_file: str | Path | None = None,
        metadata: Callable[[], Iterable[tuple[str, str | bytes]]] = tuple,
    ) -> None:
        self._timeout = _validate_timeout(timeout)
        self._credentials = credentials or channel_credentials(tls_ca, tls_cert, tls_key)
        self._address = validate(address)
        self._token = Token(token_file, address=address, encrypted=self._credentials is not None)
        self._extra_metadata = metadata
        tls = Tls(tls_ca, tls_cert, tls_key, known=credentials is None)
        self._tls = None if self._credentials is None else tls
        self._is_closed = False
        self._is_reached = False
        self._connect()

    def _connect(self) -> None:
        """Open the channel, or prepare for it."""
        raise NotImplementedError

    def _open(self, *extra: tuple[str, Any]) -> Any:
        """A channel, with more of gRPC's options."""
        options = [*_OPTIONS, *extra]
        if (name := authority(self._address)) is not None:
            options.append(("grpc.default_authority", name))
        # gRPC would use a proxy of the environment for localhost too, and send it a token in plain text.
        if is_loopback(self._address):
            options.append(("grpc.enable_http_proxy", 0))
        if self._credentials is not None:
            return self._api.secure_channel(self._address, self._credentials, options)
        return self._api.insecure_channel(self._address, options)

    def _probe(self, deadline: float) -> concurrent.futures.Future[str | None]:
        """Start a probe for the reason of a missing connection, with a result before the call's deadline."""
        return probe(self._address, self._tls, timeout=0.8 * (deadline - time.monotonic()))

    def _connection_error(self, code: grpc.StatusCode, reason: str | None, timeout: float) -> DigitsError | None:
        """Return the error of a first call whose health check failed; None if the call's own error is better."""
        if code is DEADLINE_EXCEEDED:
            description = f"{reason}; no connection" if reason else f"{self._address}: no answer"
            return DigitsError(code, f"{description} within {timeout:g} s")
        if code is grpc.StatusCode.UNAVAILABLE:
            return DigitsError(code, reason) if reason else None
        self._is_reached = True
        return None

    def _call_error(self, error: Any, request_id: str, timeout: float, reason: str | None) -> DigitsError:
        """Return the error of a call with that timeout, and the reason if there was no connection."""
        message = reason or error.details() or "no reason given"
        if message == _GRPC_DEADLINE_MESSAGE:
            message = f"{self._address}: no answer within {timeout:g} s"
        elif reason is None and "backend unhealthy" in message:
            message = f"{self._address}: the server is NOT_SERVING"
        return to_error(error, request_id, message=message)

    def _is_worth_probing(self, error: Any, deadline: float) -> bool:
        """Whether a probe may have more information than the error of a call."""
        return is_connection_message(error.details() or "") and time.monotonic() < deadline

    def _check_open(self) -> None:
        """RuntimeError after `close`; grpcio has an error of its own for each way to call, or ends the process."""
        if self._is_closed:
            raise RuntimeError(f"the client of {self._address} is closed")

    def _call_metadata(self) -> tuple[str, tuple[tuple[str, str | bytes], ...]]:
        """The request id of a call and all that goes with it, the id included."""
        self._check_open()
        extra = tuple(self._extra_metadata())
        for key, value in extra:
            _check_metadata(key, value)
        given_id = next((str(value) for key, value in extra if key == REQUEST_ID), None)
        if given_id is not None:
            return given_id, (*self._token.metadata(), *extra)
        request_id = new_request_id()
        return request_id, ((REQUEST_ID, request_id), *self._token.metadata(), *extra)

    def _timeout_of(self, timeout: float | None) -> float:
        """Return the timeout of a call in seconds; ValueError if it is invalid."""
        return self._timeout if timeout is None else _validate_timeout(timeout)


def _validate_timeout(timeout: float) -> float:
    """Return a timeout that gRPC accepts; ValueError for an invalid one."""
    if math.isnan(timeout) or timeout <= 0:
        raise ValueError(f"timeout is {timeout}; expected seconds, more than 0")
    return min(timeout, _MAX_TIMEOUT)


def _check_metadata(key: str, value: str | bytes) -> None:
    """ValueError, without the value, which may be secret."""
    if not _KEY.fullmatch(key):
        raise ValueError(f"metadata {key!r}: expected a key of lower-case letters, digits, `-`, `_` and `.`")
    if key.endswith("-bin") != isinstance(value, bytes):
        raise ValueError(f"metadata {key!r}: is {type(value).__name__}; expected bytes under `-bin`, else str")
    if isinstance(value, str) and not _VALUE.fullmatch(value):
        raise ValueError(f"metadata {key!r}: expected printable ASCII; other text goes as bytes under `{key}-bin`")
