"""The allowed imports: the table that tests/test_architecture.py checks and docs/architecture.md shows.

`python tests/import_table.py` writes it into the page.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- import table: begin -->\n", "<!-- import table: end -->\n"


class Package(NamedTuple):
    """A folder of modules, or one module, and its allowed imports."""

    name: str
    ours: tuple[str, ...] = ()
    third_party: tuple[str, ...] = ()


TABLE = (
    Package("service.pb", (), ("google", "grpc")),
    Package("service", (), ("numpy", "pydantic", "pydantic_core", "pydantic_settings")),
    Package("service.inference", ("service",), ("numpy", "onnxruntime", "structlog")),
    Package(
        "service.observability",
        ("service",),
        ("numpy", "opentelemetry", "prometheus_client", "pynvml", "structlog", "waitress"),
    ),
    Package("service.security", ("service", "service.observability"), ("grpc", "structlog")),
    Package("service.batching", ("service", "service.observability"), ("numpy",)),
    Package(
        "service.handlers",
        ("service", "service.inference", "service.observability", "service.pb"),
        ("google", "numpy"),
    ),
    Package("service.transports", ("service", "service.observability"), ("google", "grpc_health", "structlog")),
    Package(
        "service.transports.grpcio",
        ("service", "service.handlers", "service.observability", "service.security", "service.transports"),
        ("google", "grpc", "grpc_health"),
    ),
    Package("digitserve_client.pb", (), ("google", "grpc")),
    Package(
        "digitserve_client",
        ("digitserve_client.pb",),
        ("PIL", "google", "grpc", "grpc_health", "grpc_status", "numpy", "pillow_heif"),
    ),
    Package(
        "service.transports.http",
        (
            *("digitserve_client", "service", "service.handlers", "service.observability", "service.pb"),
            *("service.security", "service.transports"),
        ),
        ("google", "httptools", "numpy", "prometheus_client", "uvicorn"),
    ),
    Package(
        "service.transports.native",
        (
            *("service", "service.batching", "service.handlers", "service.observability", "service.security"),
            "service.transports",
        ),
        ("grpc_health", "numpy", "prometheus_client", "structlog"),
    ),
    Package(
        "service.runtime",
        (
            *("service", "service.batching", "service.handlers", "service.inference", "service.observability"),
            *("service.security", "service.transports", "service.transports.grpcio", "service.transports.http"),
            "service.transports.native",
        ),
        ("prometheus_client", "structlog"),
    ),
    Package("service.__main__", ("service", "service.observability", "service.runtime"), ("uvloop",)),
    Package("commandline", ("digitserve_client", "service"), ("_typeshed", "typer")),
    Package(
        "export",
        ("commandline",),
        ("jax", "matplotlib", "numpy", "onnx", "onnxruntime", "optax", "rich", "safetensors", "typer"),
    ),
    Package(
        "playground",
        ("commandline", "digitserve_client", "service.pb"),
        ("google", "grpc", "httpx2", "numpy", "starlette", "typer", "uvicorn"),
    ),
    Package(
        "ray_serve",
        (
            *("commandline", "service", "service.batching", "service.handlers", "service.inference"),
            *("service.observability", "service.pb", "service.runtime", "service.transports"),
        ),
        (
            *("google", "grpc", "grpc_health", "numpy", "prometheus_client", "pydantic", "pydantic_settings", "ray"),
            *("starlette", "structlog"),
        ),
    ),
    Package(
        "digitserve",
        ("commandline", "digitserve_client", "ray_serve", "service", "service.inference"),
        ("PIL", "grpc", "numpy", "pyarrow", "ray", "rich", "typer"),
    ),
)
"""Lowest packages first: a package imports only packages above it in this table, so that there is no cycle."""

FOLDERS = {"digitserve_client": "client/digitserve_client"}
"""The folders of packages that are not below the root under their own name."""


def floors() -> dict[str, int]:
    """Return the height of each package above those that import none of ours."""
    found: dict[str, int] = {}
    for package in TABLE:
        found[package.name] = 1 + max((found[name] for name in package.ours), default=-1)
    return found


def render() -> str:
    """Render the table in Markdown, with the picture of the layers above it."""
    level = floors()
    picture = [
        f"{number}  {'  '.join(name for name, floor in level.items() if floor == number)}"
        for number in range(max(level.values()), -1, -1)
    ]
    rows = [
        f"| `{package.name}` | {_named(package.ours)} | {', '.join(package.third_party) or '-'} |" for package in TABLE
    ]
    return "\n".join(
        ["```text", *picture, "```", "", "| package | of ours | third party |", "|---|---|---|", *rows, ""]
    )


def _named(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "-"


def main() -> None:
    """Write the table into the page."""
    text = PAGE.read_text()
    head, rest = text.split(BEGIN)
    PAGE.write_text(head + BEGIN + render() + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
