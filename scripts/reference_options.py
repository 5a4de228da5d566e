"""docs/configuration.md: each option of the server, from the fields of its settings."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from ray_serve.config import ClusterSettings
from service.config import PREFIX, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

INTRODUCTION = """\
# Configuration

<!-- Written by scripts/reference.py from service/config.py and ray_serve/config.py: `make reference`. -->

Each option of `digitserve serve` is a flag, an environment variable and a line of `--help`. A flag overrides its
variable. The server logs all values when it starts, and exits with status 2 if a value is invalid. It warns about each
unknown variable that begins with `DIGITS_`.

- [Operating](operating.md) explains the options together.
- [Deploying](deploying.md#settings) lists the settings of the containers.
- `digitserve serve --list-providers` prints the execution providers of this machine.
"""
RAY = """
## Ray cluster

`digitserve ray` has the options below, with other defaults or of its own. The options {shared} are those of the server.
See [Ray](ray.md).

| option | values | default | purpose |
|---|---|---|---|
"""


def options_page() -> str:
    """Return the page as Markdown."""
    headings = {first: title for title, first in Settings.headings.items()}
    lines = [INTRODUCTION]
    for name, schema in _properties(Settings):
        if name in headings:
            lines.append(f"\n## {headings[name]}\n")
        lines += [f"### `{_flag(name)}`", "", sentences(schema["description"]), ""]
        lines += [f"`{PREFIX}{name.upper()}` · {_values(name, schema)} · {_default(schema['default'])}", ""]
    own = [name for name, schema in _properties(ClusterSettings) if schema != dict(_properties(Settings)).get(name)]
    shared = [f"`{_flag(name)}`" for name, _ in _properties(ClusterSettings) if name not in own]
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines))
    text += RAY.format(shared=", ".join(shared[:-1]) + f" and {shared[-1]}")
    for name, schema in _properties(ClusterSettings):
        if name in own:
            default = _default(schema["default"]).removeprefix("default ")
            text += f"| `{_flag(name)}` | {_values(name, schema)} | {default} | {sentences(schema['description'])} |\n"
    return text


def sentences(help_: str) -> str:
    """Return a line of `--help` as sentences in Markdown; names such as gRPC and HOST:PORT keep their case."""
    help_ = re.sub(r"(?<![`\w-])(--[a-z][a-z-]+|auto\b(?!:))", r"`\1`", help_)
    parts = [re.sub(r"^[a-z](?=[a-z-]*[\s,;.])", lambda letter: letter[0].upper(), part) for part in help_.split("; ")]
    return ". ".join(parts).rstrip(".") + "."


def _properties(settings: type[Settings | ClusterSettings]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each option with its JSON schema; of an optional value, the schema of the value."""
    for name, schema in settings.model_json_schema()["properties"].items():
        value: dict[str, Any] = next((kind for kind in schema.get("anyOf", []) if kind["type"] != "null"), {})
        yield name, {**schema, **value}


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _values(name: str, schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema["type"] == "boolean":
        return f"`{_flag(name)}` or `{_flag('no_' + name)}`"
    if schema["type"] == "string":
        return "path" if schema.get("format") == "path" else "text"
    kind = "integer" if schema["type"] == "integer" else "number"
    if "exclusiveMinimum" in schema:
        return f"{kind} above {schema['exclusiveMinimum']:,g}, to {schema['maximum']:,}"
    return f"{kind}, {schema['minimum']:,} to {schema['maximum']:,}"


def _default(value: object) -> str:
    if value is None or value == "":
        return "no default"
    if isinstance(value, bool):
        return f"default {'on' if value else 'off'}"
    return f"default `{value:g}`" if isinstance(value, float) else f"default `{value}`"
