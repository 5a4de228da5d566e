"""Write the Grafana dashboard from scripts/dashboard_panels.py.

    python scripts/dashboard.py [--check]

With --check it only compares the file, and ends with status 1 if the file is out of date.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dashboard_operation import OPERATION
from dashboard_panels import CALLS

if TYPE_CHECKING:
    from dashboard_queries import Panel

OUT = Path(__file__).parent.parent / "deploy" / "grafana" / "dashboards" / "digitserve.json"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}  # a variable, so that it imports into any Grafana
WIDTH, HEIGHT, STAT_HEIGHT = 24, 8, 4
SAME_IN_EVERY_ROW = ("Time", "Value", "__name__", "job", "alertstate", "name")


def dashboard() -> dict[str, Any]:
    """Return the dashboard in Grafana 11's schema."""
    panels: list[dict[str, Any]] = []
    y = 0
    for question, answers in {**CALLS, **OPERATION}.items():
        box = {"x": 0, "y": y, "w": WIDTH, "h": 1}
        panels.append({"id": len(panels) + 1, "type": "row", "title": question, "collapsed": False, "gridPos": box})
        panels[-1]["panels"] = []
        per_line = 4 if len(answers) > 3 else len(answers)
        y += 1
        for start in range(0, len(answers), per_line):
            line = answers[start : start + per_line]
            width = WIDTH // len(line)
            height = STAT_HEIGHT if all(answer.kind == "stat" for answer in line) else HEIGHT
            for i, answer in enumerate(line):
                box = {"x": i * width, "y": y, "w": width, "h": height}
                panels.append(_panel(len(panels) + 1, answer, box))
            y += height
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
        "transformations": [_columns()] if table else [],
    }


def _columns() -> dict[str, Any]:
    """Omit the columns of the sample, and labels that are the same in every row."""
    return {"id": "organize", "options": {"excludeByName": dict.fromkeys(SAME_IN_EVERY_ROW, True)}}


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
        print(f"{OUT.name}: not up to date; expected the output of scripts/dashboard.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
