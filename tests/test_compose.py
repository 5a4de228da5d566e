"""The compose files and their mounts, without an engine: compared with each other and with the service's options."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ANSWERS_WITHIN, DEAD_PROXIES, ROOT, ServiceProcess, launch, serving
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from scripts.compose_stack import parse_config
from service.config import Settings
from service.healthcheck import publish_address
from service.observability.metrics_server import MetricsServer
from service.transports.limits import Limits

BASE, SCALE, TLS = "docker-compose.yml", "compose.scale.yml", "compose.tls.yml"
GPU, WEBGPU = "compose.gpu.yml", "compose.webgpu.yml"
TOKENS, ALERTMANAGER = "compose.tokens.yml", "compose.alertmanager.yml"
FILES = (BASE, SCALE, TLS, GPU, WEBGPU, TOKENS, ALERTMANAGER)
VARIANTS = [[BASE], [BASE, SCALE], [BASE, SCALE, TLS], [BASE, GPU], [BASE, WEBGPU], [BASE, TOKENS, ALERTMANAGER]]
VARIANTS += [[BASE, SCALE, TLS, TOKENS, ALERTMANAGER]]
OTHER_DEFAULTS = {"5", "4G", "cuda"}  # of a variant: DIGITS_DRAIN_WAIT, SERVICE_MEMORY, DIGITS_PROVIDER
VARIABLE = re.compile(r"\$\{([A-Z0-9_]+)(?::-([^}]*))?\}")


class ComposeLoader(yaml.SafeLoader):
    """YAML with the tags by which one compose file removes settings of another."""


for tag in ("!reset", "!override"):
    ComposeLoader.add_constructor(
        tag,
        lambda loader, node: (
            loader.construct_mapping(node, deep=True)
            if isinstance(node, yaml.MappingNode)
            else loader.construct_sequence(node, deep=True)
        ),
    )


def compose(name: str) -> dict[str, Any]:
    # The files belong to the project.
    return dict(yaml.load((ROOT / name).read_text(), ComposeLoader))  # noqa: S506 (a SafeLoader)


def services() -> list[tuple[str, str, dict[str, Any]]]:
    return [(name, service, definition) for name in FILES for service, definition in compose(name)["services"].items()]


def without_comments(path: Path) -> str:
    return re.sub(r"(^|\s)#.*", "", path.read_text(), flags=re.MULTILINE)


def variables() -> dict[str, set[str | None]]:
    """Return every variable in a compose file, with its default or defaults."""
    found: dict[str, set[str | None]] = {}
    for name in FILES:
        for variable, default in VARIABLE.findall(without_comments(ROOT / name)):
            found.setdefault(variable, set()).add(default)
    for variable, value in compose(BASE)["services"]["service"]["environment"].items():
        if value is None:
            found.setdefault(variable, set())
    return found


def example() -> dict[str, str]:
    return dict(re.findall(r"^# ([A-Z0-9_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))


def seconds(duration: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(ms|s|m)", duration).groups()  # type: ignore[union-attr]
    return float(number) * {"ms": 0.001, "s": 1, "m": 60}[unit]


def default(text: str) -> str:
    """Return a value as compose reads it with an empty environment."""
    return VARIABLE.sub(lambda match: match[2] or "", text)


@pytest.mark.skipif(not shutil.which("docker"), reason="needs the docker command with compose: docs.docker.com/engine")
@pytest.mark.parametrize("files", VARIANTS, ids=" ".join)
def test_compose_itself_takes_every_variant(files: list[str]) -> None:
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode:  # noqa: S607
        pytest.skip("this docker has no compose: install the docker-compose-plugin")
    options = [argument for name in files for argument in ("--file", name)]
    command = ["docker", "compose", *options, "--profile", "*", "config", "--quiet"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_every_option_of_the_service_is_fixed_or_passed_on_and_none_is_unknown() -> None:
    options = {f"DIGITS_{name.upper()}" for name in Settings.model_fields}
    for name, _, definition in services():
        given = set(definition.get("environment", {}))
        assert {variable for variable in given if variable.startswith("DIGITS_")} <= options, name
    assert set(compose(BASE)["services"]["service"]["environment"]) == options | {"no_proxy", "NO_PROXY"}


def test_calls_within_the_stack_bypass_proxies() -> None:
    base = compose(BASE)["services"]
    called = {"localhost", "127.0.0.1", "service", "envoy", "prometheus", "alertmanager", "jaeger"}
    for service in ("service", "grafana", "play", "client"):
        for variable in ("no_proxy", "NO_PROXY"):  # gRPC reads the first alone
            assert set(base[service]["environment"][variable].split(",")) == called, service
    assert base["prometheus"]["healthcheck"]["test"][2:4] == ["-Y", "off"], "busybox's wget ignores no_proxy"


def test_the_example_names_every_variable_with_its_default() -> None:
    named = example()
    ours = {"COMPOSE_FILE"}
    assert set(named) - ours == set(variables())
    of_service = {f"DIGITS_{name.upper()}": field.default for name, field in Settings.model_fields.items()}
    of_service = {name: "" if default is None else default for name, default in of_service.items()}
    for variable, defaults in variables().items():
        expected = {str(value) for value in defaults} - OTHER_DEFAULTS
        if variable in of_service:
            value = of_service[variable]
            assert named[variable] == (f"{value:g}" if isinstance(value, float) else str(value).lower()), variable
        else:
            assert {named[variable]} == expected, variable


def test_the_example_leaves_every_default_as_it_is() -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == []


@pytest.mark.parametrize(("name", "service", "definition"), services())
def test_containers_may_do_no_more_than_they_must(name: str, service: str, definition: dict[str, Any]) -> None:
    if (name != BASE and service in compose(BASE)["services"]) or "image" not in definition:
        return  # changes a service of another file
    assert definition["read_only"] is True, (name, service)
    assert definition["cap_drop"] == ["ALL"]
    assert definition["security_opt"] == ["no-new-privileges:true"]
    assert definition["logging"]["options"].keys() == {"max-size", "max-file"}
    assert not {"privileged", "cap_add", "network_mode"} & set(definition) or definition["network_mode"] == "none"
    if service != "client":  # which runs as long as its command
        assert definition["restart"] in ("unless-stopped", "no")
        assert definition["deploy"]["resources"]["limits"].keys() == {"cpus", "memory", "pids"}
    if not definition["image"].startswith("digitserve"):
        assert re.search(r":\$\{[A-Z_]+_TAG:-v?\d+\.\d+\.\d+\}$", definition["image"]), "a release, not latest"


def test_ports_are_published_on_loopback_by_default() -> None:
    published = [default(port) for _, _, definition in services() for port in definition.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert not [port for port in published if port.endswith(":9464")], "only Prometheus reads metrics"


def test_only_the_service_reaches_the_trace_receiver() -> None:
    assert compose(BASE)["networks"]["traces"] == {"internal": True}
    on_it = [(name, service) for name, service, one in services() if "traces" in one.get("networks", [])]
    assert on_it == [(BASE, "service"), (BASE, "jaeger"), (SCALE, "service")]
    assert "clients" not in compose(BASE)["services"]["jaeger"]["networks"]


def test_only_prometheus_envoy_and_the_service_share_the_network_of_the_metrics() -> None:
    assert compose(BASE)["networks"]["metrics"] == {"internal": True}
    on_it = {service for _, service, definition in services() if "metrics" in definition.get("networks", [])}
    assert on_it == {"service", "prometheus", "envoy"}


def test_every_mounted_file_exists() -> None:
    for name, service, definition in services():
        for volume in definition.get("volumes", []):
            source, *_ = volume.split(":")
            if source.startswith("./"):
                assert (ROOT / source).exists(), (name, service, source)
            elif not source.startswith("$"):
                assert source in {**compose(BASE)["volumes"], **compose(name).get("volumes", {})}, (
                    name,
                    service,
                    source,
                )


@pytest.mark.parametrize("name", [BASE, SCALE])
def test_the_stop_timeout_of_a_container_exceeds_its_drain(name: str) -> None:
    service = {**compose(BASE)["services"]["service"], **compose(name)["services"]["service"]}
    grace = seconds(default(compose(BASE)["services"]["service"]["stop_grace_period"]))
    wait = default(service["environment"].get("DIGITS_DRAIN_WAIT") or str(Settings().drain_wait))
    assert grace > float(wait) + Settings().shutdown_grace + 5


def test_envoy_removes_a_draining_replica_before_it_rejects_calls() -> None:
    wait = float(default(compose(SCALE)["services"]["service"]["environment"]["DIGITS_DRAIN_WAIT"]))
    (check,) = envoy_cluster("replicas")["health_checks"]
    assert wait > check["unhealthy_threshold"] * (seconds(check["interval"]) + seconds(check["timeout"]))


def envoy(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "deploy/envoy" / name).read_text()))


def envoy_cluster(name: str) -> dict[str, Any]:
    (cluster,) = [c for c in envoy("envoy.yaml")["static_resources"]["clusters"] if c["name"] == name]
    return dict(cluster)


def envoy_routes() -> list[dict[str, Any]]:
    (resource,) = envoy("routes.yaml")["resources"]
    (host,) = resource["virtual_hosts"]
    return list(host["routes"])


def test_envoy_retries_only_read_only_calls_that_a_replica_had_begun() -> None:
    begun = {"reset", "unavailable", "cancelled", "internal", "deadline-exceeded", "resource-exhausted", "5xx"}
    repeated = {
        route["match"].get("path", "any"): begun & set(route["route"]["retry_policy"]["retry_on"].split(","))
        for route in envoy_routes()
    }
    assert repeated == {
        "/digits.v1.DigitService/Predict": {"reset", "unavailable"},
        "/digits.v1.DigitService/Explain": {"reset", "unavailable"},
        "/digits.v1.DigitService/GetNetwork": {"reset", "unavailable"},
        "/inference.GRPCInferenceService/ModelInfer": {"reset", "unavailable"},
        "any": set(),
    }


def test_the_paths_of_envoys_routes_are_unary_calls_of_the_contracts() -> None:
    from service.pb.digits.v1 import digits_pb2  # noqa: PLC0415
    from service.pb.inference import open_inference_pb2  # noqa: PLC0415

    unary = {
        f"/{service.full_name}/{method.name}"
        for file in (digits_pb2.DESCRIPTOR, open_inference_pb2.DESCRIPTOR)
        for service in file.services_by_name.values()
        for method in service.methods
        if not (method.client_streaming or method.server_streaming)
    }
    assert {route["match"]["path"] for route in envoy_routes() if "path" in route["match"]} <= unary


def test_envoy_uses_the_port_and_the_health_service_of_the_server() -> None:
    cluster = envoy_cluster("replicas")
    ((endpoint,),) = [e["lb_endpoints"] for e in cluster["load_assignment"]["endpoints"]]
    address = endpoint["endpoint"]["address"]["socket_address"]
    service = compose(SCALE)["services"]["service"]
    assert address["address"] in service["networks"]["backend"]["aliases"]
    assert str(address["port_value"]) == compose(BASE)["services"]["service"]["environment"]["DIGITS_PORT"]
    assert cluster["health_checks"][0]["grpc_health_check"]["service_name"] == "digits.v1.DigitService"


def test_the_two_envoy_configurations_differ_only_in_tls() -> None:
    plain, tls = envoy("listener.yaml")["resources"], envoy("listener-tls.yaml")["resources"]
    for listener in tls:
        assert listener["filter_chains"][0].pop("transport_socket")["name"] == "envoy.transport_sockets.tls"
    assert tls == plain


def test_envoy_retries_only_read_only_http_requests() -> None:
    (resource,) = envoy("routes-http.yaml")["resources"]
    (host,) = resource["virtual_hosts"]
    repeated = [
        ({"/v1/predict", "/v1/explain", "/v2/models/digits/infer"}, ["POST"]),
        ({"/v2/models/digits/versions/2/infer"}, ["POST"]),
        ({"/", "/v1/network", "/v2", "/v2/models/digits", "/v2/models/digits/stats"}, ["GET"]),
    ]
    once = [({"/v2/repository/models/digits/load", "/v2/repository/index", "/v1/other"}, ["POST", "PUT"])]
    for requests, begun in ((repeated, {"reset", "retriable-status-codes"}), (once, set())):
        for paths, methods in requests:
            for path in paths:
                for method in methods:
                    policy = http_route(host["routes"], path, method)["route"]["retry_policy"]
                    asked = set(policy["retry_on"].split(",")) - {"connect-failure", "reset-before-request"}
                    assert asked == begun, (method, path)
                    assert policy.get("retriable_status_codes", [503]) == [503], "429 is never repeated"


def http_route(routes: list[dict[str, Any]], path: str, method: str) -> dict[str, Any]:
    """Return the first route that matches a request."""
    for route in routes:
        match = route["match"]
        methods = [header["string_match"]["exact"] for header in match.get("headers", [])]
        named = "path" in match and match["path"] == path
        like = "safe_regex" in match and re.fullmatch(match["safe_regex"]["regex"], path)
        if (named or like or path.startswith(match.get("prefix", "-"))) and methods in ([], [method]):
            return dict(route)
    raise AssertionError(path)


def test_envoy_checks_the_health_of_each_port_of_a_replica() -> None:
    environment = compose(BASE)["services"]["service"]["environment"]
    cluster = envoy_cluster("replicas-http")
    ((endpoint,),) = [e["lb_endpoints"] for e in cluster["load_assignment"]["endpoints"]]
    address = endpoint["endpoint"]["address"]["socket_address"]
    assert address["address"] in compose(SCALE)["services"]["service"]["networks"]["backend"]["aliases"]
    assert str(address["port_value"]) == environment["DIGITS_HTTP_PORT"]
    (check,), (of_grpc,) = cluster["health_checks"], envoy_cluster("replicas")["health_checks"]
    assert check.pop("http_health_check") == {"path": "/v2/health/ready"}
    of_grpc.pop("grpc_health_check")
    assert check == of_grpc
    idle = cluster["typed_extension_protocol_options"]["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"]
    idle = seconds(idle["common_http_protocol_options"]["idle_timeout"])
    assert idle < Settings().max_connection_idle, "or a replica closes a connection on which Envoy sends a request"


def test_envoy_counts_statuses_under_the_names_that_the_rules_read() -> None:
    # Envoy counts methods that are listed by name under other names. The alert on UNAVAILABLE then never fires.
    listener, _ = envoy("listener.yaml")["resources"]
    filters = listener["filter_chains"][0]["filters"][0]["typed_config"]["http_filters"]
    (config,) = [one["typed_config"] for one in filters if one["name"] == "envoy.filters.http.grpc_stats"]
    assert config == {"@type": config["@type"], "stats_for_all_methods": False}


def test_envoy_grants_a_client_what_the_service_grants_it_and_bounds_the_rest() -> None:
    listener, http = envoy("listener.yaml")["resources"]
    over_http = http["filter_chains"][0]["filters"][0]["typed_config"]
    assert over_http["max_request_headers_kb"] * 1024 == Limits(max_batch_size=1).max_metadata_bytes
    assert seconds(over_http["stream_idle_timeout"]) == Limits(max_batch_size=1).message_timeout
    assert http["per_connection_buffer_limit_bytes"] <= 2**20
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    http2 = manager["http2_protocol_options"]
    assert http2["max_concurrent_streams"] == Settings().max_concurrent_streams
    assert manager["max_request_headers_kb"] * 1024 == Limits(max_batch_size=1).max_metadata_bytes
    longest = max(http2["initial_stream_window_size"], listener["per_connection_buffer_limit_bytes"])
    assert longest <= http2["initial_connection_window_size"] <= 2**20
    for frames in ("max_outbound_frames", "max_outbound_control_frames", "max_inbound_priority_frames_per_stream"):
        assert http2[frames] > 0


def test_envoy_sheds_load_before_its_container_runs_out_of_memory() -> None:
    manager = envoy("envoy.yaml")["overload_manager"]
    monitors = {monitor["name"]: monitor["typed_config"] for monitor in manager["resource_monitors"]}
    granted = compose(SCALE)["services"]["envoy"]["deploy"]["resources"]["limits"]["memory"]
    heap = monitors["envoy.resource_monitors.fixed_heap"]["max_heap_size_bytes"]
    assert heap <= 0.8 * int(granted.removesuffix("M")) * 2**20
    assert {action["name"].rpartition(".")[2] for action in manager["actions"]} == {
        *("shrink_heap", "reset_high_memory_stream", "stop_accepting_requests", "stop_accepting_connections")
    }
    assert {trigger["name"] for action in manager["actions"] for trigger in action["triggers"]} <= set(monitors)


def test_the_image_has_the_native_transport_and_uses_it_by_default() -> None:
    assert re.search(r"^COPY --from=native /digitserve_native", stages()["service"], re.MULTILINE)
    assert "DIGITS_TRANSPORT" not in stages()["service"]
    assert compose(BASE)["services"]["service"]["environment"]["DIGITS_TRANSPORT"] is None
    assert Settings.model_fields["transport"].default == "auto"


def test_envoy_publishes_the_ports_that_its_listeners_have_and_the_service_has_without_it() -> None:
    listeners = [listener["address"]["socket_address"] for listener in envoy("listener.yaml")["resources"]]
    published = compose(SCALE)["services"]["envoy"]["ports"]
    assert [port.rpartition(":")[2] for port in published] == [str(listener["port_value"]) for listener in listeners]
    assert published == compose(BASE)["services"]["service"]["ports"]
    environment = compose(BASE)["services"]["service"]["environment"]
    assert [environment["DIGITS_PORT"], environment["DIGITS_HTTP_PORT"]] == [p.rpartition(":")[2] for p in published]


def test_prometheus_finds_every_replica_by_name_and_loads_the_rules() -> None:
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    (discovery,) = jobs["digitserve"]["dns_sd_configs"]
    environment = compose(BASE)["services"]["service"]["environment"]
    assert (discovery["names"], discovery["type"]) == (["service"], "A")
    assert str(discovery["port"]) == environment["DIGITS_METRICS_PORT"]
    assert mounts(BASE, "prometheus")["/etc/prometheus"] == "deploy/prometheus"
    assert config["rule_files"][0] == "rules/*.yml"  # relative to the file's own folder
    assert list((ROOT / "deploy/prometheus/rules").glob("*.yml"))


def test_prometheus_scrapes_envoy_if_there_is_one() -> None:
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    (folder,) = {Path(file).parent for file in (config["rule_files"][1], *config["scrape_config_files"])}
    mounted = ROOT / mounts(SCALE, "prometheus")[str(folder)]
    assert str(folder) not in mounts(BASE, "prometheus")
    assert all(
        (mounted / Path(file).name).is_file() for file in (config["rule_files"][1], *config["scrape_config_files"])
    )


def test_prometheus_sends_alerts_to_an_alertmanager_and_restarts_for_no_setting_of_the_service() -> None:
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    (manager,) = config["alerting"]["alertmanagers"]
    ((files,),) = [discovery["files"] for discovery in manager["file_sd_configs"]]
    folder = mounts(ALERTMANAGER, "prometheus")[str(Path(files).parent)]
    assert str(Path(files).parent) not in mounts(BASE, "prometheus")
    (target,) = [
        target
        for path in (ROOT / folder).glob(Path(files).name)
        for group in yaml.safe_load(path.read_text())
        for target in group["targets"]
    ]
    host, port = target.split(":")
    (published,) = compose(ALERTMANAGER)["services"][host]["ports"]
    assert published.endswith(f":{port}")
    assert set(compose(ALERTMANAGER)["services"][host]["networks"]) <= set(
        compose(BASE)["services"]["prometheus"]["networks"]
    )
    assert "depends_on" not in compose(BASE)["services"]["prometheus"], (
        "compose restarts the dependents of a container that it recreates"
    )


def test_every_severity_has_a_receiver_of_its_own() -> None:
    config = yaml.safe_load((ROOT / "deploy/alertmanager/alertmanager.yml").read_text())
    routes = [config["route"], *config["route"]["routes"]]
    assert {route["receiver"] for route in routes} == {receiver["name"] for receiver in config["receivers"]}
    files = [*(ROOT / "deploy/prometheus").glob("*/rules.yml"), *(ROOT / "deploy/prometheus/rules").glob("*.yml")]
    groups = [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]
    rules = [rule for group in groups for rule in group["rules"] if "alert" in rule]
    assert {rule["labels"]["severity"] for rule in rules} == {"page", "ticket"}
    assert config["route"]["routes"][0]["matchers"] == ['severity="page"']


@pytest.mark.parametrize("variant", [[BASE, SCALE], [BASE, SCALE, TLS]])
def test_the_page_calls_a_server_on_a_network_that_it_is_on(variant: list[str]) -> None:
    merged = {name: {**compose(BASE)["services"].get(name, {})} for name in ("play", "service", "envoy")}
    for file in variant[1:]:
        for name, definition in compose(file)["services"].items():
            merged.setdefault(name, {}).update(definition)
    (address,) = [word.removeprefix("--address=") for word in merged["play"]["command"] if "--address=" in word]
    host = address.split(":")[0]
    networks = merged["service"]["networks"]
    aliases = {alias: network for network, on in networks.items() for alias in (on or {}).get("aliases", [])}
    reached = {aliases[host]} if host in aliases else set(merged[host]["networks"])
    assert reached & set(merged["play"]["networks"]), (address, reached)


def test_the_build_context_has_all_that_the_dockerfile_copies() -> None:
    allowed = [
        line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    ]
    copies = re.findall(r"^COPY (?!--from)(.+)$", (ROOT / "service/Dockerfile").read_text(), re.MULTILINE)
    sources = [source for line in copies for source in line.split()[:-1]]
    for source in sources:
        assert list(ROOT.glob(source)), source
        assert any(source == one or source.startswith(f"{one}/") for one in allowed), source
    assert [one for one in allowed if not list(ROOT.glob(one))] == []


def test_smoke_finds_ports_certificate_and_tokens_in_the_compose_configuration() -> None:
    port = {"mode": "ingress", "target": 50051, "published": "50052", "protocol": "tcp", "host_ip": "127.0.0.1"}
    http = {**port, "target": 8000, "published": "8001"}
    config: dict[str, Any] = {
        "services": {
            "service": {"volumes": [{"type": "bind", "source": "/here/tokens", "target": "/tokens"}]},
            "envoy": {"ports": [port, http], "volumes": [{"source": "/here/tls", "target": "/etc/envoy/tls"}]},
            "prometheus": {"ports": [{**port, "target": 9090, "published": "9091", "host_ip": "::1"}]},
        }
    }
    stack = parse_config(config)
    assert (stack.grpc, stack.http) == ("localhost:50052", "https://localhost:8001")
    assert stack.prometheus == "http://[::1]:9091"
    assert (stack.tls_ca, stack.tokens_file) == (Path("/here/tls/tls.crt"), Path("/here/tokens/tokens"))
    del config["services"]["envoy"]
    config["services"]["service"] = {"ports": [{**port, "published": "50053"}]}
    stack = parse_config(config)
    assert (stack.grpc, stack.http, stack.tls_ca, stack.tokens_file) == ("localhost:50053", None, None, None)
    config["services"]["service"] = {"ports": [port, http]}
    assert parse_config(config).http == "http://localhost:8001"


def mounts(file: str, service: str) -> dict[str, str]:
    """Return the files of the clone that a service mounts, by the path in its container."""
    volumes = [volume.split(":") for volume in compose(file)["services"][service].get("volumes", [])]
    return {target: source.removeprefix("./") for source, target, *_ in volumes if source.startswith("./")}


def test_prometheus_scrapes_the_only_admin_path_that_envoy_exposes() -> None:
    (job,) = yaml.safe_load((ROOT / "deploy/prometheus/envoy/scrape.yml").read_text())["scrape_configs"]
    (stats,) = envoy("envoy.yaml")["static_resources"]["listeners"]
    assert job["dns_sd_configs"][0]["port"] == stats["address"]["socket_address"]["port_value"]
    manager = stats["filter_chains"][0]["filters"][0]["typed_config"]
    assert [route["match"] for route in manager["route_config"]["virtual_hosts"][0]["routes"]] == [
        {"path": job["metrics_path"]}
    ]


def stages() -> dict[str, str]:
    """Return the text of each stage of the Dockerfile, by name, in order."""
    text = re.sub(r"^#.*\n", "", (ROOT / "service/Dockerfile").read_text(), flags=re.MULTILINE)
    return dict(re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM |\Z)", text, re.MULTILINE | re.DOTALL))


def test_the_published_image_has_the_model_at_the_path_of_the_service() -> None:
    (out,) = re.findall(r'"--out", "([^"]+)"', stages()["model"])
    (copied,) = re.findall(r"^COPY --from=model --chown=10001:10001 (\S+) (\S+)$", stages()["published"], re.MULTILINE)
    (model,) = re.findall(r"DIGITS_MODEL=(\S+)", stages()["service"])
    assert (out, model) == copied


def test_the_last_stage_serves_and_compose_names_existing_stages() -> None:
    assert list(stages())[-1] == "published"
    assert re.search(r"^FROM service AS published$", (ROOT / "service/Dockerfile").read_text(), re.MULTILINE)
    for _, _, definition in services():
        if "build" in definition and "target" in definition["build"]:
            assert default(definition["build"]["target"]) in stages()


def test_the_serving_image_installs_no_more_than_serving_needs() -> None:
    def printed(*extras: str) -> list[str]:
        command = [sys.executable, "scripts/requirements.py", *extras]
        lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
        return [re.split("[^a-z-]", line)[0] for line in lines]

    assert not {"onnx", "jax", "pillow", "typer", "rich", "matplotlib", "grpcio-tools"} & set(printed())
    assert {"onnxruntime", "grpcio"} <= set(printed())
    assert {"onnx", "pillow"} <= set(printed("export", "client"))
    assert "RUN python requirements.py tracing http ${EXTRAS} | sed" in stages()["requirements"], (
        "the serving image names no other extra"
    )
    assert "\nARG EXTRAS=\n" in stages()["requirements"]
    assert re.findall(r"COPY --from=code (\S.*) ", stages()["service"]) == ["/app/LICENSE /app/NOTICE", "/app/service"]


def test_the_gpu_image_has_one_onnx_runtime_and_starts_on_the_gpu_alone() -> None:
    command = [sys.executable, "scripts/requirements.py", "gpu"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert [package for package in printed if package.startswith("onnxruntime")] == ["onnxruntime-gpu[cuda,cudnn]"]
    service = compose(GPU)["services"]["service"]
    assert {default(service["build"]["target"]), default(service["build"]["args"]["EXTRAS"])} == {"gpu"}
    assert "ENV DIGITS_PROVIDER=cuda" in stages()["gpu"]
    assert "\nonnxruntime-gpu==" in (ROOT / "constraints-gpu.txt").read_text()


def test_the_webgpu_image_has_a_plugin_and_onnx_runtime_for_the_cpu_and_only_starts_on_a_gpu() -> None:
    command = [sys.executable, "scripts/requirements.py", "webgpu"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert [package for package in printed if package.startswith("onnxruntime")] == [
        "onnxruntime",
        "onnxruntime-ep-webgpu>=0.4,<1",
    ]
    build = compose(WEBGPU)["services"]["service"]["build"]
    assert build == {"target": "webgpu", "args": {"EXTRAS": "webgpu", "VULKAN_DRIVERS": "mesa-vulkan-drivers"}}
    assert "ENV DIGITS_PROVIDER=webgpu" in stages()["webgpu"]
    assert "USER root\nRUN apt-get" in stages()["webgpu"]
    assert "USER 10001:10001\nENV" in stages()["webgpu"]


@pytest.mark.parametrize("stage", ["service", "tools"])
def test_an_image_runs_as_a_user_without_rights(stage: str) -> None:
    assert re.findall(r"^USER (\S+)$", stages()[stage], re.MULTILINE) == ["10001:10001"]


def test_the_image_stops_by_the_signal_that_drains_and_has_the_probe() -> None:
    assert "STOPSIGNAL SIGTERM\n" in stages()["service"]
    assert 'CMD ["/usr/local/bin/python", "-I", "-S", "/app/service/healthcheck.py"]' in stages()["service"]
    assert "COPY --from=code /app/service service\n" in stages()["service"]


def test_the_start_timeout_is_minutes() -> None:
    (start,) = re.findall(r"--start-period=(\d+)s", stages()["service"])
    (roll,) = re.findall(r"ROLL_TIMEOUT:-(\d+)", (ROOT / "scripts/rolling-update").read_text())
    assert 100 < int(start) < int(roll)


def test_the_images_packages_are_wheels_that_the_constraints_pin() -> None:
    script = (ROOT / "scripts/install-wheels").read_text()
    assert "--only-binary :all:" in script
    assert "--constraint pinned.txt" in script


def probe(*processes: str, env: dict[str, str] | None = None) -> tuple[int, str, str]:
    """Run the probe as the image starts it; return exit status and output."""
    command = [sys.executable, "-I", "-S", ROOT / "service/healthcheck.py", *processes]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=ANSWERS_WITHIN)
    return done.returncode, done.stdout, done.stderr


def http_address(service: ServiceProcess) -> str:
    return service.metrics_url.removeprefix("http://").removesuffix("/metrics")


def test_the_probe_finds_a_server_on_any_port(model_path: Path, tmp_path: Path) -> None:
    misleading = {"DIGITS_PORT": "1", "DIGITS_METRICS_PORT": "1", **DEAD_PROXIES}
    (tmp_path / "tokens").write_text("a-token-of-some-length")
    options = ("--tokens-file", tmp_path / "tokens", "--no-health-without-token")
    service = launch("--model", model_path, "--port", "0", "--metrics-port", "0", *options, env=misleading)
    try:
        service.wait_for("serving")
        found = probe(str(service.process.pid), env=misleading)
        assert found == (0, f"{http_address(service)}: SERVING on CPUExecutionProvider\n", "")
    finally:
        service.close()


@pytest.mark.parametrize(("host", "asked"), [("0.0.0.0", "127.0.0.1"), ("127.0.0.2", "127.0.0.2"), ("::1", "::1")])  # noqa: S104 (the subject of the test)
def test_the_probe_connects_to_the_address_of_the_server(model_path: Path, host: str, asked: str) -> None:
    if ":" in host and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    with serving(model_path, "--metrics-host", host) as service:
        status, said, _ = probe(str(service.process.pid))
        assert (status, said.rpartition(":")[0].rpartition(":")[0]) == (0, asked)


def test_the_probe_fails_with_the_reason_until_a_server_serves(server: ServiceProcess) -> None:
    no_server = "no server: expected a process of this user that serves /healthz\n"
    assert probe(str(os.getpid())) == (1, "", no_server)
    assert probe("localhost:50051") == (2, "", "usage: healthcheck.py [PID ...]\n")
    registry = CollectorRegistry()
    closed = MetricsServer(registry, is_serving=lambda: False, health_text=lambda: "for a reason")
    closed.start("127.0.0.1", 0)
    try:
        asked = f"127.0.0.1:{closed.port}: NOT_SERVING for a reason\n"
        assert probe(str(os.getpid())) == (1, "", asked)
        status, said, why = probe(str(os.getpid()), str(server.process.pid))
        assert (status, why) == (1, asked), "a serving process does not hide one that does not serve"
        assert "SERVING" in said
    finally:
        closed.stop()
    assert probe(str(os.getpid())) == (1, "", no_server)


def test_the_probe_fails_without_a_server_or_with_another_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        published = publish_address("127.0.0.1", port)
        assert published is not None

        def answer() -> None:
            peer = listener.accept()[0]
            with peer:
                peer.recv(100)
                peer.sendall(b"220 mail.example ESMTP\r\n")

        answering = threading.Thread(target=answer)
        answering.start()
        status, _, why = probe(str(os.getpid()))
        answering.join()
    assert (status, why) == (1, f"127.0.0.1:{port}: not an HTTP response: '220 mail.example ESMTP'\n")
    status, _, why = probe(str(os.getpid()))
    os.close(published)
    assert (status, why) == (1, f"127.0.0.1:{port}: [Errno 111] Connection refused\n")


def test_the_probe_imports_only_cheap_modules() -> None:
    command = [sys.executable, "-X", "importtime", "-I", "-S", ROOT / "service/healthcheck.py", str(os.getpid())]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    imported = {line.rpartition("|")[2].strip() for line in said.splitlines() if line.startswith("import time:")}
    assert "posix" in imported
    assert not imported & {"socket", "enum", "re", "typing", "pathlib", "urllib", "site", "grpc", "service"}


def test_the_image_has_byte_code_of_the_standard_library() -> None:
    assert re.search(r"python -m compileall [^&]*/usr/local/lib/python\$\{PYTHON\}", stages()["runtime"])


def test_the_names_in_the_smoke_test_are_the_servers_own(server: ServiceProcess) -> None:
    families = {family.name for family in text_string_to_metric_families(server.get("/metrics"))}
    assert "digits_predictions" in families
    assert "digits_predictions_total" in (ROOT / "scripts/smoke.py").read_text()


def smoke(*arguments: str) -> str:
    command = [sys.executable, "scripts/smoke.py", *arguments]
    environment = {**os.environ, **DEAD_PROXIES}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr


def test_the_smoke_test_bypasses_proxies_for_loopback_and_names_the_proxy_that_it_uses(server: ServiceProcess) -> None:
    answered = smoke(server.address, server.metrics_url.removesuffix("/metrics"))
    assert answered.endswith("no answer of Prometheus: HTTP Error 404: Not Found\n"), "the server answers directly"
    assert smoke(server.address, "http://far.example:9090").endswith(
        "Connection refused>, by way of the proxy 127.0.0.1:1 of http_proxy; no_proxy=far.example bypasses it\n"
    )


def test_the_options_in_the_image_are_the_services_own() -> None:
    named = set(re.findall(r"\bDIGITS_[A-Z_]+(?==)", stages()["service"]))
    assert named <= {f"DIGITS_{name.upper()}" for name in Settings.model_fields}
    assert {"DIGITS_HOST", "DIGITS_PORT", "DIGITS_MODEL"} <= named


def test_the_service_starts_with_the_settings_of_compose(model_path: Path) -> None:
    fixed = {
        name: default(value)
        for name, value in compose(BASE)["services"]["service"]["environment"].items()
        if value is not None
    }
    ports = {"DIGITS_PORT": "0", "DIGITS_HTTP_PORT": "0", "DIGITS_METRICS_PORT": "0", "DIGITS_MODEL": str(model_path)}
    hosts = {"DIGITS_HOST": "127.0.0.1", "DIGITS_METRICS_HOST": "127.0.0.1"}
    service = launch(env={**fixed, **ports, **hosts, "DIGITS_LOG_FORMAT": "json"})
    try:
        service.wait_for("serving")
    finally:
        service.close()
