"""docs/metrics.md and docs/alerts.md: each metric, from the registry of a server, and each alert, from its rule."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import yaml

from service.observability.gpu_metrics import GpuCollector
from service.observability.metrics import GRPCIO_SERIES, NATIVE_SERIES, Metrics, create_registry
from service.observability.rpc_metrics import Rpc, RpcMetrics
from service.transports.http.metrics import HttpMetrics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric

ROOT = Path(__file__).parent.parent
RULES = ("rules/records.yml", "rules/alerts.yml", "envoy/rules.yml")
METRICS = """\
# Metrics

<!-- Written by scripts/reference.py from service/observability and service/transports/http: `make reference`. -->

`/metrics` on `--metrics-port` has the metrics below, and `process_*` and `python_gc_*` of
[prometheus-client](https://prometheus.github.io/client_python/collector/). The series of a histogram are its name with
`_bucket`, `_sum` and `_count`. Clients that negotiate OpenMetrics receive exemplars
with the id of a request. [Operating](operating.md#metrics) explains how to scrape and to read them.

The series of `Predict`, `PredictStream`, `ModelInfer` and `ModelStreamInfer` exist from the start. Another RPC has only
`grpc_server_started_total` until its first call.
"""
GROUPS = {
    "RPCs": r"grpc_server|digits_requests_in_flight",
    "HTTP": "http_server",
    "Queue and runs of the model": "digits_(queue|inference|batch|requests_dropped|stalls|last_success)",
    "Answers": "digits_(predictions|confidence|unsure)",
    "Model, device and reloads": "digits_(model|device|gpu|last_reload|credentials|tls)",
    "Connections and calls": "digits_(connections|calls)",
    "Server": "digits_",
}
"""The headings of the page, each with the names below it that no earlier heading has."""

MAX_VALUES = 10
UNITS = {"_timestamp_seconds": "Unix time in seconds", "_seconds": "seconds", "_bytes": "bytes", "_images": "images"}
UNITS |= {"_ratio": "ratio, 0 to 1", "_batch_size": "images", "_confidence": "activation, 0 to 1"}
ALERTS = """\
# Alerts

<!-- Written by scripts/reference.py from deploy/prometheus: `make reference`. -->

Each name leads to its paragraph in the runbook: causes and actions. The rules are in
`deploy/prometheus/rules/alerts.yml`; those for Envoy in `deploy/prometheus/envoy/rules.yml`.
"""
SEVERITIES = {"page": "Page: a person is needed now", "ticket": "Ticket: it can wait for the morning"}


def metrics_page() -> str:
    """Return docs/metrics.md."""
    grouped: dict[str, list[Metric]] = {title: [] for title in GROUPS}
    for family in _families():
        title = next(title for title, names in GROUPS.items() if re.match(names, family.name))
        grouped[title].append(family)
    text = METRICS
    for title, families in grouped.items():
        text += f"\n## {title}\n" + "".join(map(_described, families))
    return text


def _families() -> list[Metric]:
    """Collect every family of the project from a registry that holds all of them."""
    registry = create_registry()
    metrics = Metrics(registry)
    metrics.io_thread_connections = [0]
    metrics.connections_rejected = dict.fromkeys(("full", "handshake"), 0)
    metrics.connections_ended = dict.fromkeys(("unread", "memory"), 0)
    RpcMetrics(metrics, Rpc("unary", "digits.v1.DigitService", "Predict"))
    HttpMetrics(registry, [("POST", "/v1/predict")])
    zero = SimpleNamespace(gpu=0, used=0, total=0)
    nvml: Any = SimpleNamespace(nvmlDeviceGetUUID=str, NVMLError=Exception)
    nvml.nvmlDeviceGetUtilizationRates = nvml.nvmlDeviceGetMemoryInfo = lambda _: zero
    registry.register(GpuCollector(nvml, 0))
    return [family for family in registry.collect() if re.match("grpc_|http_|digits_", family.name)]


def _described(family: Metric) -> str:
    name = family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
    unit = next((unit for suffix, unit in UNITS.items() if family.name.endswith(suffix)), "")
    kind = {"info": "info, always 1"}.get(family.type, family.type)
    labels = ", ".join(_labels(family))
    facts = filter(None, [kind, unit, _present(family.name, name), labels and f"labels {labels}"])
    details = []
    if family.type == "histogram":
        bounds = dict.fromkeys(sample.labels["le"] for sample in family.samples if sample.name.endswith("_bucket"))
        details.append(f"- Buckets: {', '.join(_decimal(bound) for bound in bounds if bound != '+Inf')}")
    if alerts := [_link(rule) for rule in _alerts() if name in _read(rule["expr"])]:
        details.append(f"- Alerts: {', '.join(alerts)}")
    text = f"\n### `{name}`\n\n{family.documentation}\n\n{' · '.join(facts)}\n"
    return text + ("\n" + "\n".join(details) + "\n" if details else "")


def _present(family: str, name: str) -> str:
    """Return the condition under which a server has the metric."""
    if name in NATIVE_SERIES:
        return "native transport"
    if name in GRPCIO_SERIES:
        return "grpcio transport"
    return {"http": "with `--http-port`", "digits_gpu": "with an NVIDIA GPU"}.get(
        next((start for start in ("http", "digits_gpu") if family.startswith(start)), ""), ""
    )


def _labels(family: Metric) -> Iterator[str]:
    """Yield each label, with its values if the code names all of them and they are few."""
    values: dict[str, dict[str, None]] = {}
    for sample in family.samples:
        for label, value in sample.labels.items():
            if label != "le":
                values.setdefault(label, {})[value] = None
    for label, known in values.items():
        named = 1 < len(known) <= MAX_VALUES
        yield f"`{label}`" + (f" ({', '.join(f'`{value}`' for value in known)})" if named else "")


def _decimal(bound: str) -> str:
    return f"{float(bound):f}".rstrip("0").rstrip(".")


@functools.cache
def _rules() -> list[dict[str, Any]]:
    files = [yaml.safe_load((ROOT / "deploy/prometheus" / path).read_text()) for path in RULES]
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]


def _alerts() -> list[dict[str, Any]]:
    return [rule for rule in _rules() if "alert" in rule]


def _read(expression: str) -> set[str]:
    """Return the metrics that an expression reads, by itself or by recorded series."""
    names = {re.sub("_(bucket|sum|count)$", "", name) for name in re.findall(r"[a-zA-Z_:][\w:]*", expression)}
    recorded = [_read(rule["expr"]) for rule in _rules() if rule.get("record") in names]
    return names.union(*recorded)


def _link(alert: dict[str, Any]) -> str:
    return f"[{alert['alert']}]({alert['annotations']['runbook_url'].removeprefix('docs/')})"


def alerts_page() -> str:
    """Return docs/alerts.md."""
    text = ALERTS
    for severity, title in SEVERITIES.items():
        text += f"\n## {title}\n\n| alert | meaning |\n|---|---|\n"
        for alert in _alerts():
            if alert["labels"]["severity"] == severity:
                meaning = re.sub(r"\{\{ \$labels\.(\w+) \}\}", r"`\1`", alert["annotations"]["summary"])
                text += f"| {_link(alert)} | {meaning} |\n"
    return text
