"""The request id: a client's name for its call, returned in the trailing metadata and written to the log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

REQUEST_ID = "x-request-id"
MAX_REQUEST_ID = 128
"""Characters; the rest of a longer id is cut off."""


def request_id_from(metadata: Iterable[tuple[str, Any]]) -> str:
    """Return the client's id of the call, or ""."""
    for key, value in metadata:
        if key == REQUEST_ID:
            return str(value)[:MAX_REQUEST_ID]
    return ""
