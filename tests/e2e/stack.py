"""The claims of the compose files, on a real Docker engine. `make e2e` runs them in this order, for some minutes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from typing import TYPE_CHECKING

import grpc
import pytest

sys.path.insert(0, __file__.rpartition("/")[0])

from engine import (
    ADDRESS,
    FAULTS,
    HTTP_PORT,
    PLAY_PORT,
    PROJECT,
    ROOT,
    SCALE,
    TLS,
    Faults,
    Load,
    Stack,
    docker,
    firing,
    kill_with_calls,
    predict_once,
    query,
    say,
    until,
)

if TYPE_CHECKING:
    from pathlib import Path

pytest_plugins = ("docker_stack",)

OK_BY_REPLICA = 'sum by (instance) (grpc_server_handled_total{job="digitserve", grpc_method="Predict", grpc_code="OK"})'
UP = 'up{job="digitserve"} == 1'
SCRAPED = 6  # seconds: longer than from one scrape to the next


def curl(path: str, *options: str, url: str = f"http://localhost:{HTTP_PORT}") -> str:
    """Send a request by curl; return the body of a successful reply."""
    command = ["curl", "--silent", "--show-error", "--fail-with-body", "--noproxy", "*", *options, f"{url}{path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.usefixtures("stack")
def test_the_image_is_small_and_has_its_labels() -> None:
    rows = docker("history", "--format", "{{.Size}}\t{{.CreatedBy}}", "digitserve:e2e").splitlines()
    for row in rows:
        size, made_by = row.split("\t")
        if size != "0B":
            say(f"{size:>8}  {re.sub(r' +', ' ', made_by)[:90]}")
    size = int(docker("inspect", "--format", "{{.Size}}", "digitserve:e2e"))
    tools = int(docker("inspect", "--format", "{{.Size}}", "digitserve-tools:e2e"))
    say(f"{size / 1e6:8.0f} MB in all; the tools' image {tools / 1e6:.0f} MB")
    assert size < 355e6
    assert "org.opencontainers.image.licenses:Apache-2.0" in docker(
        "inspect", "--format", "{{.Config.Labels}}", "digitserve:e2e"
    )


def test_up_answers_a_digit_from_outside_in_the_order_of_its_parts(stack: Stack, images: list[bytes]) -> None:
    began = time.monotonic()
    with subprocess.Popen(
        ["docker", "compose", "up", "--detach", "--wait"],
        cwd=ROOT,
        env=stack.env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as up:
        reply = until("an answer", lambda: predict_once(images[0]))
        say(f"docker compose up to the first answer: {time.monotonic() - began:.1f} s")
        assert up.wait(60) == 0
        say(f"docker compose up --wait to all healthy: {time.monotonic() - began:.1f} s")
    assert list(reply.digits) == [0]
    assert reply.model_version == "1"
    (export,), (service,), (prometheus,) = (stack.containers(s) for s in ("export", "service", "prometheus"))
    assert export["State"]["ExitCode"] == 0
    assert export["State"]["FinishedAt"] < service["State"]["StartedAt"]
    assert service["State"]["Health"]["Status"] == prometheus["State"]["Health"]["Status"] == "healthy"


def test_a_hundred_digits_are_read_and_counted_by_prometheus(stack: Stack) -> None:
    """The smoke test reads the ports, which differ from the defaults here, from compose."""
    command = [sys.executable, "scripts/smoke.py"]
    done = subprocess.run(command, cwd=ROOT, env=stack.env, capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        say(line)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.usefixtures("stack")
def test_curl_reads_a_digit_over_http(images: list[bytes]) -> None:
    assert json.loads(curl("/v2/health/ready", "--request", "GET")) == {"ready": True}
    assert json.loads(curl("/v1/predict", "--json", json.dumps([list(images[0])])))["digits"] == [0]
    tensor = {"name": "pixels", "datatype": "UINT8", "shape": [1, 784], "data": list(images[0])}
    asked = json.dumps({"inputs": [tensor], "outputs": [{"name": "digit"}]})
    (output,) = json.loads(curl("/v2/models/digits/infer", "--json", asked))["outputs"]
    assert output["data"] == [0]


def test_a_proxy_that_docker_sets_in_every_container_is_bypassed(stack: Stack, tmp_path: Path) -> None:
    proxy = "http://127.0.0.1:1"
    proxies = {"default": {"httpProxy": proxy, "httpsProxy": proxy, "allProxy": proxy}}
    (tmp_path / "config.json").write_text(json.dumps({"proxies": proxies}))
    stack.settings = {"DOCKER_CONFIG": str(tmp_path)}
    try:
        stack.up("--force-recreate")
        (service,) = stack.containers("service")
        assert f"HTTP_PROXY={proxy}" in service["Config"]["Env"]
        said = stack.compose("run", "--rm", "client", "demo", "--address", "service:50051")
        assert "10 handwritten digits" in said
        until("Prometheus has the service", lambda: query(UP))
    finally:
        stack.settings = {}
        stack.up("--force-recreate")


def test_the_client_in_a_container_reads_digits_too(stack: Stack) -> None:
    said = stack.compose(
        *("run", "--rm", "client", "predict", "samples/digits-100-images-idx3-ubyte"),
        *("--limit", "1", "--json", "--address", "service:50051"),
    )
    assert '"digit": 0' in said


def test_the_service_runs_without_rights_on_a_read_only_file_system(stack: Stack) -> None:
    look = r"""
