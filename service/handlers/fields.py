"""Protobuf fields as bytes, packed straight from arrays."""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.network import Floats


def field(tag: bytes, content: bytes) -> bytes:
    """One length-delimited protobuf field."""
    return head(tag, len(content)) + content


@lru_cache(maxsize=4096)
def head(tag: bytes, length: int) -> bytes:
    """What stands before a field's content: tag, and length as a varint."""
    varint = bytearray()
    while length > 0x7F:
        varint.append(length & 0x7F | 0x80)
        length >>= 7
    varint.append(length)
    return tag + bytes(varint)


def floats(array: Floats) -> bytes:
    """Packed floats are little-endian on the wire."""
    return array.tobytes() if sys.byteorder == "little" else array.astype("<f4").tobytes()
