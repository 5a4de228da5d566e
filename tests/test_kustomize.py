"""The overlays that kustomize builds match published schemas and the service's options."""

from __future__ import annotations

import json
import os
import re
import urllib.parse
from typing import TYPE_CHECKING

import pytest
from conftest import ROOT
from manifests import BUILT, NEWEST, OLDEST, builder, built, container, mistakes, one

from service.config import load

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(
    builder() is None, reason="needs kustomize or kubectl: go install sigs.k8s.io/kustomize/kustomize/v5@latest"
)
OVERLAYS = [folder for folder in BUILT if folder != "kserve"]


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("folder", BUILT)
def test_the_output_of_kustomize_matches_the_schemas(folder: str, version: str) -> None:
    assert [(m["kind"], mistake) for m in built(folder) for mistake in mistakes(m, version)] == []


@pytest.mark.parametrize("folder", OVERLAYS)
def test_the_service_accepts_the_options_of_the_overlays(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (config,) = [m for m in built(folder) if m["kind"] == "ConfigMap"]
    (source,) = container(one(built(folder), "Deployment"))["envFrom"]
    assert source["configMapRef"]["name"] == config["metadata"]["name"]
    for name, value in config["data"].items():
        monkeypatch.setenv(name, value)
    settings = load([])
    mounts = [mount["mountPath"] for mount in container(one(built(folder), "Deployment"))["volumeMounts"]]
    files = [settings.model, settings.tls_cert, settings.tls_key, settings.tokens_file]
    assert {str(path.parent) for path in files if path} == set(mounts)


def test_an_overlay_is_in_one_namespace_that_enforces_the_strictest_standard() -> None:
    for folder in OVERLAYS:
        (namespace,) = [m for m in built(folder) if m["kind"] == "Namespace"]
        assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
        inside = {m["metadata"]["namespace"] for m in built(folder) if m["kind"] != "Namespace"}
        assert inside == {namespace["metadata"]["name"]}


def test_production_checks_health_without_tls_and_reads_its_secrets_from_the_cluster() -> None:
    pod = one(built("overlays/production"), "Deployment")["spec"]["template"]["spec"]
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert pod["containers"][0][kind]["httpGet"] == {"path": "/healthz", "port": "metrics"}
        assert "grpc" not in pod["containers"][0][kind]
    secrets = {volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume}
    assert secrets == {"digitserve-tls", "digitserve-tokens"}
    assert not [m for m in built("overlays/production") if m["kind"] == "Secret"], "the repository holds no secret"
    assert "replicas" not in one(built("overlays/production"), "Deployment")["spec"], "the autoscaler sets it"


def test_production_images_have_a_tag_that_stays() -> None:
    for folder in ("overlays/production", "overlays/gpu", "kserve"):
        images = set(re.findall(r'"image": "([^"]+)"', json.dumps(built(folder))))
        assert images
        assert all(re.search(r":\d+\.\d+\.\d+(-gpu)?$", image) for image in images), images


def test_each_replica_requests_one_gpu_and_has_the_option_for_it() -> None:
    limits = container(one(built("overlays/gpu"), "Deployment"))["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == 1
    (config,) = [m for m in built("overlays/gpu") if m["kind"] == "ConfigMap"]
    assert config["data"]["DIGITS_PROVIDER"] == "cuda"


def test_the_overlay_of_the_guide_is_built_with_the_settings_of_the_guide(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/kubernetes.md").read_text(), re.DOTALL)
    written = example.replace("../deploy", os.path.relpath(ROOT / "deploy", tmp_path))
    (tmp_path / "kustomization.yaml").write_text(written)
    manifests = built(str(tmp_path))
    assert [mistake for manifest in manifests for mistake in mistakes(manifest)] == []
    deployment = one(manifests, "Deployment")
    (config,) = [m for m in manifests if m["kind"] == "ConfigMap"]
    assert deployment["metadata"]["namespace"] == "digits"
    assert f"--out={config['data']['DIGITS_MODEL']}" in container(deployment, "export")["args"]
    assert container(deployment)["image"].startswith("ghcr.io/you/")
    assert one(manifests, "HorizontalPodAutoscaler")["spec"]["maxReplicas"] == 100


def test_tracing_only_allows_traffic_to_its_collector(tmp_path: Path) -> None:
    folder = os.path.relpath(ROOT / "deploy/kubernetes", tmp_path)
    (tmp_path / "kustomization.yaml").write_text(
        f"resources: [{folder}/overlays/production]\ncomponents: [{folder}/components/tracing]\n"
    )
    manifests = built(str(tmp_path))
    assert [mistake for manifest in manifests for mistake in mistakes(manifest)] == []
    (config,) = [m for m in manifests if m["kind"] == "ConfigMap"]
    endpoint = urllib.parse.urlsplit(config["data"]["DIGITS_OTLP_ENDPOINT"])
    collector, _ = one(manifests, "NetworkPolicy")["spec"]["egress"]
    assert collector["ports"] == [{"port": endpoint.port, "protocol": "TCP"}]
    (to,) = collector["to"]
    assert f".{to['namespaceSelector']['matchLabels']['kubernetes.io/metadata.name']}." in f"{endpoint.hostname}."
    without = one(built("overlays/production"), "NetworkPolicy")["spec"]
    assert "Egress" in without["policyTypes"]
    assert "egress" not in without
