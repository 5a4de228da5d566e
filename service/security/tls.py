"""TLS of the gRPC port: a certificate with its key, and the CA of client certificates."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from service.errors import CredentialsError
from service.security.certificates import Pem
from service.security.file_watcher import FileWatcher, read_file, warn_if_world_readable
from service.security.handshake import subject_name, verify_in_memory

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from structlog.typing import FilteringBoundLogger

    from service.observability.metrics import Metrics


class _LoadedFiles(NamedTuple):
    """Verified files, the expiry of the certificate in Unix time, and fields for the log."""

    pem: Pem
    expires: float
    fields: dict[str, Any]


class Tls:
    """A certificate with its key, and the CA of client certificates if clients need one.

    New connections use the files that `poll` last loaded; if the files become unusable, the previous ones stay in
    force. Raises CredentialsError, naming the file, if one is missing, unreadable, not PEM, mismatched or expired.
    """

    def __init__(
        self, certificate: Path, key: Path, client_ca: Path | None, metrics: Metrics, log: FilteringBoundLogger
    ) -> None:
        self._paths = (certificate, key, client_ca)
        self._metrics = metrics
        self._log = log
        self._watcher = FileWatcher([path for path in self._paths if path], "tls", metrics, log)
        self._subscribers: list[Callable[[Pem], None]] = []
        self._loaded = self._read()
        metrics.tls_expiry.set(self._loaded.expires)
        log.info("certificate loaded", **self._loaded.fields)

    @property
    def needs_client_certificates(self) -> bool:
        """Whether clients must present a certificate."""
        return self._paths[2] is not None

    def subscribe(self, subscriber: Callable[[Pem], None]) -> None:
        """Call the subscriber, of a transport, with the content of the files now and after each change.

        It raises ValueError for files that the transport cannot use, which becomes CredentialsError.
        """
        self._subscribers.append(subscriber)
        self._notify(subscriber, self._loaded.pem)

    def poll(self) -> None:
        """Use the files if they have changed."""
        self._watcher.poll(self._load)

    def _load(self) -> dict[str, Any]:
        loaded = self._read()
        for subscriber in self._subscribers:
            self._notify(subscriber, loaded.pem)
        self._loaded = loaded
        self._metrics.tls_expiry.set(loaded.expires)
        return loaded.fields

    def _read(self) -> _LoadedFiles:
        certificate, key, client_ca = self._paths
        chain, private = read_file(certificate, "--tls-cert"), read_file(key, "--tls-key")
        trusted = None if client_ca is None else read_file(client_ca, "--tls-client-ca")
        pem = Pem(chain, private, trusted)
        peer, client_issuers = verify_in_memory(certificate, key, client_ca, pem)
        warn_if_world_readable(key, "--tls-key", self._log)
        expires = ssl.cert_time_to_seconds(str(peer["notAfter"]))
        fields = {"subject": subject_name(peer), "expires": datetime.fromtimestamp(expires, UTC).isoformat()}
        return _LoadedFiles(pem, expires, fields if client_ca is None else {**fields, "client_ca": client_issuers})

    def _notify(self, subscriber: Callable[[Pem], None], pem: Pem) -> None:
        try:
            subscriber(pem)
        except ValueError as e:
            certificate, key, client_ca = self._paths
            with_ca = "" if client_ca is None else f", --tls-client-ca {client_ca}"
            raise CredentialsError(f"--tls-cert {certificate}, --tls-key {key}{with_ca}: cannot be used: {e}") from None
