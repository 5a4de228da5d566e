"""Draw the Grafana dashboard without Grafana, in its colours: every panel from Prometheus's range API, as one PNG.

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
import numpy as np
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator, PercentFormatter

from commandline import proxies

DASHBOARD = Path(__file__).parent.parent / "deploy" / "grafana" / "dashboards" / "digitserve.json"
POINTS = 120
COLUMN, LINE = 0.78, 0.36  # inches of one unit of `gridPos`
PAGE, PANEL, TEXT, FAINT, GRID = "#111217", "#181b1f", "#ccccdc", "#8e8e9c", "#2c2f36"
SERIES = ["#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#5794f2", "#b877d9", "#705da0", "#37872d", "#fade2a"]
LEVELS = {"green": "#3f8f46", "orange": "#d4761a", "red": "#c4162a"}
HIDDEN = ("__name__", "job", "alertstate")
WIDE = {"alertname": 40, "instance": 24, "provider": 24}  # characters of a label in a table
IN_A_ROW = 60  # characters of the legend in one line
LINES = 4  # of a legend
LEGEND: dict[str, Any] = {
    "loc": "upper left",
    "bbox_to_anchor": (-0.02, -0.13),
    "frameon": False,
    "borderaxespad": 0,
    "fontsize": 6.5,
    "labelcolor": TEXT,
    "labelspacing": 0.25,
    "handlelength": 1.2,
    "columnspacing": 1.2,
}


def query(prometheus: str, panel: dict[str, Any], expr: str, times: list[float]) -> list[dict[str, Any]]:
    """Return the series of a panel's query at these times, or now for a table."""
    expr = expr.replace("$instance", ".*").replace("$__rate_interval", "1m")
    if panel["type"] == "table":
        kind, parameters = "query", {"query": expr}
    else:
        shown = {"start": times[0], "end": times[-1], "step": times[1] - times[0]}
        kind, parameters = "query_range", {"query": expr, **{name: str(value) for name, value in shown.items()}}
    url = f"{prometheus}/api/v1/{kind}?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(url, timeout=30) as reply:  # noqa: S310 (the operator names the address)
        return list(json.load(reply)["data"]["result"])


def legend(template: str, metric: dict[str, str]) -> str:
    """Fill in Grafana's {{label}}."""
    for label, value in metric.items():
        template = template.replace("{{" + label + "}}", value)
    return template


def formatter(unit: str) -> Any:
    """Format a value as Grafana does."""
    if unit == "percentunit":
        return PercentFormatter(1, decimals=None)
    if unit == "s":
        return FuncFormatter(lambda value, _: duration(value))
    if unit == "bytes":
        return EngFormatter("B")
    end, large = {"reqps": "/s"}.get(unit, ""), EngFormatter(sep="")
    return FuncFormatter(lambda value, _: (f"{value:.3g}" if value < 1000 else large(value)) + end)


