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
SOURCE = {"type": "prometheus", "uid": "${datasource}"}  # a variable, so that it imports into any Grafana
WIDTH, HEIGHT = 24, 8
JOB, REPLICA = 'job="digitserve"', 'job="digitserve",instance=~"$instance"'
UNARY = f'{REPLICA},grpc_type="unary",grpc_method=~"Predict|ModelInfer"'
OURS = f'{REPLICA},grpc_service=~"digits.v1.DigitService|inference.GRPCInferenceService"'
ENVOY = 'job="envoy",envoy_cluster_name="replicas"'
GREEN, ORANGE, RED = "green", "orange", "red"


class Panel(NamedTuple):
    """One panel: queries with their legends. Units are Grafana's: s, short, percentunit, reqps, bytes.

    `steps` are the values from which it is orange or red, or green again; below the first one it is `base`.
    """

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    about: str
    kind: str = "timeseries"
    steps: tuple[tuple[float, str], ...] = ()
    base: str = GREEN


def _rate(name: str, matchers: str = REPLICA, by: str = "") -> str:
    grouping = f" by ({by})" if by else ""
    return f"sum{grouping} (rate({name}{{{matchers}}}[$__rate_interval]))"


def _mean(name: str) -> str:
    return f"{_rate(f'{name}_sum')} / {_rate(f'{name}_count')}"


def _quantile(q: float, name: str, matchers: str = REPLICA, by: str = "") -> str:
    return f"histogram_quantile({q}, {_rate(f'{name}_bucket', matchers, ', '.join(filter(None, (by, 'le'))))})"


def _increase(name: str, window: str, by: str, matchers: str = REPLICA) -> str:
    return f"sum by ({by}) (increase({name}{{{matchers}}}[{window}]))"


def _handling(q: float) -> tuple[str, str]:
    return _quantile(q, "grpc_server_handling_seconds", UNARY, "grpc_method"), "{{grpc_method}}"


_SHARES = (
    f"sum by (digit) (increase(digits_predictions_total{{{REPLICA}}}[1h]))"
    f" / on () group_left () sum(increase(digits_predictions_total{{{REPLICA}}}[1h]))"
)

