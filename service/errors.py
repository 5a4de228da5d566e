"""What can go wrong, free of any transport.

Exception
|- ServiceError          one call fails; its text is written for the caller
|  |- InvalidInput       the caller's message is malformed; names the field
|  |- UnknownModel       no such model or version
|  |- Overloaded         too much is waiting; says when to try again
|  |- DeadlinePassed     it could not have been answered in time
|  |- ModelUnavailable   the server is loading or draining, or its device has failed
|  |- ServerStopping     the server stops, and ends the streams that wait for their client
|  |- ReloadRefused      another model was asked for and cannot serve; the one before does
|  |- Unauthenticated    the caller brought no token that is known here
|  `- NotOffered         an RPC of a protocol that this server does not have
`- StartError            the server cannot start; its text is one line for the operator
   |- ModelFileError     the model file is missing, damaged or not this network (later: refused, the old one serves)
   |- ProviderError     the execution provider asked for cannot run the model (later: the session before serves on)
   |- CredentialsError   a certificate, key, CA or file of tokens cannot be used
   `- AddressInUse       a port is taken

Which status a ServiceError becomes on the wire stands in one table, `service.transports.status`. Anything else that
is raised while a call is served is a fault of ours: the caller gets INTERNAL and the log gets the traceback.
"""

from __future__ import annotations


class ServiceError(Exception):
    """One call fails; `str()` is a sentence for the caller and holds nothing internal."""


class InvalidInput(ServiceError):
    """The message's `field` (a path such as `pixels`) holds what the sentence says it must not."""

    def __init__(self, field: str, sentence: str) -> None:
        super().__init__(f"{field}: {sentence}")
        self.field = field
        self.sentence = sentence


def malformed() -> InvalidInput:
    """For bytes that are no message of the kind that the RPC takes."""
    return InvalidInput("message", "is not what this RPC takes")


class UnknownModel(ServiceError):
    """There is no model of that name or version here."""


class Overloaded(ServiceError):
    """The waiting line is full; `retry_after` is in seconds."""

    def __init__(self, sentence: str, retry_after: float) -> None:
        super().__init__(sentence)
        self.retry_after = retry_after


SHORTEST_RETRY = 0.01
"""Seconds."""


def overloaded(waiting: int, most: int, seconds: float) -> Overloaded:
    """For a request that finds so many images in a line of at most `most`, which the model runs in so many seconds."""
    return Overloaded(f"{waiting} images wait already; at most {most} may", max(SHORTEST_RETRY, seconds))


class DeadlinePassed(ServiceError):
    """The caller's deadline passed, or would have, before the model could run."""


def late() -> DeadlinePassed:
    """For a request whose time has run out in the line."""
    return DeadlinePassed("the deadline passed before the model could run")


class ModelUnavailable(ServiceError):
    """No model can answer just now: the server is loading or draining, or its device has failed."""


class ServerStopping(ServiceError):
    """The server stops, and ends a stream that waits for its client."""

    def __init__(self) -> None:
        super().__init__("the server is stopping: open the stream again elsewhere")


class ReloadRefused(ServiceError):
    """Another version of the model was asked for and cannot serve; the one before serves on."""


class Unauthenticated(ServiceError):
    """The caller did not show that it may call."""


class NotOffered(ServiceError):
    """A protocol has this RPC and the server does not."""


class StartError(Exception):
    """The server cannot start; `str()` is one line that says what to do."""


class ModelFileError(StartError):
    """The model file cannot be served."""


class ProviderError(StartError):
    """The execution provider `name` cannot run the model; `reason` says what is missing and how to get it."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"--provider (or DIGITS_PROVIDER) is {name!r}, but {reason}")
        self.reason = reason


class CredentialsError(StartError):
    """A certificate, its key, a CA or a file of tokens cannot be used; names flag and file."""


class AddressInUse(StartError):
    """A host and port cannot be listened on."""
