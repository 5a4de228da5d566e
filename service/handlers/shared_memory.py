"""The system shared memory extension of Triton: regions from which requests are read and into which outputs go.

The server maps no memory. A client can truncate its file at any moment, and SIGBUS would then end a
process with a mapping. Reads and writes of a file return an error instead.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from service.errors import InvalidInput, ModelNotFound, Unimplemented
from service.handlers.local_client import LocalClient, current_client, socket_owners
from service.handlers.predictor import echo

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_REGIONS, MAX_BYTES = 64, 2**30
"""Regions of all clients, and their bytes together; each region costs a file handle."""

_FOLDER = Path("/dev/shm")  # noqa: S108 (the folder of shm_open on Linux)
_KEY = re.compile(r"/?([^/\0]{1,255})")
_MAX_NAME = 255

UNAVAILABLE = "is off; expected a server with --shared-memory, or the values in the request"


class Placement(NamedTuple):
    """The place of a tensor: the bytes of a region from `offset` on."""

    name: str
    offset: int
    byte_size: int


class Region(NamedTuple):
    """A registered part of a shared memory object."""

    name: str
    key: str
    offset: int
    byte_size: int
    descriptor: int


class RegionObserver(Protocol):
    """Follows the regions, to use them without a handler."""

    def add_region(self, owner: int, name: str, descriptor: int, offset: int, byte_size: int) -> None:
        """Add a region of a user; to use `descriptor` after the return, duplicate it. OSError if that fails."""
        ...

    def remove_region(self, owner: int, name: str) -> None:
        """Forget a region; the last write into it ends before the return."""
        ...


class SharedMemoryRegions:
    """The registered regions.

    A client whose user is known may register only objects that this user owns, and sees only the regions of this user.
    Every other client shares the regions of the server's user. Clients on other machines have none.
    """

    def __init__(self, *, max_regions: int = MAX_REGIONS, max_bytes: int = MAX_BYTES) -> None:
        self._max_regions = max_regions
        self._max_bytes = max_bytes
        self._regions: dict[tuple[int, str], Region] = {}
        self._observers: list[RegionObserver] = []

    def subscribe(self, observer: RegionObserver) -> None:
        """Let an observer follow the regions; call it before any is registered."""
        self._observers.append(observer)

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Register a region of the calling client; raises InvalidInput."""
        client, owner = _client()
        if not 1 <= len(name) <= _MAX_NAME:
            raise InvalidInput("name", f"has {len(name)} characters; expected 1 to {_MAX_NAME}")
        if (owner, name) in self._regions:
            raise InvalidInput("name", f"{echo(name)} is registered; expected a new name, or unregister it first")
        if len(self._regions) >= self._max_regions:
            raise InvalidInput("name", f"would be one region more than {self._max_regions}; unregister one first")
        used = sum(region.byte_size for region in self._regions.values())
        if not 1 <= byte_size <= self._max_bytes - used:
            raise InvalidInput("byte_size", f"is {byte_size}; expected 1 to {self._max_bytes - used}")
        if client.port is not None and socket_owners(client.port) != {owner}:
            raise InvalidInput("key", "is of another user; over TCP only the server's user may register a region")
        descriptor = _open(key, owner)
        if offset + byte_size > (size := os.fstat(descriptor).st_size):
            os.close(descriptor)
            raise InvalidInput("byte_size", f"ends at {offset + byte_size}; the object has {size} bytes")
        self._add(owner, Region(name, key, offset, byte_size, descriptor))

    def unregister(self, name: str) -> None:
        """Forget a region of the calling client, or all of them if `name` is empty; a name without a region is none."""
        _, owner = _client()
        for known in [known for known in self._regions if known[0] == owner and name in ("", known[1])]:
            self._remove(*known)

    def status(self, name: str) -> Mapping[str, Region]:
        """Return the regions of the calling client by name; ModelNotFound if `name` is none of them."""
        _, owner = _client()
        regions = {known: region for (user, known), region in self._regions.items() if user == owner}
        if name and name not in regions:
            raise ModelNotFound(f"name: there is no region {echo(name)}")
        return {name: regions[name]} if name else regions

    def read(self, tensor: str, placement: Placement) -> bytes:
        """Return the bytes of a tensor."""
        region = self._find(tensor, placement)
        data = os.pread(region.descriptor, placement.byte_size, region.offset + placement.offset)
        if len(data) != placement.byte_size:
            raise region_too_short(tensor, region.name, len(data), placement.byte_size)
        return data

    def check(self, tensor: str, placement: Placement, needed: int) -> None:
        """Raise InvalidInput unless so many bytes of a tensor fit."""
        region = self._find(tensor, placement)
        if placement.byte_size < needed:
            raise InvalidInput(tensor, f"has room for {placement.byte_size} bytes; expected at least {needed}")
        if os.fstat(region.descriptor).st_size < region.offset + placement.offset + needed:
            raise region_truncated(tensor, region.name)

    def write(self, tensor: str, placement: Placement, data: bytes) -> None:
        """Write the bytes of a tensor."""
        self.check(tensor, placement, len(data))
        region = self._find(tensor, placement)
        if os.pwrite(region.descriptor, data, region.offset + placement.offset) != len(data):
            raise region_not_written(tensor, region.name)

    def close(self) -> None:
        """Forget every region."""
        for known in [*self._regions]:
            self._remove(*known)

    def _add(self, owner: int, region: Region) -> None:
        try:
            for observer in self._observers:
                observer.add_region(owner, region.name, region.descriptor, region.offset, region.byte_size)
        except OSError as e:
            os.close(region.descriptor)
            raise InvalidInput("key", f"{echo(region.key)} cannot be opened once more: {e.strerror}") from None
        self._regions[owner, region.name] = region

    def _remove(self, owner: int, name: str) -> None:
        for observer in self._observers:
            observer.remove_region(owner, name)
        os.close(self._regions.pop((owner, name)).descriptor)

    def _find(self, tensor: str, placement: Placement) -> Region:
        _, owner = _client()
        region = self._regions.get((owner, placement.name))
        if region is None:
            raise region_unknown(tensor, placement.name)
        if placement.offset + placement.byte_size > region.byte_size:
            end = placement.offset + placement.byte_size
            raise InvalidInput(tensor, f"ends at {end} of {echo(region.name)}, which has {region.byte_size} bytes")
        return region


