"""Protobuf fields as bytes, packed from arrays."""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.network import Floats


def pack_field(tag: bytes, content: bytes) -> bytes:
    """Pack one length-delimited protobuf field."""
    return pack_header(tag, len(content)) + content


@lru_cache(maxsize=4096)
def pack_header(tag: bytes, length: int) -> bytes:
    """Pack the bytes before a field's content: its tag, and its length as a varint."""
    varint = bytearray()
    while length > 0x7F:
        varint.append(length & 0x7F | 0x80)
        length >>= 7
    varint.append(length)
    return tag + bytes(varint)


def pack_floats(array: Floats) -> bytes:
    """Pack floats as the wire has them, little-endian."""
    return array.tobytes() if sys.byteorder == "little" else array.astype("<f4").tobytes()
