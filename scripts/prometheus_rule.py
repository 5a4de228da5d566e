"""Write the PrometheusRule of deploy/kubernetes and of the Helm chart from the rule files that compose mounts.

    python scripts/prometheus_rule.py [--check]

With --check it only compares the files, and ends with status 1 if one is out of date.
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
RULES = ROOT / "deploy" / "prometheus" / "rules"
OUT = ROOT / "deploy" / "kubernetes" / "components" / "monitoring" / "prometheusrule.yaml"
CHART_OUT = ROOT / "deploy" / "helm" / "digitserve" / "files" / "rules.yaml"
HEAD = """\
# Written by scripts/prometheus_rule.py from deploy/prometheus/rules: change the rules there.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: digitserve
  labels: {app.kubernetes.io/name: digitserve}
spec:
"""


def groups() -> str:
    """Return the groups of every rule file, in the order of the files' names."""
    merged = [group for path in sorted(RULES.glob("*.yml")) for group in yaml.safe_load(path.read_text())["groups"]]
    return yaml.safe_dump({"groups": merged}, sort_keys=False, width=100_000, allow_unicode=True)


def outputs() -> dict[Path, str]:
    """Return the text of each file: a manifest for kustomize, and its specification for the chart."""
    body = groups()
    manifest = HEAD + "".join(f"  {line}\n" if line else "\n" for line in body.splitlines())
    return {OUT: manifest, CHART_OUT: HEAD.splitlines()[0] + "\n" + body}


def main(arguments: list[str]) -> int:
    """Write or compare the files; return 0 if written or equal, 1 if different, 2 for wrong usage."""
    if arguments == ["--check"]:
        stale = [path for path, text in outputs().items() if not path.exists() or path.read_text() != text]
        for path in stale:
            print(f"{path.relative_to(ROOT)}: not up to date; run {Path(__file__).name}", file=sys.stderr)
        return 1 if stale else 0
    if arguments:
        print("usage: python scripts/prometheus_rule.py [--check]", file=sys.stderr)
        return 2
    for path, text in outputs().items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
