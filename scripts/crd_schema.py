"""Write tests/crds from published CustomResourceDefinitions: the schemas of our manifests for operators.

    python scripts/crd_schema.py CRD.yaml [CRD.yaml ...]

It keeps one version of each kind in WANTED, without descriptions and without the branches that our manifests never
use. It forbids unknown fields, as an API server does with strict validation.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

OUT = Path(__file__).parent.parent / "tests" / "crds"
FRAMEWORKS = (
    *("huggingface", "lightgbm", "onnx", "paddle", "pmml", "pytorch", "sklearn", "tensorflow", "triton", "xgboost"),
)
WANTED: dict[str, tuple[str, tuple[str, ...]]] = {
    "ServiceMonitor": ("v1", ("status",)),
    "PodMonitor": ("v1", ("status",)),
    "PrometheusRule": ("v1", ("status",)),
    "ServingRuntime": ("v1alpha1", ("status", "spec.workerSpec")),
    "InferenceService": (
        "v1beta1",
        (
            *("status", "spec.canary", "spec.explainer", "spec.transformer", "spec.predictor.workerSpec"),
            *(f"spec.predictor.{framework}" for framework in FRAMEWORKS),
        ),
    ),
}
"""The kept version of each kind, and its removed branches."""


def schema(definition: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Convert a CustomResourceDefinition to a file name and a JSON schema; raise KeyError for another kind."""
    kind = definition["spec"]["names"]["kind"]
    version, unwanted = WANTED[kind]
    (published,) = [v["schema"]["openAPIV3Schema"] for v in definition["spec"]["versions"] if v["name"] == version]
    for path in unwanted:
        *parents, last = path.split(".")
        node = published
        for name in parents:
            node = node["properties"][name]
        node["properties"].pop(last, None)
    return f"{kind}-{version}.json", strict(published)


def strict(node: Any) -> Any:
    """Return the schema without descriptions; it rejects unknown fields."""
    if isinstance(node, list):
        return [strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    definitions = {
        name: strict(value) for name, value in node.items() if not (name == "description" and type(value) is str)
    }
    names_all = isinstance(definitions.get("properties"), dict) and definitions.get("type") == "object"
    if names_all and not definitions.get("x-kubernetes-preserve-unknown-fields"):
        definitions.setdefault("additionalProperties", False)
    return definitions


def main(arguments: list[str]) -> int:
    """Write the schemas; return 0, or 2 for wrong usage."""
    if not arguments or arguments[0].startswith("-"):
        print("usage: python scripts/crd_schema.py CRD.yaml [CRD.yaml ...]", file=sys.stderr)
        return 2
    OUT.mkdir(exist_ok=True)
    for path in arguments:
        name, definitions = schema(yaml.safe_load(Path(path).read_text()))
        (OUT / name).write_text(json.dumps(definitions, separators=(",", ":"), sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
