"""What both clients have: a channel to a server, as whom they call, for how long, and what goes with each call."""

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
"""Seconds that a call may take unless told otherwise."""

_MAX_TIMEOUT = 1e9
"""Seconds, 31 years: gRPC takes a longer time for one that is over."""

FIRST_CHECK_TIMEOUT = 0.5
"""Seconds after which a connection that is neither made nor refused is looked into, while it goes on trying."""

_GRPC_DEADLINE_MESSAGE = "Deadline Exceeded"
"""What gRPC itself says then; a server has a sentence of its own."""

DEADLINE_EXCEEDED = grpc.StatusCode.DEADLINE_EXCEEDED
NO_CONNECTION_CODES = (grpc.StatusCode.UNAVAILABLE, DEADLINE_EXCEEDED)
"""How a call ends that may have met no server."""

SERVER_HEALTH_REQUEST = HealthCheckRequest()

_KEY = re.compile(r"[0-9a-z_.-]+")
_VALUE = re.compile(r"[\x20-\x7e]*")

_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", -1),
    # A server that comes up is found within half a second; gRPC's own pause grows to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    # The server permits a ping every 5 s; a vanished server is noticed within 40.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    (
        "grpc.service_config",
        json.dumps(
            {
                # All addresses of a name are used, those that say NOT_SERVING left out.
                "loadBalancingConfig": [{"round_robin": {}}],
                "healthCheckConfig": {"serviceName": SERVICE},
                "methodConfig": [
                    {
                        "name": [{"service": SERVICE}],
                        # Predicting twice does no harm, so what met no server is asked again: after 0.1, 0.2, 0.4 and
                        # 0.8 s, give or take a fifth; a server that is started anew is there by then. An overloaded one
                        # is not asked again at once: its RetryInfo is handed to the caller instead.
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
    """The common part of DigitsClient, which says what the parameters are, and AsyncDigitsClient."""

    _api: ClassVar[Any]
    """What makes channels: grpc, or grpc.aio."""

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
        # gRPC would ask a proxy of the environment for localhost too; nor does a token go to one in plain text.
        if is_loopback(self._address):
            options.append(("grpc.enable_http_proxy", 0))
        if self._credentials is not None:
            return self._api.secure_channel(self._address, self._credentials, options)
        return self._api.insecure_channel(self._address, options)

    def _probe(self, deadline: float) -> concurrent.futures.Future[str | None]:
        """Begin to find out why there is no connection; to be told before the call's time is up."""
        return probe(self._address, self._tls, timeout=0.8 * (deadline - time.monotonic()))

    def _connection_error(self, code: grpc.StatusCode, reason: str | None, timeout: float) -> DigitsError | None:
        """The error of a first call, whose check of health ended so; None where the call itself may tell more."""
        if code is DEADLINE_EXCEEDED:
            description = f"{reason}; no connection" if reason else f"{self._address}: no answer"
            return DigitsError(code, f"{description} within {timeout:g} s")
        if code is grpc.StatusCode.UNAVAILABLE:
            return DigitsError(code, reason) if reason else None
        self._is_reached = True
        return None

    def _call_error(self, error: Any, request_id: str, timeout: float, reason: str | None) -> DigitsError:
        """The error of a call that had so many seconds, with the reason where there was no connection."""
        message = reason or error.details() or "no reason given"
        if message == _GRPC_DEADLINE_MESSAGE:
            message = f"{self._address}: no answer within {timeout:g} s"
        elif reason is None and "backend unhealthy" in message:
            message = f"{self._address}: the server says NOT_SERVING"
        return to_error(error, request_id, message=message)

    def _is_worth_probing(self, error: Any, deadline: float) -> bool:
        """Whether a probe may tell more than the error of a call."""
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
        """Seconds that a call may take; ValueError where they are none."""
        return self._timeout if timeout is None else _validate_timeout(timeout)


def _validate_timeout(timeout: float) -> float:
    """What gRPC takes for the time; ValueError for what is none."""
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
