"""The security of a gRPC port as both transports receive it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.security.tls import Tls
    from service.security.tokens import Tokens


@dataclass(frozen=True, kw_only=True)
class SecurityConfig:
    """The certificate and the bearer tokens; without them the port serves plain text, or any client."""

    tls: Tls | None = None
    tokens: Tokens | None = None

    @property
    def watched_files(self) -> list[Tls | Tokens]:
        """The credentials whose files may change."""
        return [files for files in (self.tls, self.tokens) if files is not None]
