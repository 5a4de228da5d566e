"""The errors of the service, independent of any transport.

Exception
|- ServiceError          one call fails; its text is written for the client
|  |- InvalidInput       the message is invalid; names the field
|  |- ModelNotFound      no such model or version
|  |- Overloaded         the queue is full; has the delay of a retry
|  |- DeadlineExceeded   the deadline leaves no time for an answer
|  |- ModelUnavailable   the server is loading or draining, or its device has failed
|  |- ServerStopping     the server stops and ends the streams that wait for their client
|  |- ReloadRejected     a reload found a model that cannot serve; the model before it still serves
|  |- Unauthenticated    the call has no valid token
|  `- Unimplemented      an RPC of a protocol that this server does not implement
`- StartError            the server cannot start; its text is one line for the operator
   |- ModelFileError     the model file is missing, damaged or not this network (in a reload: rejected)
   |- ProviderError      the execution provider cannot run the model (in a recovery: the old session stays)
   |- CredentialsError   a certificate, key, CA or token file cannot be used
   `- AddressInUse       a port is taken

`service.transports.status` has the one table from a ServiceError to its gRPC status. Any other exception that a call
raises is a bug: the client receives INTERNAL and the log receives the traceback.
"""

from __future__ import annotations

MIN_RETRY_AFTER = 0.01
"""Seconds."""


class ServiceError(Exception):
    """One call fails; `str()` is a message for the client without internal details."""


class InvalidInput(ServiceError):
    """The value of `field`, a path such as `pixels`, is invalid; `message` is the reason."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


def malformed_message() -> InvalidInput:
    """Return the error for bytes that do not parse as the RPC's request."""
    return InvalidInput("message", "is not a valid request message")


class ModelNotFound(ServiceError):
    """The server has no model of that name or version."""


class Overloaded(ServiceError):
    """The queue is full; `retry_after` is in seconds."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


def overloaded(queued_images: int, limit: int, drain_seconds: float) -> Overloaded:
    """Return the error for a request that finds the queue full; the model runs all of it in `drain_seconds`."""
    return Overloaded(f"queue full: {queued_images} images queued, limit {limit}", max(MIN_RETRY_AFTER, drain_seconds))


class DeadlineExceeded(ServiceError):
    """The client's deadline passed, or would have passed, before the model could run."""


def deadline_exceeded() -> DeadlineExceeded:
    """Return the error for a request whose deadline passed in the queue."""
    return DeadlineExceeded("the deadline passed before the model could run")


class ModelUnavailable(ServiceError):
    """No model can answer now: the server is loading or draining, or its device has failed."""


class ServerStopping(ServiceError):
    """The server stops and ends a stream that waits for its client."""

    def __init__(self) -> None:
        super().__init__("the server is stopping: reopen the stream on another replica")


class ReloadRejected(ServiceError):
    """A reload found a model that cannot serve; the model before it still serves."""


class Unauthenticated(ServiceError):
    """The call has no valid token."""


class Unimplemented(ServiceError):
    """The protocol has this RPC and the server does not implement it."""


class StartError(Exception):
    """The server cannot start; `str()` is one line with the remedy."""


class ModelFileError(StartError):
    """The model file cannot be served."""


class ProviderError(StartError):
    """The execution provider `name` cannot run the model; `reason` names the missing part and its package."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"--provider (or DIGITS_PROVIDER) is {name!r}, but {reason}")
        self.reason = reason


class CredentialsError(StartError):
    """A certificate, its key, a CA or a token file cannot be used; names the flag and the file."""


class AddressInUse(StartError):
    """The server cannot listen on a host and port."""
