"""A serialised ONNX model with fewer outputs, or with float pixels, by its protobuf fields alone.

Serving has no package that knows ONNX.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_GRAPH, _OUTPUT, _NAME = 7, 12, 1  # ModelProto.graph, GraphProto.output, ValueInfoProto.name in onnx.proto
_INPUT_TYPE = (_GRAPH, 11, 2, 1)  # ModelProto.graph, GraphProto.input, ValueInfoProto.type, TypeProto.tensor_type
_UINT8, _FLOAT = b"\x08\x02", b"\x08\x01"  # TypeProto.Tensor.elem_type
_VARINT, _LENGTH, _FIXED = 0, 2, {1: 8, 5: 4}  # wire types; those of fixed size with their bytes


def keep_outputs(model: bytes, names: Collection[str]) -> bytes:
    """The model without the outputs that are not among `names`; all else stays, byte for byte."""
    return b"".join(
        _field(_GRAPH, _graph(content, names)) if number == _GRAPH else raw_field
        for number, raw_field, content in _fields(model)
    )


def with_float_input(model: bytes) -> bytes:
    """Return the model with float inputs in place of uint8. ONNX Runtime then removes its Cast, which has no effect."""
    return _with_float(model, _INPUT_TYPE)


def _with_float(message: bytes, path: tuple[int, ...]) -> bytes:
    if not path:
        return b"".join(_FLOAT if raw_field == _UINT8 else raw_field for _, raw_field, _ in _fields(message))
    return b"".join(
        _field(number, _with_float(content, path[1:])) if number == path[0] else raw_field
        for number, raw_field, content in _fields(message)
    )


def _graph(graph: bytes, names: Collection[str]) -> bytes:
    return b"".join(
        raw_field for number, raw_field, content in _fields(graph) if number != _OUTPUT or _value_name(content) in names
    )


def _value_name(value: bytes) -> str:
    return next((content.decode() for number, _, content in _fields(value) if number == _NAME), "")


def _fields(message: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield each field's number, all its bytes, and its content if it has a length."""
    at = 0
    while at < len(message):
        start = at
        tag, at = _varint(message, at)
        content = at
        wire = tag & 7
        if wire == _LENGTH:
            length, content = _varint(message, at)
            at = content + length
        elif wire == _VARINT:
            _, at = _varint(message, at)
        elif wire in _FIXED:
            at += _FIXED[wire]
        else:
            raise ValueError(f"a model has no fields of wire type {wire}")
        yield tag >> 3, message[start:at], message[content:at]


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Return the number at that offset, and its end."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _field(number: int, content: bytes) -> bytes:
    head, length = bytearray([number << 3 | _LENGTH]), len(content)
    while length > 0x7F:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes(head) + bytes([length]) + content