ROWS: dict[str, tuple[Panel, ...]] = {
    "Is it up?": (
        Panel(
            "Replicas that serve",
            "short",
            ((f"sum(digits_serving{{{REPLICA}}}) or vector(0)", "serving"),),
            "Replicas whose health says SERVING. At 0 every call fails.",
            "stat",
            ((1, GREEN),),
            RED,
        ),
        Panel(
            "Alerts firing",
            "short",
            (('count(ALERTS{alertstate="firing",alertname=~"Digitserve.*"}) or vector(0)', "firing"),),
            "Each has a paragraph in docs/operating.md, under its name.",
            "stat",
            ((1, RED),),
        ),
        Panel(
            "Since the last success",
            "s",
            ((f"time() - max(digits_last_success_timestamp_seconds{{{REPLICA}}} > 0)", "age"),),
            "Seconds since the model last answered. It grows without load, and under load it must not.",
            "stat",
            ((120, ORANGE),),
        ),
        Panel(
            "Starts in the last hour",
            "short",
            ((f"sum by (host) (job_instance_host:process_start:changes1h{{{REPLICA}}})", "{{host}}"),),
            "Times that a container or pod started its process again.",
            "stat",
            ((1, ORANGE), (3, RED)),
        ),
        Panel(
            "Alerts by name",
            "short",
            (('ALERTS{alertstate="firing",alertname=~"Digitserve.*"}', "{{alertname}} {{instance}}"),),
            "What fires now, and where.",
            "table",
        ),
        Panel(
            "Model in service",
            "short",
            ((f"digits_model_info{{{REPLICA}}}", "{{instance}}"),),
            "The model file of each replica, its digests, and the execution provider that runs it.",
            "table",
        ),
        Panel(
            "Program in service",
            "short",
            ((f"digits_server_info{{{REPLICA}}}", "{{instance}}"),),
            "The host (container or pod) behind each address, and the versions that it runs.",
            "table",
        ),
    ),
    "How much is asked?": (
        Panel(
            "Calls by method",
            "reqps",
            ((f"{_rate('grpc_server_started_total', OURS, 'grpc_method')} > 0", "{{grpc_method}}"),),
            "Calls of digits.v1 and of the Open Inference Protocol; health checks are left out.",
        ),
        Panel(
            "Images answered a second",
            "short",
            ((_rate("digits_predictions_total"), "images"),),
            "A call may hold many images.",
        ),
        Panel(
            "Calls by replica",
            "reqps",
            ((_rate("grpc_server_started_total", OURS, "instance"), "{{instance}}"),),
            "Even behind Envoy. Without it a connection stays with one replica.",
        ),
    ),
    "What fails?": (
        Panel(
            "Calls by outcome",
            "reqps",
            ((f"{_rate('grpc_server_handled_total', OURS, 'grpc_code')} > 0", "{{grpc_code}}"),),
            "By gRPC status code.",
        ),
        Panel(
            "Faults of the service",
            "reqps",
            (
                (
                    _rate("grpc_server_handled_total", f'{OURS},grpc_code=~"Unknown|Internal|DataLoss"', "grpc_method"),
                    "{{grpc_method}}",
                ),
            ),
            "Internal, Unknown and DataLoss: the log has a traceback for each.",
            steps=((0.001, RED),),
        ),
        Panel(
            "Dropped before the model",
            "reqps",
            ((_rate("digits_requests_dropped_total", by="reason"), "{{reason}}"),),
            "Rejected because the queue was full, too late to be worth running, or cancelled by the client.",
        ),
        Panel(
            "Device failures and stalls",
            "short",
            (
                (_increase("digits_device_failures_total", "10m", "reason"), "{{reason}}"),
                (f"sum(increase(digits_stalls_total{{{REPLICA}}}[10m]))", "stalls"),
            ),
            "In ten minutes.",
            steps=((1, RED),),
        ),
    ),
    "How fast is it?": (
        Panel("p50", "s", (_handling(0.5),), "Half of the unary calls take no longer, by the server's clock."),
        Panel("p99", "s", (_handling(0.99),), "One call in a hundred takes longer.", steps=((0.01, ORANGE),)),
        Panel("p99.9", "s", (_handling(0.999),), "The objective: below 10 ms.", steps=((0.01, RED),)),
        Panel(
            "Where calls lie",
            "s",
            ((_rate("grpc_server_handling_seconds_bucket", UNARY, "le"), "{{le}}"),),
            "Calls a second in each bucket of the latency histogram.",
            "heatmap",
        ),
    ),
    "Is the promise kept?": (
        Panel(
            "Calls that fail or take more than 10 ms",
            "percentunit",
            tuple((f"job:digits_slo_bad:ratio_{window}", window) for window in ("5m", "1h", "6h", "1d")),
            "The promise is 99.9% under 10 ms, so 0.1% may. Of all replicas together.",
            steps=((0.001, RED),),
        ),
        Panel(
            "Burn rate of the error budget",
            "short",
            tuple((f"job:digits_slo_bad:ratio_{window} / 0.001", window) for window in ("5m", "1h", "6h", "3d")),
            "1 uses up the budget of 30 days in 30 days; 14.4 over an hour pages. Of all replicas together.",
            steps=((1, ORANGE), (14.4, RED)),
        ),
        Panel(
            "Calls that clients gave up",
            "percentunit",
            (("job:digits_given_up:ratio10m", "cancelled or too late"),),
            "A frozen server sees a client's deadline as a cancellation that took no time. Of all replicas together.",
            steps=((0.05, RED),),
        ),
    ),
    "Where does the time go?": (
        Panel(
            "Mean: wait and run",
            "s",
            ((_mean("digits_queue_seconds"), "wait"), (_mean("digits_inference_seconds"), "run")),
            "In the queue, and in one run of the model.",
        ),
        Panel(
            "p99: wait and run",
            "s",
            ((_quantile(0.99, "digits_queue_seconds"), "wait"), (_quantile(0.99, "digits_inference_seconds"), "run")),
            "More waiting is more load. A slower run is a machine that is busy or throttled.",
        ),
        Panel(
            "Images in a run", "short", ((_mean("digits_batch_size"), "mean"),), "How many one run of the model has."
        ),
    ),
    "How full is it?": (
        Panel(
            "Calls in flight",
            "short",
            ((f"sum by (instance) (digits_requests_in_flight{{{REPLICA}}})", "{{instance}}"),),
            "Calls that have begun and not ended.",
        ),
        Panel(
            "Images in the queue",
            "short",
            ((f"digits_queue_images{{{REPLICA}}}", "{{instance}}"),),
            "At the moment of the scrape: a queue fills and empties between two of them.",
        ),
        Panel(
            "Share of the queue taken",
            "percentunit",
            ((f"job_instance:digits_queue:saturation{{{REPLICA}}}", "{{instance}}"),),
            "At 100% calls are rejected with RESOURCE_EXHAUSTED.",
            steps=((0.5, ORANGE), (0.9, RED)),
        ),
    ),
    "Are the answers still good?": (
        Panel(
            "Digits read, last hour",
            "percentunit",
            ((_SHARES, "{{digit}}"),),
            "The share of each digit among the answers.",
        ),
        Panel(
            "Distance from the training data",
            "short",
            (("job:digits_predictions:drift1h", "distance"),),
            "Half the sum of the differences: 0 for the same shares of digits, 1 for none in common. Of all replicas.",
            steps=((0.2, ORANGE),),
        ),
        Panel(
            "Winning activation",
            "short",
            (("job:digits_confidence:mean1h", "mean"), ("job:digits_unsure:ratio1h", "share that is unsure")),
            "On the test images the mean is 0.94. Of all replicas together.",
        ),
    ),
    "Which changes were taken up?": (
        Panel(
            "Last change refused",
            "short",
            ((f"1 - digits_last_reload_successful{{{REPLICA}}} == 1", "{{instance}} {{kind}}"),),
            "Nothing is shown while every change of a model, a certificate or the tokens was taken up.",
            steps=((1, RED),),
        ),
        Panel(
            "Models loaded and refused",
            "short",
            ((_increase("digits_model_reloads_total", "10m", "instance, result"), "{{instance}} {{result}}"),),
            "In ten minutes.",
        ),
        Panel(
            "Certificates and tokens",
            "short",
            (
                (
                    _increase("digits_credentials_rotations_total", "10m", "instance, kind, result"),
                    "{{instance}} {{kind}} {{result}}",
                ),
            ),
            "Rotations in ten minutes.",
        ),
        Panel(
            "Time left of the certificate",
            "s",
            (
                (f"(digits_tls_expiry_timestamp_seconds{{{REPLICA}}} > 0) - time()", "{{instance}}"),
                ('envoy_listener_ssl_certificate_expiration_unix_time_seconds{job="envoy"} - time()', "Envoy"),
            ),
            "Of the server's own and of Envoy's. Nothing is shown without TLS.",
            "stat",
            ((7 * 86400, GREEN),),
            RED,
        ),
    ),
    "Is the load balancer well?": (
        Panel(
            "Replicas that Envoy sends calls to",
            "short",
            (
                (f"envoy_cluster_membership_healthy{{{ENVOY}}}", "healthy"),
                (f"envoy_cluster_membership_total{{{ENVOY}}}", "known"),
            ),
            "This row is empty without Envoy.",
        ),
        Panel(
            "Statuses that clients get",
            "reqps",
            (
                (f"sum(rate(envoy_cluster_grpc_0{{{ENVOY}}}[$__rate_interval]))", "OK"),
                (f"sum(rate(envoy_cluster_grpc_14{{{ENVOY}}}[$__rate_interval]))", "UNAVAILABLE"),
            ),
            "As Envoy sends them, its own among them.",
        ),
        Panel(
            "Calls repeated",
            "reqps",
            ((f"sum(rate(envoy_cluster_upstream_rq_retry{{{ENVOY}}}[$__rate_interval]))", "repeated"),),
            "Calls that Envoy sent to another replica.",
        ),
    ),
    "What does it use?": (
        Panel(
            "Memory",
            "bytes",
            ((f"process_resident_memory_bytes{{{REPLICA}}}", "{{instance}}"),),
            "90 to 120 MB at rest.",
            steps=((400e6, RED),),
        ),
        Panel(
            "CPU",
            "percentunit",
            ((_rate("process_cpu_seconds_total", by="instance"), "{{instance}}"),),
            "100% is one core.",
        ),
        Panel(
            "Share of file handles and of connections",
            "percentunit",
            (
                (f"job_instance:process_fds:ratio{{{REPLICA}}}", "{{instance}} handles"),
                (f"job_instance:digits_connections:saturation{{{REPLICA}}}", "{{instance}} connections"),
            ),
            "At 100% connections are closed at once.",
            steps=((0.8, RED),),
        ),
        Panel(
            "Connections and calls ended",
            "short",
            (
                (
                    _increase("digits_connections_rejected_total", "15m", "instance, reason"),
                    "{{instance}} refused: {{reason}}",
                ),
                (
                    _increase("digits_connections_ended_total", "15m", "instance, reason"),
                    "{{instance}} ended: {{reason}}",
                ),
                (_increase("digits_calls_ended_total", "15m", "instance, reason"), "{{instance}} call: {{reason}}"),
            ),
            "By the bounds of the server, in 15 minutes: refused before the first call, or ended for what they held. "
            "The native transport counts connections, the grpcio transport calls.",
        ),
    ),
    "Does Prometheus see it?": (
        Panel(
            "Scrapes that succeed",
            "short",
            ((f"up{{{REPLICA}}}", "{{instance}}"),),
            "1 where Prometheus reaches the metrics port.",
        ),
        Panel(
            "Seconds of a scrape",
            "s",
            ((f"scrape_duration_seconds{{{REPLICA}}}", "{{instance}}"),),
            "It should take milliseconds.",
            steps=((1, ORANGE),),
        ),
        Panel(
            "Samples of a scrape",
            "short",
            ((f"scrape_samples_scraped{{{REPLICA}}}", "{{instance}}"),),
            "Series of one replica.",
        ),
        Panel(
            "Log lines and spans that were lost",
            "short",
            (
                (f"sum(digits_log_lines_dropped_total{{{REPLICA}}})", "log lines since the start"),
                (
                    f'sum by (result) (increase(digits_trace_spans_total{{{REPLICA},result!="sent"}}[10m]))',
                    "spans {{result}} in ten minutes",
                ),
            ),
            "A full disk or a collector that does not answer.",
            steps=((1, ORANGE),),
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
        "templating": {"list": [_source(), _instances()]},
        "annotations": {"list": []},
        "panels": panels,
    }


def _source() -> dict[str, Any]:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "refresh": 1}


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
            "format": {"table": "table", "heatmap": "heatmap"}.get(panel.kind, "time_series"),
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
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _options(panel.kind),
    }


def _defaults(panel: Panel) -> dict[str, Any]:
    steps = [{"color": panel.base, "value": None}, *({"color": color, "value": value} for value, color in panel.steps)]
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0, "thresholds": {"mode": "absolute", "steps": steps}}
    if panel.kind == "stat":
        defaults["color"] = {"mode": "thresholds"}
    elif panel.steps:
        defaults["custom"] = {"thresholdsStyle": {"mode": "dashed"}}
    return defaults


def _options(kind: str) -> dict[str, Any]:
    if kind == "stat":
        return {"colorMode": "background", "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
    if kind == "heatmap":
        return {"calculate": False, "yAxis": {"unit": "s"}, "color": {"scheme": "Oranges", "mode": "scheme"}}
    return {}


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
