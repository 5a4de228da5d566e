"""Writes the Grafana dashboard: a row for each question of docs/operating.md, a panel for each answer.

    python scripts/dashboard.py [--check]

With --check it writes nothing and ends with status 1 where the file is not what it would write.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

OUT = Path(__file__).parent.parent / "deploy" / "grafana" / "dashboards" / "digitserve.json"
SOURCE = {"type": "prometheus", "uid": "prometheus"}  # as in provisioning/datasources
HERE = '{job="digitserve",instance=~"$instance"}'
SPANS_LOST = 'digits_trace_spans_total{job="digitserve", instance=~"$instance", result!="sent"}'
WIDTH, HEIGHT = 24, 8


class Panel(NamedTuple):
    """One panel: queries with their legends. Units are Grafana's: s, short, percentunit, reqps, bytes."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    kind: str = "timeseries"
    about: str = ""


ROWS: dict[str, tuple[Panel, ...]] = {
    "Is it up?": (
        Panel("Replicas that serve", "short", (("job:digits_serving:sum", "serving"),), "stat"),
        Panel("Since the last success", "s", (("job:digits_last_success:age_seconds", "age"),), "stat"),
        Panel("Starts in the last hour", "short", (("job_instance:process_start:changes1h", "{{instance}}"),), "stat"),
        Panel("Alerts firing", "short", (('count(ALERTS{alertstate="firing"}) or vector(0)', "firing"),), "stat"),
        Panel("Model in service", "short", ((f"digits_model_info{HERE}", "{{instance}}"),), "table"),
        Panel("Program in service", "short", ((f"digits_server_info{HERE}", "{{instance}}"),), "table"),
    ),
    "How much is asked?": (
        Panel("Calls by method", "reqps", (("job_method:grpc_server_started:rate5m > 0", "{{grpc_method}}"),)),
        Panel("Images answered a second", "short", (("job:digits_predictions:rate5m", "images"),)),
        Panel(
            "Calls by replica",
            "reqps",
            ((f"sum by (instance) (rate(grpc_server_started_total{HERE}[$__rate_interval]))", "{{instance}}"),),
        ),
    ),
    "What fails?": (
        Panel("Calls by outcome", "reqps", (("job_code:grpc_server_handled:rate5m > 0", "{{grpc_code}}"),)),
        Panel("Faults of the service", "reqps", (("job_method:grpc_server_faults:rate5m", "{{grpc_method}}"),)),
        Panel("Dropped before the model", "reqps", (("job_reason:digits_dropped:rate5m", "{{reason}}"),)),
        Panel(
            "Device failures, and what was stuck",
            "short",
            (
                (f"sum by (reason) (increase(digits_device_failures_total{HERE}[10m]))", "{{reason}}"),
                (f"sum(increase(digits_stalls_total{HERE}[10m]))", "stuck"),
            ),
            about="In ten minutes.",
        ),
    ),
    "How fast is it?": (
        Panel("p50", "s", (("job_method:grpc_server_handling_seconds:p50_5m", "{{grpc_method}}"),)),
        Panel("p99", "s", (("job_method:grpc_server_handling_seconds:p99_5m", "{{grpc_method}}"),)),
        Panel("p99.9", "s", (("job_method:grpc_server_handling_seconds:p999_5m", "{{grpc_method}}"),)),
    ),
    "Is the promise kept?": (
        Panel(
            "Calls that fail or take more than 10 ms",
            "percentunit",
            tuple((f"job:digits_slo_bad:ratio_{window}", window) for window in ("5m", "1h", "6h", "1d")),
            about="The promise is 99.9% under 10 ms, so 0.1% may.",
        ),
        Panel(
            "Burn rate of the error budget",
            "short",
            tuple((f"job:digits_slo_bad:ratio_{window} / 0.001", window) for window in ("5m", "1h", "6h", "3d")),
            about="1 uses up the budget of 30 days in 30 days; 14.4 over an hour wakes somebody.",
        ),
    ),
    "Where does the time go?": (
        Panel(
            "Mean: wait and run",
            "s",
            (("job:digits_queue_seconds:mean_5m", "wait"), ("job:digits_inference_seconds:mean_5m", "run")),
        ),
        Panel(
            "p99: wait and run",
            "s",
            (("job:digits_queue_seconds:p99_5m", "wait"), ("job:digits_inference_seconds:p99_5m", "run")),
        ),
        Panel("Images in a run", "short", (("job:digits_batch_size:mean_5m", "mean"),)),
    ),
    "How full is it?": (
        Panel("Calls in flight", "short", ((f"sum by (instance) (digits_requests_in_flight{HERE})", "{{instance}}"),)),
        Panel("Images in line", "short", ((f"digits_queue_images{HERE}", "{{instance}}"),)),
        Panel("Share of the line taken", "percentunit", (("job_instance:digits_queue:saturation", "{{instance}}"),)),
    ),
    "Are the answers still good?": (
        Panel("Digits read, last hour", "percentunit", (("job_digit:digits_predictions:share1h", "{{digit}}"),)),
        Panel("Distance from the training data", "short", (("job:digits_predictions:drift1h", "distance"),)),
        Panel(
            "Winning activation",
            "short",
            (("job:digits_confidence:mean1h", "mean"), ("job:digits_confidence:below_half1h", "share below 0.5")),
        ),
    ),
    "What does it use?": (
        Panel("Memory", "bytes", ((f"process_resident_memory_bytes{HERE}", "{{instance}}"),)),
        Panel("CPU", "percentunit", (("job_instance:process_cpu:rate5m", "{{instance}}"),)),
        Panel(
            "Share of file handles and of connections",
            "percentunit",
            (
                ("job_instance:process_fds:ratio", "{{instance}} handles"),
                ("job_instance:digits_connections:saturation", "{{instance}} connections"),
            ),
        ),
        Panel(
            "Connections refused",
            "short",
            (("job_instance_reason:digits_connections_refused:increase15m", "{{instance}} {{reason}}"),),
            about="In 15 minutes; the native transport alone tells.",
        ),
    ),
    "Does Prometheus see it?": (
        Panel("Scrapes that succeed", "short", ((f"up{HERE}", "{{instance}}"),)),
        Panel("Seconds of a scrape", "s", ((f"scrape_duration_seconds{HERE}", "{{instance}}"),)),
        Panel("Samples of a scrape", "short", ((f"scrape_samples_scraped{HERE}", "{{instance}}"),)),
        Panel(
            "Log lines and spans that were lost",
            "short",
            (
                (f"sum(digits_log_lines_dropped_total{HERE})", "log lines since the start"),
                (f"sum by (result) (increase({SPANS_LOST}[10m]))", "spans {{result}} in ten minutes"),
            ),
        ),
    ),
}


