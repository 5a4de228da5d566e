"""Draws the Grafana dashboard without Grafana: every panel from Prometheus's own range API, as one PNG.

python scripts/draw_dashboard.py http://localhost:9090 MINUTES OUT.png
"""

from __future__ import annotations

import json
import math
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.ticker import EngFormatter

from commandline import proxies

DASHBOARD = Path(__file__).parent.parent / "deploy" / "grafana" / "dashboards" / "digitserve.json"
POINTS = 120
INCHES = (18, 2.7)  # of a line of panels
LONG = 18  # characters of a name that has a line of the legend to itself
UNITS = {"s": "s", "percentunit": "share", "reqps": "calls/s", "bytes": "bytes", "short": ""}
LABELS = ("version", "activation", "provider", "content_sha256", "grpcio", "onnxruntime", "python", "transport")


def query(prometheus: str, panel: dict[str, Any], expr: str, minutes: float) -> list[dict[str, Any]]:
    """The series that a panel's query gives: over the last minutes, or now for a table."""
    expr = expr.replace("$instance", ".*").replace("$__rate_interval", "1m")
    now = time.time()
    if panel["type"] == "table":
        kind, parameters = "query", {"query": expr}
    else:
        times = {"start": now - minutes * 60, "end": now, "step": minutes * 60 / POINTS}
        kind, parameters = "query_range", {"query": expr, **{name: str(value) for name, value in times.items()}}
    url = f"{prometheus}/api/v1/{kind}?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(url, timeout=30) as reply:  # noqa: S310 (the operator names the address)
        return list(json.load(reply)["data"]["result"])


def legend(template: str, metric: dict[str, str]) -> str:
    """Grafana's {{label}} filled in."""
    for label, value in metric.items():
        template = template.replace("{{" + label + "}}", value)
    return template


def draw(axes: Any, prometheus: str, panel: dict[str, Any], minutes: float) -> None:
    """One panel: a number, a table or lines."""
    axes.set_title(panel["title"], fontsize=10, loc="left")
    series_list = [
        (legend(target["legendFormat"], series["metric"]), series)
        for target in panel["targets"]
        for series in query(prometheus, panel, target["expr"], minutes)
    ]
    if panel["type"] == "timeseries":
        for name, series in series_list:
            x, y = zip(*((float(at) / 60, float(value)) for at, value in series["values"]), strict=True)
            axes.plot([time.time() / 60 - at for at in x], y, label=name, linewidth=1.3)
        values = [float(value) for _, series in series_list for _, value in series["values"]]
        highest = max(filter(math.isfinite, values), default=0)  # a ratio of nothing to nothing is NaN
        axes.invert_xaxis()
        axes.set_ylim(0, highest * 1.4 or 1)  # with room for the legend
        axes.set_xlabel("minutes ago", fontsize=7, loc="right")
        unit = UNITS[panel["fieldConfig"]["defaults"]["unit"]]
        axes.set_ylabel(unit, fontsize=8)
        axes.yaxis.set_major_formatter(EngFormatter(unit if unit == "s" else ""))
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        columns = 1 if any(len(name) > LONG for name, _ in series_list) else 3
        axes.legend(fontsize=6.5, loc="upper left", ncols=columns).set_in_layout(False)  # or it would press the panel
        return
    axes.axis("off")
    if panel["type"] == "stat":
        lines = [f"{float(series['values'][-1][1]):.3g}" for _, series in series_list]
        axes.text(0.5, 0.45, "   ".join(lines), ha="center", va="center", fontsize=26)
        return
    lines = []
    for name, series in series_list:
        facts = [f"{key} {series['metric'][key][:12]}" for key in LABELS if key in series["metric"]]
        lines.append("\n".join([name, *(f"  {', '.join(facts[i : i + 3])}" for i in range(0, len(facts), 3))]))
    axes.text(0, 0.95, "\n".join(lines), va="top", fontsize=8, family="monospace")


def main() -> None:
    """Draw line after line of panels, each below its row's question."""
    proxies.bypass()
    prometheus, minutes, out = sys.argv[1], float(sys.argv[2]), sys.argv[3]
    panels = json.loads(DASHBOARD.read_text())["panels"]
    heights = sorted({panel["gridPos"]["y"] for panel in panels if panel["type"] != "row"})
    questions = {panel["gridPos"]["y"] + 1: panel["title"] for panel in panels if panel["type"] == "row"}
    mpl.use("Agg")
    figure = plt.figure(figsize=(INCHES[0], INCHES[1] * len(heights)), layout="constrained")
    lines: Any = figure.subfigures(len(heights), 1)
    for y, line in zip(heights, lines, strict=True):
        if y in questions:
            line.suptitle(questions[y], fontsize=13, fontweight="bold", x=0.01, ha="left")
        shown = [panel for panel in panels if panel["type"] != "row" and panel["gridPos"]["y"] == y]
        for axes, panel in zip(line.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
            draw(axes, prometheus, panel, minutes)
    figure.savefig(out, dpi=65)


if __name__ == "__main__":
    main()
