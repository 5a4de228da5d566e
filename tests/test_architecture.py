"""Who may import whom, as docs/architecture.md draws it: anything absent from the table is forbidden."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from conftest import ROOT

if TYPE_CHECKING:
    from pathlib import Path

PB = "service.pb"

# Module or folder -> what it may import: ours by full name, third parties by their top-level name.
MAY_IMPORT: dict[str, set[str]] = {
    "service/__init__.py": set(),
    "service/errors.py": set(),
    "service/config.py": {"service.usage", "pydantic", "pydantic_core", "pydantic_settings"},
    "service/usage.py": {"service.__version__", "pydantic"},
    "service/healthcheck.py": set(),
    "service/logs.py": {"structlog"},
    "service/distribution.py": {"prometheus_client", "numpy"},
    "service/metrics.py": {"service", "service.distribution", "service.model", "prometheus_client", "numpy"},
    "service/onnx_outputs.py": set(),
    "service/diagnosis.py": {"onnxruntime"},
    "service/providers.py": {
        *("service.diagnosis", "service.errors", "service.onnx_outputs"),
        *("onnxruntime", "numpy", "structlog"),
    },
    "service/model.py": {"service.errors", "service.providers", "onnxruntime", "numpy"},
    "service/device.py": {"service.errors", "service.metrics", "service.model", "structlog"},
    "service/watchdog.py": {"service.batcher", "service.metrics", "service.model", "structlog"},
    "service/gpu_metrics.py": {"prometheus_client", "pynvml", "structlog"},
    "service/explain.py": {"service.model", "numpy"},
    "service/statistics.py": set(),
    "service/versions.py": {"service.errors", "service.model", "service.providers"},
    "service/reloading.py": {*("service.errors", "service.metrics", "service.model", "service.versions"), "structlog"},
    "service/batcher.py": {
        *("service.company", "service.errors", "service.metrics", "service.model", "service.statistics"),
        "numpy",
    },
    "service/company.py": set(),
    "service/handlers": {
        *("service.errors", "service.batcher", "service.model", "service.statistics", "service.handlers", PB),
        "service.explain",
        *("numpy", "google"),
    },
    "service/outbox.py": {"service.metrics", "opentelemetry", "structlog"},
    "service/tracing.py": {"service.errors", "service.metrics", "service.outbox", "opentelemetry", "structlog"},
    "service/traced.py": {
        *("service.batcher", "service.handlers", "service.metrics", "service.model", "service.statistics"),
        "service.tracing",
    },
    "service/transports/__init__.py": set(),
    "service/transports/status.py": {"service.errors", "google"},
    "service/transports/address.py": {"service.errors"},
    "service/transports/connections.py": set(),
    "service/transports/streams.py": {"service.errors"},
    "service/transports/unfinished.py": {"service.errors"},
    "service/transports/unsent.py": set(),
    "service/transports/reports.py": {"service.errors", "service.logs", "structlog"},
    "service/transports/ahead.py": {"grpc"},
    "service/transports/limits.py": {"service.handlers"},
    "service/transports/credentials.py": {
        *("service.errors", "service.metrics", "service.transports.certificates", "service.transports.rehearsal"),
        "structlog",
    },
    "service/transports/certificates.py": set(),
    "service/transports/rehearsal.py": {
        *("service.errors", "service.transports.certificates", "service.transports.credentials"),
        "grpc",
    },
    "service/transports/http.py": {"service.healthcheck", "service.transports", "prometheus_client", "waitress"},
    "service/transports/observed.py": {
        *("service.errors", "service.metrics", "service.transports"),
        *("grpc", "google", "structlog"),
    },
    "service/transports/traced.py": {
        *("service.metrics", "service.tracing", "service.transports"),
        "structlog",
    },
    "service/transports/grpcio.py": {
        *("service.errors", "service.handlers", "service.metrics", "service.tracing", "service.transports"),
        *("grpc", "grpc_health", "structlog"),
    },
    "service/transports/grpcio_health.py": {"grpc", "grpc_health"},
    "service/transports/grpcio_server.py": {*("service.errors", "service.metrics", "service.transports"), "grpc"},
    "service/transports/counts.py": {
        *("service.distribution", "service.metrics", "service.statistics", "service.transports"),
        "prometheus_client",
    },
    "service/transports/native.py": {
        *("service.errors", "service.handlers", "service.metrics", "service.model", "service.statistics"),
        *("service.batcher", "service.transports", "grpc_health", "structlog"),
    },
    "service/transports/host.py": {
        *("service.errors", "service.batcher", "service.handlers", "service.model", "service.transports"),
        *("numpy", "structlog"),
    },
    "service/parts.py": {"service", "structlog"},
    "service/stopping.py": {"structlog"},
    "service/server.py": {"service", "prometheus_client", "structlog"},
    "service/__main__.py": {"service.config", "service.errors", "service.logs", "service.server", "uvloop"},
    "commandline": {"service.__version__", "typer", "_typeshed"},
    "export": {
        *("commandline", "export", "numpy", "onnx", "onnxruntime", "safetensors", "typer", "rich"),
        *("jax", "optax", "matplotlib", "jaxlib"),
    },
    "play/__init__.py": set(),
    "play/gateway.py": {"client", "grpc", "numpy", "starlette"},
    "play/browser.py": set(),
    "play/__main__.py": {
        *("play.browser", "play.gateway", "client.digits", "client.options", "client.secure", "commandline"),
        *("typer", "uvicorn"),
    },
    # Scoring loads the model as the server does, and reads pictures as the client does.
    "score/__init__.py": set(),
    "score/errors.py": set(),
    "score/columns.py": {"client.image", "score.errors", "numpy", "pyarrow"},
    "score/inputs.py": {"client.image", "score.columns", "score.errors", "pyarrow"},
    "score/reading.py": {"client.image", "score.columns", "score.errors", "score.inputs", "score", "numpy", "pyarrow"},
    "score/writing.py": {
        *("service.model", "score.errors", "score.inputs", "score.reading"),
        *("numpy", "pyarrow"),
    },
    "score/output.py": {"score.errors", "score.writing", "pyarrow"},
    "score/engines.py": {"score.errors", "score.inputs", "score.writing", "cluster.reaching", "ray"},
    "score/run.py": {"score", "service.errors", "service.model"},
    "score/command.py": {"commandline", "score", "typer", "rich"},
    # On a cluster the same handlers and model answer, put together as service.server does; nothing imports it.
    "cluster/__init__.py": set(),
    "cluster/__main__.py": {
        *("cluster", "service.config", "service.errors", "service.logs"),
        *("commandline.startup", "service.transports.address"),
    },
    "cluster/config.py": {"service.config", "pydantic", "pydantic_settings"},
    "cluster/deploying.py": {"cluster", "service.errors", "service.model", "service.versions", "ray"},
    "cluster/registration.py": {
        *("service.errors", "service.transports.status", PB),
        *("grpc", "grpc_health", "google", "ray"),
    },
    "cluster/answering.py": {
        *("service.errors", "service.handlers", "service.metrics"),
        *("service.transports.observed", "service.transports.status", "grpc", "google", "structlog"),
    },
    "cluster/replica.py": {
        *("cluster", "service", "service.batcher", "service.errors", "service.handlers", "service.logs"),
        *("service.metrics", "service.model", "service.statistics"),
        *("numpy", "grpc_health", "google", "prometheus_client", "ray", "starlette"),
    },
    "cluster/reaching.py": set(),
    "cluster/exposition.py": {"prometheus_client"},
    # The command line alone takes up the command of scoring, whose module is light until it runs.
    "client/__main__.py": {"client", "commandline", "score.command", "numpy", "PIL", "rich", "typer", "grpc"},
    "client": {
        *("client", PB, "numpy", "PIL", "rich", "typer", "click"),
        *("grpc", "grpc_health", "grpc_status", "google"),
    },
}


def rule(path: Path) -> set[str]:
    name = path.relative_to(ROOT).as_posix()
    keys = [key for key in MAY_IMPORT if name == key or name.startswith(f"{key}/")]
    assert keys, f"{name} has no row in the table: say what it may import"
    return MAY_IMPORT[max(keys, key=len)]


def imported(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # `from service.handlers import digits` imports a module, `from service.errors import X` a name.
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found = {n for n in names if (ROOT / f"{n.replace('.', '/')}.py").exists() or n.endswith(".__version__")}
            modules |= found or {node.module or ""}
    return {m for m in modules if m.split(".")[0] not in sys.stdlib_module_names}


def allowed(module: str, rules: set[str]) -> bool:
    return any(module == rule or module.startswith(f"{rule}.") for rule in rules)


SOURCES = [
    path
    for package in ("service", "export", "client", "play", "score", "cluster", "commandline")
    for path in sorted((ROOT / package).rglob("*.py"))
    if "pb" not in path.parts
]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_only_what_the_table_allows(path: Path) -> None:
    rules = rule(path)
    forbidden = sorted(module for module in imported(path) if not allowed(module, rules))
    assert not forbidden, f"may import {sorted(rules)}"


KNOW_ONNX_RUNTIME = {"service/model.py", "service/providers.py", "service/diagnosis.py"}


def test_only_the_model_and_what_chooses_its_provider_know_onnx_runtime_and_nothing_served_knows_onnx() -> None:
    served = {path.relative_to(ROOT).as_posix(): imported(path) for path in SOURCES if path.parts[-2] != "export"}
    assert {name for name, modules in served.items() if "onnxruntime" in modules} == KNOW_ONNX_RUNTIME
    assert not [name for name, modules in served.items() if "onnx" in modules or "export" in modules]


@pytest.mark.parametrize("module", ["service.model", "export.graph"])
def test_onnx_runtime_is_told_not_to_report_its_use_before_it_is_imported(module: str) -> None:
    look = f"""
import os, sys
class AtImport:
    def find_spec(self, name, *_):
        if name == "onnxruntime":
            print("ORT_DISABLE_TELEMETRY", os.environ.get("ORT_DISABLE_TELEMETRY"))
sys.meta_path.insert(0, AtImport())
import {module}
"""
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    seen = subprocess.run(
        [sys.executable, "-c", look], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert seen.stdout == "ORT_DISABLE_TELEMETRY 1\n"


def test_the_table_has_no_row_for_what_is_not_there() -> None:
    assert [key for key in MAY_IMPORT if not (ROOT / key).exists()] == []


def test_every_module_says_in_its_first_line_what_it_is_for() -> None:
    for path in SOURCES:
        docstring = ast.get_docstring(ast.parse(path.read_text()))
        assert docstring, path
        assert docstring.split("\n")[0].endswith((".", ":", '?"')), f"{path}: {docstring.splitlines()[0]}"


def test_the_stubs_are_what_the_contracts_say(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import stubs  # noqa: PLC0415 (a script, not a package)
    finally:
        sys.path.pop(0)
    try:
        stubs.generate(tmp_path)
    except stubs.CompilerMissingError as error:
        pytest.skip(str(error))
    assert stubs.check(tmp_path) == []
