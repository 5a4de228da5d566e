"""The errors of HTTP itself, and the table from every error to an HTTP response."""

from __future__ import annotations

import json
import math
from typing import NamedTuple

from google.rpc import code_pb2

from service.errors import InvalidInput, Overloaded, ServiceError
from service.transports.status import to_status

_HTTP_STATUS: dict[int, int] = {
    code_pb2.INVALID_ARGUMENT: 400,
    code_pb2.FAILED_PRECONDITION: 400,
    code_pb2.UNAUTHENTICATED: 401,
    code_pb2.NOT_FOUND: 404,
    code_pb2.RESOURCE_EXHAUSTED: 429,
    code_pb2.INTERNAL: 500,
    code_pb2.UNIMPLEMENTED: 501,
    code_pb2.UNAVAILABLE: 503,
    code_pb2.DEADLINE_EXCEEDED: 504,
}
"""As google/rpc/code.proto maps them."""

encode_json = json.JSONEncoder(separators=(",", ":")).encode
"""Encode a value as JSON; `json.dumps` would make an encoder for each."""

Headers = tuple[tuple[str, str], ...]


class Response(NamedTuple):
    """The status, body and headers of a response; `content_type` and the length of the body become headers too."""

    body: bytes
    status: int = 200
    content_type: str = "application/json"
    headers: Headers = ()


class HttpError(ServiceError):
    """A request that HTTP rejects by itself, such as one for an unknown path; `headers` explain the status."""

    def __init__(self, status: int, message: str, headers: Headers = ()) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


def content_too_large(size: str, limit: int, hint: str = "") -> HttpError:
    """Return the error for a body that exceeds a limit in bytes."""
    return HttpError(413, f"body: has {size} bytes; expected at most {limit}{hint}")


def headers_too_large(limit: int) -> HttpError:
    """Return the error for headers, or bytes that take their place, that exceed a limit in bytes."""
    return HttpError(431, f"headers: have more than {limit} bytes; expected at most {limit}")


def invalid_json(problem: str) -> InvalidInput:
    """Return the error for a body that is not JSON."""
    return InvalidInput("body", f"is not valid JSON: {problem}")


def to_response(error: Exception) -> Response:
    """Make the response to a failed request: `{"error": message}`, with the message that gRPC has."""
    if isinstance(error, HttpError):
        return json_response({"error": str(error)}, status=error.status, headers=error.headers)
    status = to_status(error)
    code = _HTTP_STATUS[status.code]
    headers: Headers = ()
    if isinstance(error, Overloaded):
        headers = (("Retry-After", str(math.ceil(error.retry_after))),)
    elif code == 401:
        headers = (("WWW-Authenticate", "Bearer"),)
    return json_response({"error": status.message}, status=code, headers=headers)


def json_response(value: object, *, status: int = 200, headers: Headers = ()) -> Response:
    """Make a response of a value as JSON."""
    return Response(encode_json(value).encode(), status=status, headers=headers)
