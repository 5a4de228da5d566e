"""The options of an execution provider, from the text of the command line."""

from __future__ import annotations

import json


def parsed_options(text: str) -> dict[str, str]:
    """Provider options of a command line, key=value,key=value or a JSON object; ValueError for anything else."""
    if text.startswith("{"):
        try:
            parsed = json.loads(text)
        except (ValueError, RecursionError):
            raise ValueError("expected key=value,key=value or a JSON object") from None
        if not all(isinstance(value, str | int | float) for value in parsed.values()):
            raise ValueError("expected strings, numbers and booleans as values")
        return {key: value if isinstance(value, str) else json.dumps(value) for key, value in parsed.items()}
    pairs = [pair.partition("=") for pair in text.split(",")] if text else []
    if any(not (key.strip() and equals) for key, equals, _ in pairs):
        raise ValueError("expected key=value,key=value or a JSON object")
    return {key.strip(): value.strip() for key, _, value in pairs}
