"""The Kubernetes manifests match published schemas, the service's options, the compose file and the real server."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import yaml
from certificates import put
from conftest import ANSWERS_WITHIN, ROOT, serving, wait_until
from digitserve_client import DigitsClient, DigitsError
from grpc_health.v1 import health_pb2, health_pb2_grpc
from manifests import KUBERNETES, NEWEST, OLDEST, container, kustomization, mistakes, one, options, resources

from service.config import Settings, load

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    from conftest import ServiceProcess
    from manifests import Manifest

COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
DOCKERFILE = (ROOT / "service" / "Dockerfile").read_text()
WRITTEN = ["base", "components/autoscaling", "components/monitoring", "kserve"]  # folders with complete manifests
KNOWN = {f"DIGITS_{name.upper()}" for name in Settings.model_fields}


def compose_default(text: str) -> str:
    return re.sub(r"\$\{[A-Z_]+:-([^}]*)\}", r"\1", text)


def deployment() -> Manifest:
    return one(resources("base"), "Deployment")


def runtime() -> Manifest:
    """The container that KServe starts."""
    (found,) = one(resources("kserve"), "ServingRuntime")["spec"]["containers"]
    return dict(found)


def variables(of: Manifest) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in of["env"]}


# Schemas.


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("folder", WRITTEN)
def test_every_manifest_matches_its_schema(folder: str, version: str) -> None:
    manifests = resources(folder)
    assert manifests
    assert [(m["kind"], mistake) for m in manifests for mistake in mistakes(m, version)] == []


def at(manifest: Manifest, *path: str | int) -> Any:
    node: Any = manifest
    for name in path:
        node = node[name]
    return node


POD = ("spec", "template", "spec")
BROKEN: list[tuple[str, str, Callable[[Manifest], Any]]] = [
    ("base", "Deployment", lambda m: m["spec"].update(replica=3)),
    ("base", "Deployment", lambda m: m["spec"].pop("selector")),
    ("base", "Deployment", lambda m: at(m, *POD, "containers", 0, "ports", 0).update(containerPort="grpc")),
    ("base", "Deployment", lambda m: at(m, *POD, "containers", 0, "readinessProbe", "grpc").update(name="digits")),
    ("base", "Deployment", lambda m: at(m, *POD, "securityContext").update(runAsUser="digits")),
    ("base", "Service", lambda m: m["spec"].update(ports=50051)),
    ("base", "PodDisruptionBudget", lambda m: m["spec"].update(maxUnavailible=1)),
    ("base", "NetworkPolicy", lambda m: at(m, "spec", "ingress", 0, "ports", 0).update(targetPort="grpc")),
    ("components/autoscaling", "HorizontalPodAutoscaler", lambda m: m["spec"].pop("maxReplicas")),
    ("components/monitoring", "ServiceMonitor", lambda m: at(m, "spec", "endpoints", 0).update(interval="often")),
    ("components/monitoring", "ServiceMonitor", lambda m: m["spec"].update(endpoint=[])),
    (
        "components/monitoring",
        "PrometheusRule",
        lambda m: at(m, "spec", "groups", 0, "rules", 0).update(expression="1"),
    ),
    ("components/monitoring", "PrometheusRule", lambda m: at(m, "spec", "groups", 0).pop("name")),
    ("kserve", "ServingRuntime", lambda m: m["spec"].pop("containers")),
    ("kserve", "ServingRuntime", lambda m: m["spec"].update(protocolVersion="grpc-v2")),
    ("kserve", "InferenceService", lambda m: at(m, "spec", "predictor", "model").update(storageURI="pvc://models")),
    ("kserve", "InferenceService", lambda m: at(m, "spec", "predictor").update(minReplicas="three")),
]


@pytest.mark.parametrize(("folder", "kind", "spoil"), BROKEN)
def test_an_invalid_manifest_is_rejected(folder: str, kind: str, spoil: Callable[[Manifest], Any]) -> None:
    manifest = copy.deepcopy(next(m for m in resources(folder) if m["kind"] == kind))
    assert mistakes(manifest) == []
    spoil(manifest)
    assert mistakes(manifest) != []


# Comparisons with the rest of the project.


def test_the_rules_and_alerts_are_those_of_compose() -> None:
    subprocess.run([sys.executable, ROOT / "scripts" / "prometheus_rule.py", "--check"], check=True)
    files = sorted((ROOT / "deploy" / "prometheus" / "rules").glob("*.yml"))
    groups = [group for path in files for group in yaml.safe_load(path.read_text())["groups"]]
    assert one(resources("components/monitoring"), "PrometheusRule")["spec"]["groups"] == groups


@pytest.mark.parametrize("folder", ["base", "components/tls", "components/tokens", "components/tracing"])
def test_every_variable_is_an_option_of_the_service_with_a_value_that_it_takes(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(options(folder)) <= KNOWN
    for name, value in options(folder).items():
        monkeypatch.setenv(name, value)
    if folder != "base":  # some options need a second one
        for name, value in options("base").items():
            monkeypatch.setenv(name, value)
    load([])


@pytest.mark.parametrize("folder", WRITTEN)
def test_no_pod_is_given_variables_for_the_services_of_its_namespace(folder: str) -> None:
    """With a Service named `digits`, they would begin as options do, and the server would warn of them."""
    for manifest in resources(folder):
        spec = manifest.get("spec", {})
        pod = spec.get("predictor") or spec.get("template", {}).get("spec")
        assert pod is None or pod["enableServiceLinks"] is False, manifest["kind"]


def test_the_service_accepts_the_options_of_kserve(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(variables(runtime())) <= KNOWN
    for name, value in variables(runtime()).items():
        monkeypatch.setenv(name, value)
    assert str(load([]).model) == "/mnt/models"
    assert runtime()["args"] == ["service"], "as `python -m` takes it"


def test_fixed_options_are_those_of_compose() -> None:
    given = COMPOSE["service"]["environment"].items()
    fixed = {n: compose_default(v) for n, v in given if v is not None and n.startswith("DIGITS_")}
    assert fixed.pop("DIGITS_HTTP_PORT"), "no manifest publishes HTTP"
    assert {name: options("base").get(name) for name in fixed} == fixed
    ours = variables(runtime())
    assert {n: ours[n] for n in fixed if n != "DIGITS_MODEL"} == {n: v for n, v in fixed.items() if n != "DIGITS_MODEL"}


def test_the_model_is_exported_as_in_compose_to_the_path_of_the_service() -> None:
    export = container(deployment(), "export")
    assert export["args"] == [compose_default(argument) for argument in COMPOSE["export"]["command"]]
    assert f"--out={options('base')['DIGITS_MODEL']}" in export["args"]
    (writes,), (reads,) = export["volumeMounts"], container(deployment())["volumeMounts"]
    assert {**writes, "readOnly": True} == reads


def test_every_port_is_opened_by_the_service_and_every_port_name_exists() -> None:
    ports = {port["name"]: port["containerPort"] for port in container(deployment())["ports"]}
    given = options("base")
    assert ports == {"grpc": int(given["DIGITS_PORT"]), "metrics": int(given["DIGITS_METRICS_PORT"])}
    manifests = resources("base") + resources("components/monitoring")
    for service in [m for m in manifests if m["kind"] == "Service"]:
        for port in service["spec"]["ports"]:
            assert port["port"] == ports[port["targetPort"]], "clients of both Services use the service's port"
    allowed = [port["port"] for rule in one(manifests, "NetworkPolicy")["spec"]["ingress"] for port in rule["ports"]]
    assert allowed == list(ports)
    (h2c,) = runtime()["ports"]
    assert h2c["containerPort"] == ports["grpc"]


def test_containers_may_do_no_more_than_in_compose() -> None:
    pod = deployment()["spec"]["template"]["spec"]
    (user,) = set(re.findall(r"^USER (\d+):\1$", DOCKERFILE, re.MULTILINE))
    assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == int(user)
    assert pod["automountServiceAccountToken"] is False
    for part in (container(deployment()), container(deployment(), "export"), runtime()):
        context = {**pod["securityContext"], **part["securityContext"]}
        assert context["readOnlyRootFilesystem"] is COMPOSE["service"]["read_only"] is True
        assert context["capabilities"]["drop"] == COMPOSE["service"]["cap_drop"] == ["ALL"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["runAsNonRoot"] is True
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}


def test_memory_is_limited_as_in_compose_and_cpu_is_not() -> None:
    for part in (container(deployment()), runtime()):
        limits = part["resources"]["limits"]
        assert limits["memory"].removesuffix("i") == compose_default("${SERVICE_MEMORY:-512M}")
        assert "cpu" not in limits


def test_the_grace_period_of_a_pod_exceeds_its_drain() -> None:
    given = options("base")
    drain = float(given["DIGITS_DRAIN_WAIT"]) + float(given["DIGITS_SHUTDOWN_GRACE"])
    assert deployment()["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] >= drain + 5
    kserve = float(variables(runtime())["DIGITS_DRAIN_WAIT"]) + Settings().shutdown_grace
    assert kserve + 5 <= 30, "KServe keeps Kubernetes' default of 30 seconds"


def test_a_pod_is_removed_from_the_service_before_it_is_killed() -> None:
    for part in (container(deployment()), runtime()):
        patience = {
            kind: part[kind]["periodSeconds"] * part[kind]["failureThreshold"]
            for kind in ("readinessProbe", "livenessProbe")
        }
        assert patience["livenessProbe"] >= 5 * patience["readinessProbe"]


def test_the_probes_succeed_on_the_real_server(server: ServiceProcess) -> None:
    parts = (container(deployment()), runtime())
    probes = [part[kind] for part in parts for kind in ("startupProbe", "readinessProbe") if kind in part]
    assert len(probes) == 3
    for part in parts:
        alive = part["livenessProbe"]["httpGet"]
        assert alive["port"] in ("metrics", int(options("base")["DIGITS_METRICS_PORT"]))
        assert "SERVING" in server.get(alive["path"])
    with grpc.insecure_channel(server.address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        for probe in probes:
            assert probe["grpc"]["port"] == int(options("base")["DIGITS_PORT"])
            reply = stub.Check(health_pb2.HealthCheckRequest(service=probe["grpc"]["service"]), timeout=5)
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
    patch = yaml.safe_load((KUBERNETES / "components/tls/deployment.yaml").read_text())
    for kind in ("startupProbe", "readinessProbe"):
        probe = container(patch)[kind]
        assert probe["grpc"] is None, "the kubelet's gRPC probe speaks no TLS"
        assert "SERVING" in server.get(probe["httpGet"]["path"])


def test_services_budget_policy_and_monitor_select_the_pods_and_prometheus_calls_the_job_digitserve() -> None:
    (shared,) = kustomization("base")["labels"]
    assert shared["includeSelectors"]
    name = shared["pairs"]["app.kubernetes.io/name"]
    labels = deployment()["spec"]["template"]["metadata"]["labels"]
    assert deployment()["spec"]["selector"]["matchLabels"] == labels
    services = [m for m in resources("base") if m["kind"] == "Service"]
    assert [service["spec"]["selector"] for service in services] == [labels, labels]
    assert one(resources("base"), "PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    assert one(resources("base"), "NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == labels
    monitor = one(resources("components/monitoring"), "ServiceMonitor")["spec"]
    wanted = monitor["selector"]["matchLabels"].items()
    (scraped,) = [s for s in services if wanted <= {**s["metadata"].get("labels", {}), **shared["pairs"]}.items()]
    assert scraped["spec"]["clusterIP"] == "None", "each replica separately"
    assert {endpoint["port"] for endpoint in monitor["endpoints"]} <= {p["name"] for p in scraped["spec"]["ports"]}
    job = {**scraped["metadata"]["labels"], **shared["pairs"]}[monitor["jobLabel"]]
    assert job == name == "digitserve"
    rules = (ROOT / "deploy/prometheus/rules/records.yml").read_text()
    assert set(re.findall(r'job="([^"]+)"', rules)) == {job}


def test_the_autoscaler_reads_the_metric_of_the_adapter() -> None:
    scaler = one(resources("components/autoscaling"), "HorizontalPodAutoscaler")["spec"]
    (rule,) = yaml.safe_load((KUBERNETES / "components/autoscaling/prometheus-adapter.yaml").read_text())["rules"][
        "custom"
    ]
    (pods,) = [metric["pods"] for metric in scaler["metrics"] if metric["type"] == "Pods"]
    assert pods["metric"]["name"] == rule["name"]["as"]
    (cpu,) = [m["containerResource"] for m in scaler["metrics"] if m["type"] == "ContainerResource"]
    assert cpu["container"] == container(deployment())["name"]
    assert scaler["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "digitserve"}


def test_kserve_serves_the_model_under_the_name_that_clients_use(server: ServiceProcess) -> None:
    from service.pb.inference.open_inference_pb2 import ModelReadyRequest, ModelReadyResponse  # noqa: PLC0415

    service = one(resources("kserve"), "InferenceService", "digits")
    model = service["spec"]["predictor"]["model"]
    serving = one(resources("kserve"), "ServingRuntime", model["runtime"])["spec"]
    assert model["protocolVersion"] in serving["protocolVersions"]
    assert model["modelFormat"]["name"] in [known["name"] for known in serving["supportedModelFormats"]]
    with grpc.insecure_channel(server.address) as channel:
        ready = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelReady",
            request_serializer=ModelReadyRequest.SerializeToString,
            response_deserializer=ModelReadyResponse.FromString,
        )
        assert ready(ModelReadyRequest(name=service["metadata"]["name"]), timeout=5).ready


def test_a_folder_in_the_layout_of_kserve_is_served(
    make_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIGITS_TRANSPORT", "auto")
    for version in ("1", "2"):
        (tmp_path / version).mkdir()
        make_model(version=version).rename(tmp_path / version / "model.onnx")
    with serving(tmp_path) as service:
        assert service.lines[-1]["model_version"] == "2"


def laid(folder: Path, stamp: str, token: str) -> None:
    """Write a Secret's volume as the kubelet does: a new folder for the files, and one link that is replaced."""
    (folder / stamp).mkdir(parents=True)
    (folder / stamp / "tokens").write_text(token)
    (folder / "..next").symlink_to(stamp)
    (folder / "..next").rename(folder / "..data")
    if not (folder / "tokens").is_symlink():
        (folder / "tokens").symlink_to("..data/tokens")


def test_a_secret_that_the_kubelet_changes_is_loaded(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: np.ndarray
) -> None:
    monkeypatch.setenv("DIGITS_TRANSPORT", "grpcio")
    first, second = "first-token-0123456789", "second-token-0123456789"
    laid(tmp_path / "secret", "..2026_01", first)
    put(tmp_path / "mine", second.encode())
    with (
        serving(model_path, "--tokens-file", tmp_path / "secret" / "tokens") as service,
        DigitsClient(service.address, token_file=tmp_path / "mine", timeout=ANSWERS_WITHIN) as client,
    ):
        with pytest.raises(Exception, match="token"):
            client.predict(digits[:1])
        laid(tmp_path / "secret", "..2026_02", second)
        wait_until(lambda: len(client.predict(digits[:1]).digits) == 1, DigitsError)