def region_unknown(tensor: str, region: str) -> InvalidInput:
    """Return the error of a tensor whose region is not registered."""
    return InvalidInput(tensor, f"names {echo(region)}, which is no region; register it first")


def region_too_short(tensor: str, region: str, available: int, expected: int) -> InvalidInput:
    """Return the error of an input that its object ends before."""
    return InvalidInput(tensor, f"has {available} bytes in {echo(region)}; expected {expected}")


def region_truncated(tensor: str, region: str) -> InvalidInput:
    """Return the error of an output that its object ends before."""
    return InvalidInput(tensor, f"is beyond the end of {echo(region)}, which has been truncated")


def region_not_written(tensor: str, region: str) -> InvalidInput:
    """Return the error of an output that was written in part."""
    return InvalidInput(tensor, f"cannot be written to {echo(region)}")


def _client() -> tuple[LocalClient, int]:
    """Return the calling client, and the user whose regions are its own."""
    client = current_client()
    if client is None:
        raise Unimplemented("shared memory is for clients on the server's machine, over gRPC")
    return client, os.geteuid() if client.uid is None else client.uid


def _open(key: str, owner: int) -> int:
    """Open a shared memory object of this user; no link, folder or device."""
    match = _KEY.fullmatch(key)
    if match is None or match[1] in (".", ".."):
        raise InvalidInput("key", f"is {echo(key)}; expected /NAME, as for shm_open")
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(_FOLDER / match[1], flags)
    except (OSError, UnicodeEncodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "no such object"
        raise InvalidInput("key", f"{echo(key)} cannot be opened for reading and writing: {reason}") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != owner:
        os.close(descriptor)
        raise InvalidInput("key", f"{echo(key)} is no shared memory object of user {owner}")
    return descriptor
