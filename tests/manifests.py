"""The manifests of deploy/kubernetes: read, built by kustomize if it is installed, and checked against schemas."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import jsonschema
import kubernetes_validate
import yaml
from conftest import ROOT

if TYPE_CHECKING:
    from pathlib import Path

KUBERNETES = ROOT / "deploy" / "kubernetes"
CRDS = ROOT / "tests" / "crds"
OLDEST, NEWEST = "1.34", "1.37"  # the versions of Kubernetes that the manifests support
BUILT = ["base", "overlays/development", "overlays/production", "overlays/gpu", "kserve"]

Manifest = dict[str, Any]


def kustomization(folder: str) -> Manifest:
    return dict(yaml.safe_load((KUBERNETES / folder / "kustomization.yaml").read_text()))


def options(folder: str) -> dict[str, str]:
    """Return the variables of a folder's ConfigMap generator."""
    return dict(
        literal.split("=", 1)
        for generator in kustomization(folder).get("configMapGenerator", [])
        for literal in generator["literals"]
    )


def resources(folder: str) -> list[Manifest]:
    """Return the manifests in a folder itself, without those of the folders that it builds on."""
    files = [KUBERNETES / folder / name for name in kustomization(folder).get("resources", [])]
    return [manifest for path in files if path.is_file() for manifest in documents(path)]


def documents(path: Path) -> list[Manifest]:
    return [manifest for manifest in yaml.safe_load_all(path.read_text()) if manifest]


def one(manifests: list[Manifest], kind: str, name: str = "digitserve") -> Manifest:
    (found,) = [m for m in manifests if (m["kind"], m["metadata"]["name"]) == (kind, name)]
    return found


def container(manifest: Manifest, name: str = "service") -> Manifest:
    pod = manifest["spec"]["template"]["spec"]
    (found,) = [c for c in [*pod["containers"], *pod.get("initContainers", [])] if c["name"] == name]
    return dict(found)


def builder() -> list[str] | None:
    """Return the command that builds a kustomization, or None."""
    if shutil.which("kustomize"):
        return ["kustomize", "build"]
    if not shutil.which("kubectl"):
        return None
    works = subprocess.run(["kubectl", "kustomize", "--help"], capture_output=True, check=False)  # noqa: S607
    return ["kubectl", "kustomize"] if works.returncode == 0 else None


@functools.cache
def built(folder: str) -> list[Manifest]:
    command = [*(builder() or []), str(KUBERNETES / folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]


def mistakes(manifest: Manifest, version: str = NEWEST) -> list[str]:
    """Check a manifest against the schema of its kind, which is from Kubernetes or from the operator that defines it.

    Unknown names are errors too.
    """
    published = CRDS / f"{manifest['kind']}-{manifest['apiVersion'].rpartition('/')[2]}.json"
    if published.exists():
        validator = jsonschema.Draft202012Validator(json.loads(published.read_text()))
        return [f"{'.'.join(map(str, e.path))}: {e.message}" for e in validator.iter_errors(manifest)]
    try:
        kubernetes_validate.validate(manifest, version, strict=True)
    except kubernetes_validate.ValidationError as e:
        return [f"{'.'.join(map(str, e.path))}: {e.message}"]
    return []
