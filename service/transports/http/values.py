"""Values of JSON documents: checked types, and nested lists as flat ones."""

from __future__ import annotations

from typing import Any, TypeVar

from service.errors import InvalidInput

T = TypeVar("T")

MAX_DIMENSIONS = 8
"""Of nested lists."""

_NAMES: dict[type, str] = {dict: "an object", list: "an array", str: "a string", int: "an integer", bool: "a boolean"}


def expect(kind: type[T], value: Any, field: str) -> T:
    """Return a value of exactly this type; raises InvalidInput."""
    if type(value) is not kind:
        raise InvalidInput(field, f"is {describe(value)}; expected {_NAMES[kind]}")
    return value


def get(document: dict[str, Any], key: str, kind: type[T], default: T, prefix: str = "") -> T:
    """Return the value of a key, or the default if it is absent or null; raises InvalidInput for another type."""
    value = document.get(key)
    return default if value is None else expect(kind, value, f"{prefix}{key}")


def describe(value: Any) -> str:
    """Name the type of a JSON value."""
    if value is None:
        return "null"
    return "a number" if type(value) is float else _NAMES[type(value)]


def flatten(values: list[Any], field: str) -> list[Any]:
    """Flatten lists within lists, row by row; raises InvalidInput if only some elements are lists."""
    for _ in range(MAX_DIMENSIONS):
        lists = sum(type(value) is list for value in values)
        if not lists:
            return values
        if lists != len(values):
            raise InvalidInput(field, "mixes numbers and arrays; expected numbers, or arrays of one depth")
        values = [value for row in values for value in row]
    raise InvalidInput(field, f"has more than {MAX_DIMENSIONS} dimensions")
