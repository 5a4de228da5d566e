"""One call of a server under test over HTTP/1.1."""

from __future__ import annotations

import http.client

from bench.messages import HTTP_INFER, http_infer_headers

_TIMEOUT = 60.0  # seconds


class HttpCallError(Exception):
    """The server is not reached or answers with an error, which is the text."""


def infer(address: str, request: bytes) -> bytes:
    """Send one infer request on a connection of its own; return the body of the reply."""
    connection = http.client.HTTPConnection(address, timeout=_TIMEOUT)
    try:
        connection.request("POST", HTTP_INFER, request, http_infer_headers(request))
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as e:
        raise HttpCallError(str(e) or type(e).__name__) from e
    finally:
        connection.close()
    if response.status != http.client.OK:
        raise HttpCallError(f"{response.status} {response.reason}: {body[:200]!r}")
    return body
