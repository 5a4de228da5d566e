"""Writes the PrometheusRule of deploy/kubernetes from the rule files that compose mounts, so that there is one set.

    python scripts/prometheus_rule.py [--check]

With --check it writes nothing and ends with status 1 where the file is not what it would write.
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
RULES = ROOT / "deploy" / "prometheus" / "rules"
OUT = ROOT / "deploy" / "kubernetes" / "components" / "monitoring" / "prometheusrule.yaml"
HEAD = """\
# Written by scripts/prometheus_rule.py from deploy/prometheus/rules: change the rules there.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: digitserve
  labels: {app.kubernetes.io/name: digitserve}
spec:
"""


def written() -> str:
    """The manifest: the groups of every rule file, in the order of the files' names."""
    groups = [group for path in sorted(RULES.glob("*.yml")) for group in yaml.safe_load(path.read_text())["groups"]]
    body = yaml.safe_dump({"groups": groups}, sort_keys=False, width=100_000, allow_unicode=True)
    return HEAD + "".join(f"  {line}\n" if line else "\n" for line in body.splitlines())


def main(arguments: list[str]) -> int:
    """Exit status: 0 written or the same, 1 not the same, 2 wrong usage."""
    if arguments == ["--check"]:
        if OUT.exists() and OUT.read_text() == written():
            return 0
        print(f"{OUT.relative_to(ROOT)} is not what {Path(__file__).name} writes: run it", file=sys.stderr)
        return 1
    if arguments:
        print("usage: python scripts/prometheus_rule.py [--check]", file=sys.stderr)
        return 2
    OUT.write_text(written())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
