"""The status page: one HTML document without scripts, rendered when a browser requests it."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING

from service.observability.sparkline import sparkline
from service.observability.status_style import STYLE
from service.observability.traffic_history import TrafficHistory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from prometheus_client import CollectorRegistry

    from service.observability.metrics import Metrics
    from service.observability.recent_events import Event, RecentEvents

PAGE_HEADERS = (
    ("Cache-Control", "no-store"),
    ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
)

_METRICS = (
    *("digits_model_info", "digits_server_info", "digits_queue_images", "digits_queue_capacity_images"),
    *("digits_connections", "digits_connections_limit", "digits_tls_expiry_timestamp_seconds", "digits_stalls_total"),
    *("digits_last_success_timestamp_seconds",),
)
_MIN_SPAN = 36
"""Samples: 3 minutes."""

_Labels = dict[str, str]


class StatusPage:
    """The model, its traffic and its last events; `start` begins the history of the traffic."""

    def __init__(
        self,
        registry: CollectorRegistry,
        metrics: Metrics,
        events: RecentEvents,
        is_serving: Callable[[], bool],
        health_text: Callable[[], str] = lambda: "",
    ) -> None:
        self._registry = registry
        self._events = events
        self._is_serving = is_serving
        self._health_text = health_text
        self._history = TrafficHistory(metrics)
        self._started_at = time.time()

    def start(self) -> None:
        """Start the history."""
        self._history.start()

    def stop(self) -> None:
        """End the history."""
        self._history.stop()

    def render(self) -> str:
        """Return the document."""
        values, infos = self._read_metrics()
        model, server = infos.get("digits_model_info", {}), infos.get("digits_server_info", {})
        health = "SERVING" if self._is_serving() else "NOT_SERVING"
        host = server.get("host", "")
        return _DOCUMENT.format(
            style=STYLE,
            refresh=f"{self._history.interval:g}",
            title=escape(f"{health} {host} - digitserve"),
            health=health,
            health_text=escape(self._health_text()),
            host=escape(host),
            minutes=f"{self._span() * self._history.interval / 60:.0f}",
            charts=self._charts(),
            model=_definitions(_model_facts(model, values)),
            server=_definitions(_server_facts(server, model.get("transport", ""), values, self._started_at)),
            rejections=_events(self._events.rejections, "No call was rejected or failed."),
            changes=_events(self._events.changes, "No event."),
        )

    def _read_metrics(self) -> tuple[dict[str, float], dict[str, _Labels]]:
        values, infos = {}, {}
        for family in self._registry.restricted_registry(_METRICS).collect():
            for sample in family.samples:
                values[sample.name] = sample.value
                infos[sample.name] = sample.labels
        return values, infos

    def _span(self) -> int:
        """Return the samples that the width of a chart stands for: a young history does not fill a corner alone."""
        return max(_MIN_SPAN, len(self._history.samples))

    def _charts(self) -> str:
        samples, span = self._history.samples, self._span()
        return "".join(
            _chart(title, series, unit, span)
            for title, series, unit in (
                ("Calls", [one.calls for one in samples], _rate),
                ("Images", [one.images for one in samples], _rate),
                ("Not OK", [one.failed_calls for one in samples], _rate),
                ("Latency p50", [one.p50 for one in samples], _duration),
                ("Latency p99", [one.p99 for one in samples], _duration),
            )
        )


def _chart(title: str, series: Sequence[float | None], unit: Callable[[float], str], span: int) -> str:
    known = [value for value in series if value is not None]
    last = series[-1] if series else None
    now = "-" if last is None else unit(last)
    peak = f"max {unit(max(known))}" if known else "no data yet"
    picture = sparkline(series, span, f"{title}, now {now}, {peak}")
    return f"<figure><figcaption>{title}</figcaption><strong>{now}</strong>{picture}<small>{peak}</small></figure>"


def _model_facts(model: _Labels, values: dict[str, float]) -> Iterable[tuple[str, str]]:
    yield "Model", model.get("name", "")
    yield "Version", model.get("version", "")
    yield "Activation", model.get("activation", "")
    yield "Accuracy", model.get("accuracy", "")
    yield "Weights", model.get("weights_sha256", "")[:16]
    yield "Provider", model.get("provider", "")
    last_success = values.get("digits_last_success_timestamp_seconds", 0.0)
    yield "Last run", _utc(last_success) if last_success else "none yet"


def _server_facts(
    server: _Labels, transport: str, values: dict[str, float], started_at: float
) -> Iterable[tuple[str, str]]:
    yield "Server", server.get("version", "")
    yield "Transport", transport
    yield "Started", f"{_utc(started_at)} ({_age(time.time() - started_at)} ago)"
    yield "Queue", _share(values, "digits_queue_images", "digits_queue_capacity_images", "images")
    yield "Connections", _share(values, "digits_connections", "digits_connections_limit", "")
    expiry = values.get("digits_tls_expiry_timestamp_seconds", 0.0)
    yield "TLS", f"certificate expires {_utc(expiry)}" if expiry else "off"
    yield "Stalls", f"{values.get('digits_stalls_total', 0):g}"
    yield "Runtime", f"Python {server.get('python', '')}, ONNX Runtime {server.get('onnxruntime', '')}"


def _share(values: dict[str, float], name: str, limit: str, unit: str) -> str:
    return f"{values.get(name, 0):,.0f} of {values.get(limit, 0):,.0f} {unit}".rstrip()


def _definitions(facts: Iterable[tuple[str, str]]) -> str:
    rows = (f"<div><dt>{escape(name)}</dt><dd>{escape(value) or '-'}</dd></div>" for name, value in facts)
    return f"<dl>{''.join(rows)}</dl>"


def _events(events: Sequence[Event], none: str) -> str:
    if not events:
        return f'<p class="dim">{none}</p>'
    return f"<table>{''.join(map(_event, events))}</table>"


def _event(event: Event) -> str:
    fields = {name: value for name, value in event.fields.items() if value and (name, value) != ("suppressed", "0")}
    reason = escape(fields.pop("reason", ""))
    rest = " ".join(f"<span><i>{escape(name)}</i> {escape(value)}</span>" for name, value in fields.items())
    date, _, clock = _utc(event.time).partition(" ")
    return (
        f'<tr class="{escape(event.level)}"><td><time title="{date}">{clock}</time></td>'
        f"<td>{escape(event.name)}</td><td>{reason and f'<p>{reason}</p>'}{rest}</td></tr>"
    )


def _utc(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _age(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = ((days, "d"), (hours, "h"), (minutes, "min"), (rest, "s"))
    return " ".join([f"{number} {unit}" for number, unit in parts if number][:2]) or "0 s"


def _rate(value: float) -> str:
    return f"{value:,.0f}/s" if value >= 10 or value == 0 else f"{value:.2g}/s"


def _duration(seconds: float) -> str:
    for factor, unit in ((1e6, "\u00b5s"), (1e3, "ms")):
        if seconds * factor < 1000:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.3g} s"


_DOCUMENT = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="refresh" content="{refresh}">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>digitserve</h1>
<span class="health {health}">{health}</span>
<span class="dim">{health_text}</span>
<span class="dim host">{host}</span>
</header>
<section><h2>Prediction calls <small>last {minutes} minutes</small></h2><div class="charts">{charts}</div></section>
<div class="columns">
<section><h2>Model</h2>{model}</section>
<section><h2>Server</h2>{server}</section>
</div>
<section><h2>Last reloads and other events</h2>{changes}</section>
<section><h2>Last rejected and failed calls</h2>{rejections}</section>
<footer><a href="/metrics">/metrics</a> <a href="/healthz">/healthz</a> <span>reloads every {refresh} s</span></footer>
</body>
</html>"""