def duration(seconds: float) -> str:
    """Format a time with two or three digits in a suitable unit."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:g} s"


def draw_lines(axes: Any, panel: dict[str, Any], results: list[tuple[str, dict[str, Any]]], times: list[float]) -> None:
    """Draw lines with a faint fill, with gaps between samples, and their names below."""
    highest = 0.0
    for (name, series), color in zip(results, SERIES * len(results), strict=False):
        values = {round(float(at)): float(value) for at, value in series["values"] if math.isfinite(float(value))}
        if values:
            y = [values.get(round(at), math.nan) for at in times]
            axes.plot(times, y, label=name, linewidth=1.2, color=color)
            axes.fill_between(times, y, alpha=0.12, color=color, linewidth=0)
            highest = max(highest, *values.values())
    for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]:
        if step["value"] and step["value"] < highest * 1.15:
            axes.axhline(step["value"], color=LEVELS.get(step["color"], FAINT), linewidth=0.8, linestyle="--")
    axes.set_ylim(0, highest * 1.15 or 1)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(formatter(panel["fieldConfig"]["defaults"]["unit"]))
    show_times(axes, times)
    handles, names = axes.get_legend_handles_labels()
    if names:
        columns = max(1, min(5, IN_A_ROW // (4 + max(map(len, names)))))
        axes.legend(handles[: LINES * columns], names[: LINES * columns], ncols=columns, **LEGEND)


def show_times(axes: Any, times: list[float]) -> None:
    """Draw clock times below and a faint grid."""
    axes.set_xlim(times[0], times[-1])
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda at, _: time.strftime("%H:%M:%S", time.gmtime(at))))
    axes.tick_params(colors=FAINT, labelsize=6.5, length=0)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)


def draw_heatmap(axes: Any, results: list[tuple[str, dict[str, Any]]], times: list[float]) -> None:
    """Draw calls/s in each bucket, from Prometheus's cumulative buckets."""
    results = sorted(((name, series) for name, series in results if name != "+Inf"), key=lambda one: float(one[0]))
    if not results:
        return
    samples = [{round(float(at)): float(value) for at, value in series["values"]} for _, series in results]
    cumulative = np.array([[one.get(round(at), 0) for at in times] for one in samples])
    counts = np.diff(cumulative, axis=0, prepend=0)
    axes.pcolormesh(times, range(len(results)), counts, cmap="inferno", shading="nearest")
    shown = range(0, len(results), max(1, len(results) // 6))
    axes.set_yticks(shown, [duration(float(results[i][0])) for i in shown])
    show_times(axes, times)
    axes.grid(visible=False)


def draw_stat(axes: Any, panel: dict[str, Any], results: list[tuple[str, dict[str, Any]]]) -> None:
    """Draw the last values, each on the colour of its threshold."""
    defaults = panel["fieldConfig"]["defaults"]
    for i, (name, series) in enumerate(results):
        value = float(series["values"][-1][1])
        steps = [step["color"] for step in defaults["thresholds"]["steps"] if (step["value"] or 0) <= value]
        left, width = i / len(results), 1 / len(results)
        axes.add_patch(Rectangle((left + 0.004, 0), width - 0.008, 1, color=LEVELS.get(steps[-1], FAINT)))
        text = formatter(defaults["unit"])(value, None) if defaults["unit"] != "short" else f"{value:g}"
        axes.text(left + width / 2, 0.5, text, ha="center", va="center", fontsize=20, color="white", weight="bold")
        if len(results) > 1:
            axes.text(left + width / 2, 0.12, name, ha="center", fontsize=6.5, color="white")
    axes.axis("off")


def draw_table(axes: Any, results: list[tuple[str, dict[str, Any]]]) -> None:
    """Draw a row for each series, with the most informative labels."""
    lines = []
    for _, series in results:
        labels = [
            f"{name} {value[: WIDE.get(name, 12)]}"
            for name, value in sorted(series["metric"].items())
            if name not in HIDDEN
        ]
        lines += ["   ".join(labels[i : i + 4]) for i in range(0, len(labels), 4)] + [""]
    axes.text(0, 1, "\n".join(lines), va="top", fontsize=7.5, color=TEXT, linespacing=1.6)
    axes.axis("off")


def draw(figure: Any, height: float, prometheus: str, panel: dict[str, Any], times: list[float]) -> None:
    """Draw one panel in its place, in a figure of `height` lines."""
    box = panel["gridPos"]
    left, bottom = box["x"] / 24 + 0.003, 1 - (box["y"] + box["h"]) / height + 0.1 / height
    width, tall = box["w"] / 24 - 0.006, (box["h"] - 0.2) / height
    if panel["type"] == "row":
        figure.text(left, bottom + tall / 2, panel["title"], color=TEXT, fontsize=12, weight="bold", va="center")
        return
    corners = "round,pad=0,rounding_size=0.002"
    aspect = 24 * COLUMN / (height * LINE)
    background = FancyBboxPatch((left, bottom), width, tall, boxstyle=corners, mutation_aspect=aspect, zorder=-1)
    background.set(facecolor=PANEL, edgecolor=GRID)
    figure.add_artist(background)
    figure.text(left + 0.006, bottom + tall - 0.75 / height, panel["title"], color=TEXT, fontsize=8.5)
    results = [
        (legend(target["legendFormat"], series["metric"]), series)
        for target in panel["targets"]
        for series in query(prometheus, panel, target["expr"], times)
    ]
    is_plot = panel["type"] in ("timeseries", "heatmap")
    room = (0.036, 2.3 / height, 0.044, 3.4 / height) if is_plot else (0.006, 0.3 / height, 0.012, 1.3 / height)
    axes = figure.add_axes((left + room[0], bottom + room[1], width - room[2], tall - room[3]), facecolor=PANEL)
    if not results:
        axes.text(0.5, 0.5, "No data", ha="center", color=FAINT, fontsize=9)
        axes.axis("off")
    elif panel["type"] == "timeseries":
        draw_lines(axes, panel, results, times)
    elif panel["type"] == "heatmap":
        draw_heatmap(axes, results, times)
    else:
        (draw_stat(axes, panel, results) if panel["type"] == "stat" else draw_table(axes, results))


def main() -> None:
    """Draw each panel at its `gridPos`."""
    proxies.bypass()
    prometheus, minutes, out = sys.argv[1], float(sys.argv[2]), sys.argv[3]
    panels = json.loads(DASHBOARD.read_text())["panels"]
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    now, step = round(time.time()), max(1, round(minutes * 60 / POINTS))
    times = [float(now - step * i) for i in range(POINTS, -1, -1)]
    mpl.use("Agg")
    figure = plt.figure(figsize=(24 * COLUMN, height * LINE), facecolor=PAGE)
    for panel in panels:
        draw(figure, height, prometheus, panel, times)
    figure.savefig(out, dpi=72, facecolor=PAGE)


if __name__ == "__main__":
    main()