def dashboard() -> dict[str, Any]:
    """The whole of it, in Grafana 11's schema."""
    panels: list[dict[str, Any]] = []
    y = 0
    for question, answers in ROWS.items():
        box = {"x": 0, "y": y, "w": WIDTH, "h": 1}
        panels.append({"id": len(panels) + 1, "type": "row", "title": question, "collapsed": False, "gridPos": box})
        panels[-1]["panels"] = []
        per_line = 4 if len(answers) > 3 else len(answers)
        y += 1
        for start in range(0, len(answers), per_line):
            line = answers[start : start + per_line]
            width = WIDTH // len(line)
            for i, answer in enumerate(line):
                box = {"x": i * width, "y": y, "w": width, "h": HEIGHT}
                panels.append(_panel(len(panels) + 1, answer, box))
            y += HEIGHT
    return {
        "uid": "digitserve",
        "title": "digitserve",
        "tags": ["grpc", "digitserve"],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [_instances()]},
        "annotations": {"list": []},
        "panels": panels,
    }


def _instances() -> dict[str, Any]:
    query = 'label_values(digits_serving{job="digitserve"}, instance)'
    return {
        "name": "instance",
        "label": "Replica",
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": "instance"},
        "definition": query,
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _panel(number: int, panel: Panel, box: dict[str, int]) -> dict[str, Any]:
    table = panel.kind == "table"
    targets = [
        {
            "refId": chr(ord("A") + i),
            "datasource": SOURCE,
            "expr": expr,
            "legendFormat": legend,
            "instant": table,
            "range": not table,
            "format": "table" if table else "time_series",
            "exemplar": panel.title.startswith("p99"),
        }
        for i, (expr, legend) in enumerate(panel.queries)
    ]
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": SOURCE,
        "gridPos": box,
        "targets": targets,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {},
    }


def main() -> int:
    """Write the file, or compare it."""
    text = json.dumps(dashboard(), indent=1) + "\n"
    if "--check" not in sys.argv[1:]:
        OUT.write_text(text)
    elif OUT.read_text() != text:
        print(f"{OUT.name} is not what scripts/dashboard.py writes: run it", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
