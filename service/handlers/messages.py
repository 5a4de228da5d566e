"""Request messages from their bytes, and handlers made of functions of messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from google.protobuf.message import DecodeError, Message

from service.errors import InvalidInput, Unimplemented

if TYPE_CHECKING:
    from collections.abc import Callable

    from service.handlers import MessageHandler

M = TypeVar("M", bound=Message)


def parse(kind: type[M], data: bytes) -> M:
    """Parse a message; raises InvalidInput for bytes that are not one."""
    try:
        return kind.FromString(data)
    except DecodeError:
        name = kind.DESCRIPTOR.full_name
        raise InvalidInput("message", f"is not {'an' if name[0] in 'aeiou' else 'a'} {name}") from None


def unary(request_type: type[M], answer: Callable[[M], Message]) -> MessageHandler:
    """Make the handler of an RPC from a function of messages."""

    async def handle(request: bytes, _: float) -> bytes:
        return answer(parse(request_type, request)).SerializeToString()

    return handle


def unimplemented(message: str) -> MessageHandler:
    """Make the handler of an RPC that is not implemented."""

    async def handle(_: bytes, __: float) -> bytes:
        raise Unimplemented(message)

    return handle
