"""What of a stream is read before it is asked for, and in what portions it is given."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from conftest import until
from grpc import aio

from service.transports.grpcio.read_ahead import MAX_DELAY, READ_AHEAD_BYTES, ReadAhead


class Caller:
    """A stream as its reader sees it: what the test sends, the end, or what it raises."""

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
    """All portions to the end of the stream."""
    portions = []
    while portion := await ahead.next_batch():
        portions.append(portion)
        await asyncio.sleep(0)  # replies are written
    return portions


async def test_every_message_comes_once_and_in_order() -> None:
    caller, sent = Caller(), numbered(0, 1000)
    caller.send(*sent, aio.EOF)
    with ReadAhead(caller.read) as ahead:
        portions = await taken(ahead)
    assert [message for portion in portions for message in portion] == sent
    assert len(portions) < 100, "those that come one upon the other are given together"


async def test_empty_messages_read_ahead_are_bounded_too() -> None:
    caller = Caller()
    caller.send(*[b""] * 2 * READ_AHEAD_BYTES)
    with ReadAhead(caller.read):
        await until(lambda: caller.read_so_far > 0)
        for _ in range(4 * READ_AHEAD_BYTES):  # so often the reader can go on, if it wants to
            await asyncio.sleep(0)
        assert caller.read_so_far < READ_AHEAD_BYTES // 32


async def test_what_is_read_ahead_is_bounded() -> None:
    caller = Caller()
    caller.send(*numbered(0, 100, READ_AHEAD_BYTES // 4))
    with ReadAhead(caller.read) as ahead:
        for read in (4, 8):
            await until(lambda read=read: caller.read_so_far >= read)
            await asyncio.sleep(0.01)
            assert caller.read_so_far == read
            assert len(await ahead.next_batch()) == 4


async def test_one_large_message_is_given_although_it_is_more_than_may_wait() -> None:
    caller = Caller()
    caller.send(bytes(2 * READ_AHEAD_BYTES), b"next", aio.EOF)
    with ReadAhead(caller.read) as ahead:
        assert [len(message) for portion in await taken(ahead) for message in portion] == [2 * READ_AHEAD_BYTES, 4]


async def test_what_ended_the_reading_comes_after_all_that_was_read() -> None:
    caller = Caller()
    caller.send(b"1", b"2", OSError("gone"))
    with ReadAhead(caller.read) as ahead:
        await until(lambda: caller.read_so_far == 2)
        await asyncio.sleep(0.01)
        assert await ahead.next_batch() == [b"1", b"2"]
        with pytest.raises(OSError, match="gone"):
            await ahead.next_batch()


async def test_a_caller_that_waits_for_each_reply_never_waits_for_company() -> None:
    caller = Caller()
    with ReadAhead(caller.read) as ahead:
        waits = []
        for message in numbered(0, 200):
            caller.send(message)
            began = time.monotonic()
            assert await ahead.next_batch() == [message]
            waits.append(time.monotonic() - began)
    assert sorted(waits)[150] < MAX_DELAY / 2


async def test_a_caller_with_some_replies_outstanding_is_seldom_waited_for_in_vain() -> None:
    """Six at a time: more than six never come, and that is learnt."""
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


async def test_leaving_ends_the_reading() -> None:
    caller = Caller()
    with ReadAhead(caller.read) as ahead:
        caller.send(b"1")
        assert await ahead.next_batch() == [b"1"]
    await asyncio.sleep(0)
    caller.send(b"2")
    await asyncio.sleep(0.01)
    assert caller.read_so_far == 1
    assert len(asyncio.all_tasks()) == 1
