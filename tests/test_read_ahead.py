"""Reading ahead of a stream: its limits, and the batches that it returns."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from conftest import until
from grpc import aio

from service.transports.grpcio.read_ahead import MAX_DELAY, READ_AHEAD_BYTES, ReadAhead


class Caller:
    """A client's stream: the test sends messages, the end or an exception."""

    def __init__(self) -> None:
        self.line: asyncio.Queue[Any] = asyncio.Queue()
        self.read_so_far = 0

    def send(self, *messages: object) -> None:
        for message in messages:
            self.line.put_nowait(message)

    async def read(self) -> Any:
        found = await self.line.get()
        if isinstance(found, BaseException):
            raise found
        self.read_so_far += 1
        return found


def numbered(first: int, stop: int, size: int = 8) -> list[bytes]:
    return [number.to_bytes(8, "big").ljust(size) for number in range(first, stop)]


async def taken(ahead: ReadAhead) -> list[list[bytes]]:
    """Read all batches to the end of the stream."""
    portions = []
    while portion := await ahead.next_batch():
        portions.append(portion)
        await asyncio.sleep(0)  # the handler writes its replies
    return portions


async def test_every_message_is_returned_once_and_in_order() -> None:
    caller, sent = Caller(), numbered(0, 1000)
    caller.send(*sent, aio.EOF)
    with ReadAhead(caller.read) as ahead:
        portions = await taken(ahead)
    assert [message for portion in portions for message in portion] == sent
    assert len(portions) < 100, "messages that arrive together are in one batch"


async def test_empty_messages_read_ahead_are_bounded_too() -> None:
    caller = Caller()
    caller.send(*[b""] * 2 * READ_AHEAD_BYTES)
    with ReadAhead(caller.read):
        await until(lambda: caller.read_so_far > 0)
        for _ in range(4 * READ_AHEAD_BYTES):  # the number of iterations in which the reader could continue
            await asyncio.sleep(0)
        assert caller.read_so_far < READ_AHEAD_BYTES // 32


async def test_messages_read_ahead_are_bounded() -> None:
    caller = Caller()
    caller.send(*numbered(0, 100, READ_AHEAD_BYTES // 4))
    with ReadAhead(caller.read) as ahead:
        for read in (4, 8):
            await until(lambda read=read: caller.read_so_far >= read)
            await asyncio.sleep(0.01)
            assert caller.read_so_far == read
            assert len(await ahead.next_batch()) == 4


async def test_one_message_over_the_limit_is_returned() -> None:
    caller = Caller()
    caller.send(bytes(2 * READ_AHEAD_BYTES), b"next", aio.EOF)
    with ReadAhead(caller.read) as ahead:
        assert [len(message) for portion in await taken(ahead) for message in portion] == [2 * READ_AHEAD_BYTES, 4]


async def test_the_end_of_the_reading_follows_all_messages() -> None:
    caller = Caller()
    caller.send(b"1", b"2", OSError("gone"))
    with ReadAhead(caller.read) as ahead:
        await until(lambda: caller.read_so_far == 2)
        await asyncio.sleep(0.01)
        assert await ahead.next_batch() == [b"1", b"2"]
        with pytest.raises(OSError, match="gone"):
            await ahead.next_batch()


async def test_messages_of_a_client_that_waits_for_each_reply_are_not_delayed() -> None:
    caller = Caller()
    with ReadAhead(caller.read) as ahead:
        waits = []
        for message in numbered(0, 200):
            caller.send(message)
            began = time.monotonic()
            assert await ahead.next_batch() == [message]
            waits.append(time.monotonic() - began)
    assert sorted(waits)[150] < MAX_DELAY / 2


async def test_messages_of_a_client_with_several_in_flight_are_rarely_delayed() -> None:
    """The client has 6 messages in flight, and the reader learns not to wait for more."""
    caller, in_vain = Caller(), 0
    with ReadAhead(caller.read) as ahead:
        for _ in range(300):
            caller.send(*numbered(0, 6))
            await asyncio.sleep(0)
            began, found = time.monotonic(), 0
            while found < 6:
                found += len(await ahead.next_batch())
            in_vain += time.monotonic() - began > MAX_DELAY / 2
    assert in_vain < 30


async def test_leaving_the_context_ends_the_reading() -> None:
    caller = Caller()
    with ReadAhead(caller.read) as ahead:
        caller.send(b"1")
        assert await ahead.next_batch() == [b"1"]
    await asyncio.sleep(0)
    caller.send(b"2")
    await asyncio.sleep(0.01)
    assert caller.read_so_far == 1
    assert len(asyncio.all_tasks()) == 1
