"""The one table from errors to gRPC status, shared by every transport."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from google.rpc.status_pb2 import Status

from service.errors import (
    DeadlineExceeded,
    InvalidInput,
    ModelNotFound,
    ModelUnavailable,
    Overloaded,
    ReloadRejected,
    ServerStopping,
    ServiceError,
    Unauthenticated,
    Unimplemented,
)

if TYPE_CHECKING:
    from google.protobuf.message import Message

_CODES: dict[type[ServiceError], int] = {
    InvalidInput: code_pb2.INVALID_ARGUMENT,
    ModelNotFound: code_pb2.NOT_FOUND,
    Overloaded: code_pb2.RESOURCE_EXHAUSTED,
    DeadlineExceeded: code_pb2.DEADLINE_EXCEEDED,
    ModelUnavailable: code_pb2.UNAVAILABLE,
    ServerStopping: code_pb2.UNAVAILABLE,
    ReloadRejected: code_pb2.FAILED_PRECONDITION,
    Unauthenticated: code_pb2.UNAUTHENTICATED,
    Unimplemented: code_pb2.UNIMPLEMENTED,
}


def to_status(error: Exception) -> Status:
    """Return the status that the client receives: the error's message and details, or "internal error"."""
    if not isinstance(error, ServiceError):
        return Status(code=code_pb2.INTERNAL, message="internal error")
    return Status(code=_CODES[type(error)], message=str(error), details=map(_any, _details(error)))


def code_name(code: int) -> str:
    """Return the Go name of a status code, the label in metrics: 3 -> InvalidArgument."""
    return _GO_NAMES[code]


def proto_code_name(name: str) -> str:
    """Return the protobuf name of a code by its Go name: InvalidArgument -> INVALID_ARGUMENT."""
    return _PROTO_NAMES[name]


def _details(error: ServiceError) -> list[Message]:
    if isinstance(error, InvalidInput):
        violation = BadRequest.FieldViolation(field=error.field, description=error.message)
        return [BadRequest(field_violations=[violation])]
    if isinstance(error, Overloaded):
        delay = Duration()
        delay.FromMilliseconds(round(error.retry_after * 1000))
        return [RetryInfo(retry_delay=delay)]
    return []


def _any(message: Message) -> Any:
    packed = Any()
    packed.Pack(message)
    return packed


def _go_name(name: str) -> str:
    # Go spells Canceled, unlike the CANCELLED of the rest of gRPC, and OK in capitals.
    special = {"OK": "OK", "CANCELLED": "Canceled"}
    return special.get(name) or name.title().replace("_", "")


_GO_NAMES = {number: _go_name(name) for name, number in code_pb2.Code.items()}
_PROTO_NAMES: dict[str, str] = {_GO_NAMES[number]: name for name, number in code_pb2.Code.items()}
