"""Convert a Parquet column of pixels, in any form, to uint8 images, with the reason for each row without one."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from digitserve_client.image import ImageError, read_bytes
from digitserve_client.pixels import PIXELS

from digitserve.score.errors import ScoreError

if TYPE_CHECKING:
    from collections.abc import Callable


Pixels = npt.NDArray[np.uint8]


class Images(NamedTuple):
    """The images of a batch of rows, (n, 784), their rows, (n,), and the message for each other row."""

    pixels: Pixels
    rows: npt.NDArray[np.int64]
    rejected: dict[int, str]


def check_type(type_: pa.DataType, place: str) -> None:
    """Raise ScoreError, which begins with `place`, unless a column of this type can hold images."""
    if _reader(type_) is None:
        raise ScoreError(
            f"{place} is {type_}; expected binary of 784 bytes or of pictures, or lists of 784 numbers: "
            "integers 0 to 255 or floats 0 to 1"
        )


def images(column: pa.Array) -> Images:
    """The images of a column whose type `check_type` let through."""
    reader = _reader(column.type)
    assert reader is not None
    return reader(column)


def _reader(type_: pa.DataType) -> Callable[[pa.Array], Images] | None:
    types = pa.types
    if types.is_struct(type_):  # a picture as Hugging Face's datasets keep it: {bytes, path}
        inner = type_.field("bytes").type if type_.get_field_index("bytes") >= 0 else None
        return _from_struct if inner is not None and (types.is_binary(inner) or types.is_large_binary(inner)) else None
    if types.is_binary(type_) or types.is_large_binary(type_) or types.is_fixed_size_binary(type_):
        return _from_binary
    if types.is_list(type_) or types.is_large_list(type_) or types.is_fixed_size_list(type_):
        values = type_.value_type
        return _from_lists if types.is_integer(values) or types.is_floating(values) else None
    return None


def _from_struct(column: pa.Array) -> Images:
    return _from_binary(pc.struct_field(column, "bytes"))


def _from_binary(column: pa.Array) -> Images:
    """Values of 784 bytes are pixels; others are tried as pictures, one by one."""
    lengths = _numbers(pc.binary_length(column), -1)
    complete = np.flatnonzero(lengths == PIXELS)
    exact = column if len(complete) == len(column) else column.take(pa.array(complete))
    pixels = np.frombuffer(b"".join(exact.to_pylist()) if exact.null_count else _content(exact), np.uint8)
    type_, rows, rejected = [pixels.reshape(-1, PIXELS)], [complete], dict[int, str]()
    for row in np.flatnonzero(lengths != PIXELS).tolist():
        try:
            type_.append(_picture(column[row].as_py()))
            rows.append(np.array([row]))
        except ImageError as e:
            rejected[row] = str(e)
    order = np.argsort(indices := np.concatenate(rows))
    if len(type_) == 1:
        return Images(type_[0], indices, rejected)
    return Images(np.concatenate(type_)[order], indices[order], rejected)


def _content(column: pa.Array) -> memoryview:
    """The bytes of values of 784 each, one after the other, without a copy."""
    if not len(column):
        return memoryview(b"")
    if pa.types.is_fixed_size_binary(column.type):
        start = column.offset * PIXELS
        return memoryview(column.buffers()[1])[start : start + len(column) * PIXELS]
    _, offsets, data = column.buffers()
    width = np.int64 if pa.types.is_large_binary(column.type) else np.int32
    start = int(np.frombuffer(offsets, width)[column.offset])
    return memoryview(data)[start : start + len(column) * PIXELS]


def _picture(content: bytes | None) -> Pixels:
    if content is None:
        raise ImageError("is null")
    try:
        type_ = read_bytes(content)
    except ImageError as e:
        raise ImageError(f"holds {len(content)} bytes; expected 784, or a picture, and as one it {e}") from None
    if len(type_) != 1:
        raise ImageError(f"holds an IDX file of {len(type_)} images; expected one image a row")
    return type_


def _from_lists(column: pa.Array) -> Images:
    lengths = _numbers(pc.list_value_length(column), -1)
    complete = np.flatnonzero(lengths == PIXELS)
    rejected = {
        row: "is null" if lengths[row] < 0 else f"has {lengths[row]} values; expected {PIXELS}"
        for row in np.flatnonzero(lengths != PIXELS).tolist()
    }
    chosen = column if len(complete) == len(column) else column.take(pa.array(complete))
    values = chosen.flatten()
    missing = np.asarray(values.is_null()) if values.null_count else np.zeros(len(values), bool)
    numbers = np.asarray(values.fill_null(0)).reshape(-1, PIXELS)
    top = 1 if numbers.dtype.kind == "f" else 255
    with np.errstate(invalid="ignore"):
        wrong = ~((numbers >= 0) & (numbers <= top)) | missing.reshape(-1, PIXELS)
    if wrong.any():
        faulty = wrong.any(axis=1)
        for at in np.flatnonzero(faulty).tolist():
            rejected[int(complete[at])] = _fault(numbers[at], missing.reshape(-1, PIXELS)[at], int(wrong[at].argmax()))
        numbers, complete = numbers[~faulty], complete[~faulty]
    if numbers.dtype.kind == "f":  # to the nearest 1/255, as the server does with FP32
        numbers = np.rint(numbers.astype(np.float64) * 255)
    return Images(numbers.astype(np.uint8, copy=False), complete, rejected)


def _fault(numbers: npt.NDArray[np.generic], missing: npt.NDArray[np.bool_], at: int) -> str:
    value = "null" if missing[at] else f"the value {numbers[at]:g}"
    return f"has {value} at {at}; expected {'0 to 1' if numbers.dtype.kind == 'f' else '0 to 255'}"


def _numbers(lengths: pa.Array, null: int) -> npt.NDArray[np.int64]:
    return np.asarray(lengths.fill_null(null)).astype(np.int64)
