"""The methods that the native transport calls, on its own threads: runs of the model, handlers, statuses of errors."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np

from service.errors import ServerStopping, ServiceError, deadline_exceeded, malformed_message, overloaded
from service.handlers import shared_memory
from service.handlers.local_client import PEER
from service.network import PIXELS
from service.security.tokens import invalid_token, missing_token
from service.transports.call_log import CallLogger
from service.transports.status import code_name, to_status

if TYPE_CHECKING:
    from collections.abc import Mapping

    from structlog.typing import FilteringBoundLogger

    from service.batching.batcher import InferenceModel
    from service.handlers import MessageHandler
    from service.network import Pixels, Predictions


class PythonCallbacks:
    """The Rust `PythonHost` calls these methods on threads of its own; the handlers run on `loop`."""

    def __init__(
        self,
        answers: Mapping[str, MessageHandler],
        alternatives: Mapping[str, MessageHandler],
        log: FilteringBoundLogger,
    ) -> None:
        self.loop: asyncio.AbstractEventLoop
        self._answers = answers
        self._alternatives = {**answers, **alternatives}
        self._call_log = CallLogger(log)
        self._tasks: set[asyncio.Task[None]] = set()

    def allocate_batch(self, images: int) -> Pixels:
        """Return an array in which a thread gathers its batches, (images, 784) uint8."""
        return np.zeros((images, PIXELS), np.uint8)

    def predict(self, model: InferenceModel, pixels: Pixels, images: int) -> Predictions:
        """Run a model, one that `set_model` set, on the first `images` images."""
        return model.predict(pixels[:images])

    def call_handler(
        self, path: str, message: bytes, remaining: float | None, use_alternative: bool, peer: str, reply: Any
    ) -> None:
        """Call the handler, or its alternative, and complete the Rust `ReplyHandle`; `remaining` is in seconds.

        `peer` is the client, as in `service.handlers.local_client`.
        """
        deadline = float("inf") if remaining is None else time.monotonic() + remaining
        answer = (self._alternatives if use_alternative else self._answers)[path]
        self.loop.call_soon_threadsafe(self._begin, answer, message, deadline, peer, reply)

    def _begin(self, answer: MessageHandler, message: bytes, deadline: float, peer: str, reply: Any) -> None:
        PEER.set(lambda: peer)  # in the context of this callback, which the task copies
        task = self.loop.create_task(self._answer(answer, message, deadline, reply))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, answer: MessageHandler, message: bytes, deadline: float, reply: Any) -> None:
        if reply.is_cancelled():
            return
        try:
            reply.complete(await answer(message, deadline))
        except Exception as error:  # noqa: BLE001 (every failure must reach the client)
            reply.fail(error)

    def to_status(self, path: str, request_id: str | None, error: Exception) -> tuple[int, str, bytes, str]:
        """Log an error of a call of `path`; return its status code, message, details and request id."""
        status, request_id = to_status(error), request_id or uuid.uuid4().hex
        self._call_log.log_error(error, method=path, code=code_name(status.code), request_id=request_id)
        return status.code, status.message, status.SerializeToString(), request_id

    def stream_error_message(self, error: Exception) -> str | None:
        """Return the message of an error for a reply within a stream; None for an internal error."""
        return str(error) if isinstance(error, ServiceError) else None

    def deadline_exceeded(self) -> Exception:
        """Return the error of a request whose deadline has passed."""
        return deadline_exceeded()

    def overloaded(self, queued_images: int, max_queued_images: int, retry_after: float) -> Exception:
        """Return the error of a request for which the queue has no capacity."""
        return overloaded(queued_images, max_queued_images, retry_after)

    def server_stopping(self) -> Exception:
        """Return the error of a stream that a drain ends."""
        return ServerStopping()

    def log_failed_handshake(self, peer: str, reason: str) -> None:
        """Log a failed TLS handshake."""
        self._call_log.log_handshake_failure(peer, reason)

    def malformed_message(self) -> Exception:
        """Return the error of a health check that is not a valid message."""
        return malformed_message()

    def region_unknown(self, tensor: str, region: str) -> Exception:
        """Return the error of a tensor whose region has been unregistered."""
        return shared_memory.region_unknown(tensor, region)

    def region_too_short(self, tensor: str, region: str, available: int, expected: int) -> Exception:
        """Return the error of an input whose object has been truncated."""
        return shared_memory.region_too_short(tensor, region, available, expected)

    def region_truncated(self, tensor: str, region: str) -> Exception:
        """Return the error of an output whose object has been truncated."""
        return shared_memory.region_truncated(tensor, region)

    def region_not_written(self, tensor: str, region: str) -> Exception:
        """Return the error of an output that was written in part."""
        return shared_memory.region_not_written(tensor, region)

    def unauthenticated(self, is_missing: bool) -> Exception:
        """Return the error of a call without a token, or with an invalid one."""
        return missing_token() if is_missing else invalid_token()


class PendingPrediction:
    """A Python handler's request in the native queue; the Rust `Responder` completes it from another thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Predictions] = self._loop.create_future()

    def complete(self, rows: Predictions) -> None:
        """Set the request's own rows of the batch."""
        self._loop.call_soon_threadsafe(self._set_result, rows)

    def fail(self, error: Exception) -> None:
        """Set the error of the run."""
        self._loop.call_soon_threadsafe(self._set_exception, error)

    def fail_deadline_exceeded(self) -> None:
        """Fail because the deadline passed before the run."""
        self.fail(deadline_exceeded())

    def fail_overloaded(self, queued_images: int, max_queued_images: int, retry_after: float) -> None:
        """Fail because the queue has no capacity."""
        self.fail(overloaded(queued_images, max_queued_images, retry_after))

    def _set_result(self, rows: Predictions) -> None:
        if not self.future.done():
            self.future.set_result(rows)

    def _set_exception(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)
