"""What the native transport asks of Python, on its own threads: the model's runs, the handlers, what refusals say."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np

from service.errors import ServerStopping, ServiceError, deadline_exceeded, malformed_message, overloaded
from service.network import PIXELS
from service.security.tokens import invalid_token, missing_token
from service.transports.call_log import CallLogger
from service.transports.status import code_name, to_status

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from structlog.typing import FilteringBoundLogger

    from service.batching.batcher import InferenceModel
    from service.handlers import MessageHandler
    from service.network import Pixels, Predictions


class Host:
    """What the wheel calls, on threads of its own; the handlers run on `loop`."""

    def __init__(
        self,
        answers: Mapping[str, MessageHandler],
        alternatives: Mapping[str, MessageHandler],
        log: FilteringBoundLogger,
        *,
        before_answer: Callable[[], None],
    ) -> None:
        self.loop: asyncio.AbstractEventLoop
        self._answers = answers
        self._alternatives = {**answers, **alternatives}
        self._call_log = CallLogger(log)
        self._before_answer = before_answer
        self._tasks: set[asyncio.Task[None]] = set()

    def array(self, images: int) -> Pixels:
        """Where a thread gathers its batches, (images, 784)."""
        return np.zeros((images, PIXELS), np.uint8)

    def predict(self, model: InferenceModel, pixels: Pixels, images: int) -> Predictions:
        """One run of a model, that of `set_model`, on the first so many images."""
        return model.predict(pixels[:images])

    def ask(self, path: str, message: bytes, remaining: float | None, alternative: bool, reply: Any) -> None:
        """Let the handler, or its alternative, answer `reply`; `remaining` is in seconds."""
        deadline = float("inf") if remaining is None else time.monotonic() + remaining
        answer = (self._alternatives if alternative else self._answers)[path]
        self.loop.call_soon_threadsafe(self._begin, answer, message, deadline, reply)

    def _begin(self, answer: MessageHandler, message: bytes, deadline: float, reply: Any) -> None:
        task = self.loop.create_task(self._answer(answer, message, deadline, reply))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, answer: MessageHandler, message: bytes, deadline: float, reply: Any) -> None:
        if reply.is_gone():
            return
        self._before_answer()
        try:
            reply.answer(await answer(message, deadline))
        except Exception as error:  # noqa: BLE001 (whatever failed, its caller must hear of it)
            reply.fail(error)

    def refuse(self, path: str, request_id: str | None, error: Exception) -> tuple[int, str, bytes, str]:
        """What the caller of `path` hears of an error: code, sentence, details and request id; the log hears too."""
        status, request_id = to_status(error), request_id or uuid.uuid4().hex
        self._call_log.log_error(error, method=path, code=code_name(status.code), request_id=request_id)
        return status.code, status.message, status.SerializeToString(), request_id

    def sentence(self, error: Exception) -> str | None:
        """What a refusal within a stream says; nothing where it is a fault of ours."""
        return str(error) if isinstance(error, ServiceError) else None

    def late(self) -> Exception:
        """The error of a request whose time has run out in the line."""
        return deadline_exceeded()

    def overloaded(self, waiting: int, max_queued_images: int, retry_after: float) -> Exception:
        """The error of a request that found the line full."""
        return overloaded(waiting, max_queued_images, retry_after)

    def stopping(self) -> Exception:
        """The error of a stream that a drain ends."""
        return ServerStopping()

    def handshake_failed(self, peer: str, reason: str) -> None:
        """A connection has come to no TLS."""
        self._call_log.log_handshake_failure(peer, reason)

    def malformed(self) -> Exception:
        """The error of a health check whose bytes are no message."""
        return malformed_message()

    def stranger(self, is_silent: bool) -> Exception:
        """The error of a call without a token, or with another than ours."""
        return missing_token() if is_silent else invalid_token()


class Waiting:
    """A Python caller in the native line; told from other threads how it went."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Predictions] = self._loop.create_future()

    def done(self, rows: Predictions | None, error: Exception | None) -> None:
        """The caller's own rows, or the error of the run."""
        self._loop.call_soon_threadsafe(self._settle, rows, error)

    def late(self) -> None:
        """The deadline passed before the run."""
        self.done(None, deadline_exceeded())

    def overloaded(self, waiting: int, max_queued_images: int, retry_after: float) -> None:
        """The line was full."""
        self.done(None, overloaded(waiting, max_queued_images, retry_after))

    def _settle(self, rows: Predictions | None, error: Exception | None) -> None:
        if self.future.done():
            return
        if rows is not None:
            self.future.set_result(rows)
        else:
            assert error is not None
            self.future.set_exception(error)