import os, re
status = open("/proc/1/status").read()
print(os.getuid(), *re.findall(r"^(?:Cap(?:Prm|Eff|Bnd)|NoNewPrivs):\s+(\S+)", status, re.M))
for path in ("/app/x", "/tmp/x", "/model/x"):
    try: open(path, "w"); print(path, "can be written")
    except OSError as e: print(path, e.strerror)
"""
    said = stack.in_container("service", "python", "-c", look).splitlines()
    say("; ".join(said))
    nothing = "0" * 16
    assert said[0] == f"10001 {nothing} {nothing} {nothing} 1"
    assert len(said) == 4
    assert all(line.endswith("Read-only file system") for line in said[1:])


def test_a_health_check_costs_a_hundredth_of_a_second(stack: Stack) -> None:
    measure = (
        "import resource, subprocess\n"
        "for _ in range(10): subprocess.run(PROBE, check=True, stdout=subprocess.DEVNULL)\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print((used.ru_utime + used.ru_stime) / 10)"
    )
    (service,) = stack.containers("service")
    probe = service["Config"]["Healthcheck"]["Test"][1:]
    seconds = float(stack.in_container("service", "python", "-c", f"PROBE = {probe!r}\n{measure}"))
    say(f"a health check takes {1000 * seconds:.0f} ms of CPU")
    assert seconds < 0.1, "CPU time, independent of other work on the machine"


@pytest.mark.usefixtures("stack")
def test_the_published_image_answers_without_volume_or_setting(images: list[bytes]) -> None:
    image, began = "digitserve-published:e2e", time.monotonic()
    docker("build", "--file", "service/Dockerfile", "--target", "published", "--tag", image, ".")
    built = time.monotonic()
    container = docker("run", "--detach", "--publish", "127.0.0.1::50051", image).strip()
    try:
        address = docker("port", container, "50051").strip()
        answer = until("it answers", lambda: predict_once(images[0], address=address))
        say(f"published: built from the cache in {built - began:.0f} s, answers {time.monotonic() - built:.1f} s after")
        assert list(answer.digits) == [0]
    finally:
        docker("rm", "--force", container)


@pytest.mark.usefixtures("stack")
def test_a_container_whose_flags_choose_other_ports_is_healthy() -> None:
    # Variables of the image and of the engine's user name other ports. The check follows the server.
    hardened = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges:true")
    volume = ("--volume", f"{PROJECT}_model:/model:ro", "--env", "DIGITS_MODEL=/model/sigmoid-1.onnx")
    flags = ("service", "--port", "6000", "--metrics-port", "7000", "--metrics-host", "127.0.0.1")
    proxies = [f"--env={name}=http://127.0.0.1:1" for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "grpc_proxy")]
    container = docker("run", "--detach", *hardened, *volume, *proxies, "digitserve:e2e", *flags).strip()
    try:
        inspect = ("inspect", "--format", "{{.State.Health.Status}}", container)
        until("it is healthy", lambda: docker(*inspect).strip() == "healthy")
    finally:
        docker("rm", "--force", container)


def test_the_logs_are_only_json(stack: Stack) -> None:
    (service,) = stack.containers("service")
    done = subprocess.run(["docker", "logs", service["Id"]], capture_output=True, text=True, check=True)
    lines = (done.stdout + done.stderr).splitlines()
    assert lines
    assert [line for line in lines if not line.startswith("{")] == []


def test_only_grpc_http_and_prometheus_are_published_and_on_loopback_alone(stack: Stack) -> None:
    published = {
        (container["Config"]["Labels"]["com.docker.compose.service"], port, binding["HostIp"])
        for service in ("service", "prometheus")
        for container in stack.containers(service)
        for port, bindings in container["NetworkSettings"]["Ports"].items()
        for binding in bindings or []
    }
    assert published == {
        ("service", "50051/tcp", "127.0.0.1"),
        ("service", "8000/tcp", "127.0.0.1"),
        ("prometheus", "9090/tcp", "127.0.0.1"),
    }


FLOODS = ["settings", "window-update", "priority", "rapid-reset"]


def flooded(stack: Stack, images: list[bytes], kind: str) -> None:
    """Flood for 5 s while clients send calls. Each call is answered, and no replica restarts."""
    before = [container["State"]["Pid"] for container in stack.containers("service")]
    flood = [sys.executable, ROOT / "tests/e2e/flood.py", kind, "5", ADDRESS]
    with Load(images, callers=4).running() as load:
        done = subprocess.run(flood, capture_output=True, text=True, check=True, timeout=120)
    say(f"{kind}: {done.stdout.strip()}; other clients: {load}")
    assert set(load.codes) == {"OK"}, load.details
    assert [container["State"]["Pid"] for container in stack.containers("service")] == before


def test_the_image_uses_the_native_transport_by_default(stack: Stack) -> None:
    (service,) = stack.containers("service")
    assert '"transport": "native"' in docker("logs", service["Id"], both=True)


@pytest.mark.parametrize("kind", FLOODS)
def test_a_flood_of_frames_does_not_affect_other_clients(stack: Stack, images: list[bytes], kind: str) -> None:
    flooded(stack, images, kind)


def test_an_alert_fires_when_the_service_is_stopped_and_clears_after(stack: Stack) -> None:
    # By name: the floods before this test cancel thousands of calls, so another alert fires for 10 minutes.
    alert = "DigitserveNotServing"
    until(f"{alert} is silent", lambda: alert not in firing(), within=120)
    began = time.monotonic()
    stack.compose("stop", "service")
    exit_code = stack.containers("service")[0]["State"]["ExitCode"]
    say(f"stopped in {time.monotonic() - began:.1f} s, by SIGTERM: exit {exit_code}")
    assert exit_code == 0
    until(f"{alert} fires", lambda: alert in firing(), within=240)
    say(f"{alert} fired after {time.monotonic() - began:.0f} s")
    began = time.monotonic()
    stack.up()
    until(f"{alert} clears", lambda: alert not in firing(), within=240)
    say(f"cleared {time.monotonic() - began:.0f} s after the start")


def test_more_replicas_answer_more_and_each_is_in_prometheus(stack: Stack, images: list[bytes], tmp_path: Path) -> None:
    # A replica runs one image in 200 ms, so that the replicas limit the rate and not the machine's cores.
    faults = Faults(tmp_path)
    faults.begin("slow")
    one_by_one = {"DIGITS_MAX_BATCH_SIZE": "1", "DIGITS_INLINE_IMAGES": "0"}
    stack.files, stack.settings = [*SCALE, FAULTS], {"REPLICAS": "1", "E2E_FAULTS": str(tmp_path), **one_by_one}
    stack.up("--remove-orphans")
    rates = []
    for replicas in (1, 2, 3):
        stack.up("--no-recreate", "--scale", f"service={replicas}")
        until(f"Prometheus has {replicas}", lambda n=replicas: len(query('up{job="digitserve"} == 1')) == n)
        with Load(images, callers=24).running() as load:
            time.sleep(3)  # Envoy detects the new replica within 2 seconds
            before, began = load.codes["OK"], time.monotonic()
            time.sleep(8)
            rates.append((load.codes["OK"] - before) / (time.monotonic() - began))
        assert set(load.codes) == {"OK"}, load.details
        say(f"{replicas} replicas of 200 ms: {rates[-1]:4.1f} calls/s, {rates[-1] / rates[0]:.2f} times one")
    assert rates[2] > 2 * rates[0]


def test_calls_are_spread_evenly_over_the_replicas(stack: Stack, images: list[bytes]) -> None:
    stack.files, stack.settings = SCALE, {"SERVICE_CPUS": "0.3", "REPLICAS": "3", "DIGITS_TRANSPORT": "grpcio"}
    stack.up()
    until("Prometheus has each", lambda: len(query(UP)) == 3)
    time.sleep(SCRAPED)
    before = query(OK_BY_REPLICA)
    with Load(images, callers=24).running() as load:
        time.sleep(10)
    time.sleep(SCRAPED)
    counts = {instance: value - before.get(instance, 0) for instance, value in query(OK_BY_REPLICA).items()}
    live = query('up{job="digitserve"} == 1')
    shares = sorted(counts[instance] / load.codes["OK"] for instance in live)
    say(f"{load.codes['OK']} calls over one connection: " + ", ".join(f"{share:.1%}" for share in shares))
    assert len(shares) == 3
    assert sum(shares) == pytest.approx(1, abs=0.01)
    assert shares[0] > 0.2


@pytest.mark.usefixtures("stack")
def test_envoy_spreads_http_requests_over_the_replicas(images: list[bytes]) -> None:
    answered = 'sum by (instance) (http_server_request_duration_seconds_count{http_route="/v1/predict"})'
    before, body = query(answered), json.dumps([list(images[0])])
    for _ in range(60):
        assert json.loads(curl("/v1/predict", "--json", body))["digits"] == [0]
    counts: dict[str, float] = {}

    def counted() -> bool:
        counts.update({instance: value - before.get(instance, 0) for instance, value in query(answered).items()})
        return sum(counts.values()) == 60

    until("Prometheus counted the requests", counted)
    say("60 requests of curl's by replica: " + ", ".join(f"{count:.0f}" for count in sorted(counts.values())))
    assert len([count for count in counts.values() if count]) == 3


def test_the_page_shows_the_answers_of_replicas_behind_envoy(stack: Stack, images: list[bytes]) -> None:
    page_answers(stack, images[0])


def page_answers(stack: Stack, image: bytes) -> None:
    """Check the profile `play`: the page, and a digit that it sends."""
    page = f"http://localhost:{PLAY_PORT}"
    stack.compose("--profile", "play", "up", "--detach", "play")
    try:
        assert "<title>" in until("the page is there", lambda: get(page))
        (call,) = json.loads(until("it has an answer", lambda: get(f"{page}/predict", image)))
        assert (call["digit"], len(call["layer1"])) == (0, 16)
    finally:
        stack.compose("--profile", "play", "rm", "--stop", "--force", "play")


def get(url: str, body: bytes | None = None) -> str:
    with urllib.request.urlopen(url, body, timeout=10) as reply:
        return str(reply.read().decode())


@pytest.mark.parametrize("kind", FLOODS)
def test_a_flood_of_envoy_does_not_affect_other_clients(stack: Stack, images: list[bytes], kind: str) -> None:
    flooded(stack, images, kind)


def test_a_replica_killed_under_load_loses_no_call(stack: Stack, images: list[bytes]) -> None:
    stack.settings = {"SERVICE_CPUS": "0.5", "REPLICAS": "3"}
    stack.up()
    victim = stack.containers("service")[0]
    with Load(images, callers=24).running() as load:
        time.sleep(3)
        kill_with_calls(victim)
        time.sleep(5)
    say(f"kill -9 of one of three: {load}")
    assert load.codes["OK"] > 100
    assert set(load.codes) == {"OK"}, load.details
    until("it was started again", lambda: stack.containers("service")[0]["RestartCount"] == 1)
    until("it is healthy", lambda: stack.containers("service")[0]["State"]["Health"]["Status"] == "healthy")
    retries = 'sum(envoy_cluster_upstream_rq_retry{envoy_cluster_name="replicas"})'
    for name in ("grpc_0", "membership_healthy", "membership_total", "upstream_rq_total"):
        series = f'envoy_cluster_{name}{{envoy_cluster_name="replicas"}}'
        until(f"Prometheus has {name}, which the dashboard reads", lambda series=series: query(series))
    until("Prometheus has counted repeated calls", lambda: [n for n in query(retries).values() if n > 0])
    (repeated,) = query(retries).values()
    say(f"Envoy repeated {repeated:.0f} calls; the engine started the replica again, and it is healthy")


def test_a_new_setting_of_the_service_does_not_restart_prometheus(stack: Stack) -> None:
    (before,), old = stack.containers("prometheus"), {one["Id"] for one in stack.containers("service")}
    stack.settings = {**stack.settings, "DIGITS_LOG_LEVEL": "debug"}
    stack.up()
    (after,) = stack.containers("prometheus")
    assert not {one["Id"] for one in stack.containers("service")} & old
    assert (after["Id"], after["State"]["StartedAt"]) == (before["Id"], before["State"]["StartedAt"])


def test_a_new_model_reaches_every_replica_and_no_call_is_lost(stack: Stack, images: list[bytes]) -> None:
    old = {container["Id"] for container in stack.containers("service")}
    stack.settings["MODEL_VERSION"] = "2"
    with Load(images, callers=16).running() as load:
        time.sleep(2)
        began = time.monotonic()
        rolled = subprocess.run(
            [ROOT / "scripts/rolling-update"], cwd=ROOT, env=stack.env, capture_output=True, text=True, check=False
        )
        took = time.monotonic() - began
        time.sleep(2)
    assert rolled.returncode == 0, rolled.stderr
    say(f"rolled in {took:.0f} s: {load}, by version {dict(sorted(load.versions.items()))}")
    assert set(load.codes) == {"OK"}, load.details
    assert set(load.versions) == {"1", "2"}
    assert predict_once(images[0]).model_version == "2"
    new = {container["Id"] for container in stack.containers("service")}
    assert len(new) == 3
    assert not new & old
    stack.up()
    assert {container["Id"] for container in stack.containers("service")} == new, "compose up replaces no container"


def test_a_failed_or_interrupted_roll_keeps_the_old_replicas(stack: Stack, images: list[bytes]) -> None:
    old = {container["Id"] for container in stack.containers("service")}
    kept = dict(stack.settings)
    stack.settings = {**kept, "DIGITS_MAX_BATCH_SIZE": "0", "ROLL_TIMEOUT": "60"}  # no replica starts with that
    command, log = [ROOT / "scripts/rolling-update"], subprocess.DEVNULL
    with Load(images, callers=8).running() as load:
        failed = subprocess.run(command, cwd=ROOT, env=stack.env, capture_output=True, text=True, check=False)
        say(failed.stderr.strip().splitlines()[-1])
        assert failed.returncode == 1
        assert "roll: failed; removed the 3 new replicas, the 3 old ones continue to serve" in failed.stderr
        assert "--max-batch-size (or DIGITS_MAX_BATCH_SIZE) is '0'" in failed.stderr
        assert {container["Id"] for container in stack.containers("service")} == old

        stack.settings = {**kept, "MODEL_VERSION": "3"}
        with subprocess.Popen(command, cwd=ROOT, env=stack.env, stdout=log, stderr=log, start_new_session=True) as roll:
            until("new replicas are made", lambda: len(stack.containers("service")) > 3)
            os.killpg(roll.pid, signal.SIGINT)
            assert roll.wait(60) == 130
        assert {container["Id"] for container in stack.containers("service")} == old
    say(f"a roll that failed and one that was interrupted: {load}")
    assert set(load.codes) == {"OK"}, load.details
    stack.settings = kept
    subprocess.run(command, cwd=ROOT, env=stack.env, capture_output=True, check=True)
    assert len(stack.containers("service")) == 3


def test_a_roll_after_a_killed_one_is_rejected_with_the_containers_to_remove(stack: Stack) -> None:
    kept = dict(stack.settings)
    stack.settings = {**kept, "DIGITS_SHUTDOWN_GRACE": "9"}
    stack.up("--no-recreate", "--scale", "service=6")
    mixed = {container["Id"] for container in stack.containers("service")}
    roll = subprocess.run(
        [ROOT / "scripts/rolling-update"], cwd=ROOT, env=stack.env, capture_output=True, text=True, check=False
    )
    assert roll.returncode == 1
    say(roll.stderr.strip())
    assert "replicas of 2 images or configurations are up; expected 1" in roll.stderr
    assert roll.stderr.count("docker rm --force ") == 6
    assert {container["Id"] for container in stack.containers("service")} == mixed
    stack.settings = kept
    stack.up()
    assert len(stack.containers("service")) == 3


def test_tls_at_the_edge_only_answers_clients_with_tls(stack: Stack, images: list[bytes], tmp_path: Path) -> None:
    subprocess.run([ROOT / "scripts/certificate", tmp_path], cwd=ROOT, check=True, capture_output=True)
    tmp_path.chmod(0o755)
    stack.files, stack.settings = TLS, {**stack.settings, "TLS_DIRECTORY": str(tmp_path)}
    stack.up()
    trusted = grpc.ssl_channel_credentials((tmp_path / "tls.crt").read_bytes())
    assert list(predict_once(images[0], trusted).digits) == [0]
    assert predict_once(images[0], grpc.ssl_channel_credentials()) is None, "a certificate of an unknown authority"
    assert predict_once(images[0]) is None, "no TLS"
    page_answers(stack, images[0])
    edge = f"https://localhost:{HTTP_PORT}"
    row = json.dumps([list(images[0])])
    answer = curl("/v1/predict", "--cacert", str(tmp_path / "tls.crt"), "--json", row, url=edge)
    assert json.loads(answer)["digits"] == [0]
    smoke = [sys.executable, "scripts/smoke.py"]
    done = subprocess.run(smoke, cwd=ROOT, env=stack.env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 3, "gRPC, HTTP, Prometheus"
    say("TLS: answered; without it: not; make smoke follows")
