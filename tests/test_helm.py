"""The Helm chart renders the manifests of kustomize, which match published schemas and the service's options."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
from operator import itemgetter
from typing import Any

import pytest
import yaml
from conftest import ROOT
from manifests import BUILT, NEWEST, builder, built, container, mistakes, one

from service.config import load

CHART = ROOT / "deploy" / "helm" / "digitserve"
pytestmark = pytest.mark.skipif(
    shutil.which("helm") is None, reason="needs helm: go install helm.sh/helm/v3/cmd/helm@latest"
)
PRODUCTION = ("autoscaling.enabled=true", "monitoring.enabled=true", "tls.enabled=true", "tokens.enabled=true")
HELM_ALONE = {
    "app.kubernetes.io/instance",
    "app.kubernetes.io/managed-by",
    "app.kubernetes.io/version",
    "helm.sh/chart",
}
needs_kustomize = pytest.mark.skipif(
    builder() is None, reason="needs kustomize or kubectl: go install sigs.k8s.io/kustomize/kustomize/v5@latest"
)


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["helm", *arguments], capture_output=True, text=True, check=False)  # noqa: S607 (of the PATH)


def template(*settings: str) -> subprocess.CompletedProcess[str]:
    options = [option for setting in settings for option in ("--set", setting)]
    place = ("--namespace", "digitserve", "--kube-version", NEWEST)
    return helm("template", "digitserve", str(CHART), *place, *options)


def rendered(*settings: str) -> list[dict[str, Any]]:
    done = template(*settings)
    assert done.returncode == 0, done.stderr
    return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]


def comparable(manifests: list[dict[str, Any]]) -> dict[tuple[str, str], Any]:
    """Return manifests by kind and name, without labels, ConfigMap, images and namespace, which differ by tool."""
    found = {}
    for manifest in copy.deepcopy(manifests):
        kind, metadata = manifest["kind"], manifest["metadata"]
        if kind == "Namespace":  # helm install --create-namespace
            continue
        if kind == "ConfigMap":
            metadata["name"] = "options"
        if kind == "Deployment":
            pod = manifest["spec"]["template"]
            pod["metadata"]["annotations"].pop("digitserve/options", None)
            for one_container in (*pod["spec"]["containers"], *pod["spec"]["initContainers"]):
                one_container.pop("imagePullPolicy", None)
                one_container["image"] = one_container["image"].rpartition("/")[2].split(":")[0]
            pod["spec"]["volumes"].sort(key=itemgetter("name"))
            pod["spec"]["containers"][0]["volumeMounts"].sort(key=itemgetter("name"))
            pod["spec"]["containers"][0]["envFrom"][0]["configMapRef"]["name"] = "options"
            if manifest["spec"].get("replicas") == 1:
                del manifest["spec"]["replicas"]  # the default of Kubernetes
        metadata.pop("namespace", None)
        metadata.get("labels", {}).pop("app.kubernetes.io/name", None)  # kustomize adds none to components
        found[kind, metadata["name"]] = without_labels(manifest)
    return found


def without_labels(node: Any) -> Any:
    if isinstance(node, list):
        return [without_labels(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {
        name: without_labels({k: v for k, v in value.items() if k not in HELM_ALONE} if name in LABELS else value)
        for name, value in node.items()
        if not (name == "labels" and not set(value) - HELM_ALONE)
    }


LABELS = ("labels", "matchLabels", "selector")


@needs_kustomize
@pytest.mark.parametrize(("settings", "folder"), [((), "base"), (PRODUCTION, "overlays/production")])
def test_the_chart_renders_the_manifests_of_kustomize(settings: tuple[str, ...], folder: str) -> None:
    ours, theirs = comparable(rendered(*settings)), comparable(built(folder))
    assert set(ours) == set(theirs)
    for name, manifest in ours.items():
        assert manifest == theirs[name], name


@pytest.mark.parametrize("settings", [(), PRODUCTION])
def test_the_chart_passes_helm_lint_and_its_manifests_their_schemas(settings: tuple[str, ...]) -> None:
    done = helm("lint", "--strict", str(CHART), *(option for setting in settings for option in ("--set", setting)))
    assert done.returncode == 0, done.stdout
    assert [(m["kind"], mistake) for m in rendered(*settings) for mistake in mistakes(m)] == []


@pytest.mark.parametrize("settings", [(), PRODUCTION, ("options.DIGITS_MAX_BATCH_SIZE=64", "model.version=3")])
def test_the_service_accepts_the_options_of_the_chart(
    settings: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = one(rendered(*settings), "ConfigMap", "digitserve-options")
    for name, value in config["data"].items():
        monkeypatch.setenv(name, value)
    chosen = load([])
    assert f"--out={chosen.model}" in container(one(rendered(*settings), "Deployment"), "export")["args"]
    assert chosen.max_batch_size == (64 if "model.version=3" in settings else 1024)


def test_another_option_rolls_the_replicas_and_another_release_has_other_names() -> None:
    annotations = [
        one(rendered(*settings), "Deployment")["spec"]["template"]["metadata"]["annotations"]
        for settings in ((), ("options.DIGITS_LOG_LEVEL=debug",))
    ]
    assert annotations[0] != annotations[1]
    other = helm("template", "other", str(CHART), "--kube-version", NEWEST)
    names = {m["metadata"]["name"] for m in yaml.safe_load_all(other.stdout) if m}
    assert names == {"other", "other-options", "other-replicas"}


@pytest.mark.parametrize(
    "setting",
    ["replica=3", "model.activation=tanh", "model.version=0", "options.MAX_BATCH_SIZE=1", "autoscaling.enabled=maybe"],
)
def test_a_value_that_the_chart_does_not_know_is_rejected(setting: str) -> None:
    done = template(setting)
    assert done.returncode != 0
    assert "schema" in done.stderr


def test_the_chart_and_its_application_have_the_version_of_the_project() -> None:
    from service import __version__  # noqa: PLC0415

    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert {chart["version"], chart["appVersion"]} == {__version__}


@needs_kustomize
@pytest.mark.skipif("KUBE_APISERVER" not in os.environ, reason="KUBE_APISERVER names no API server: https://HOST:PORT")
@pytest.mark.parametrize("source", ["chart", *BUILT])
def test_an_api_server_accepts_every_manifest(source: str) -> None:
    """Dry-run each kind that the server knows, with the credentials of kubectl's configuration."""
    server = ("--server", os.environ["KUBE_APISERVER"])
    known = subprocess.run(
        ["kubectl", *server, "api-resources", "--no-headers", "--output", "name"],  # noqa: S607 (of the PATH)
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    operators = {"ServiceMonitor", "PodMonitor", "PrometheusRule", "ServingRuntime", "InferenceService"}
    manifests = rendered(*PRODUCTION) if source == "chart" else built(source)
    sent = [m for m in manifests if m["kind"] not in operators or f"{m['kind'].lower()}s." in known]
    namespace = {"apiVersion": "v1", "kind": "Namespace"}
    names = {m["metadata"].get("namespace", "digitserve") for m in sent if m["kind"] != "Namespace"}
    for name in names:
        apply([{**namespace, "metadata": {"name": name}}], *server)
    apply(
        sent, *server, "--dry-run=server", "--validate=strict", *(("--namespace", "digitserve") * (source == "chart"))
    )


def apply(manifests: list[dict[str, Any]], *options: str) -> None:
    done = subprocess.run(
        ["kubectl", "apply", "--filename", "-", *options],  # noqa: S607 (of the PATH)
        input=json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
