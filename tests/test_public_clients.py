"""Public clients, unchanged, each in a separate process and environment.

The environments are created on first use below .venv/clients and kept. A test is skipped if its environment cannot be
created, without a network or without Go.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from conftest import ANSWERS_WITHIN, ROOT, ServiceProcess, serving
from environments import CLIENTS, install, python_with, requirements
from http_requests import http_address

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROGRAMS = ROOT / "tests" / "public_clients"

pytestmark = pytest.mark.slow

REQUIREMENTS = requirements("export")
"""The requirements of `pip install digitserve`."""

BOUNDS = re.findall(r"^(\S+)>=(.+),<(.+)$", "\n".join(REQUIREMENTS), re.MULTILINE)
"""Package, its oldest allowed version, and its first forbidden version."""


def go_program(module: str) -> Path:
    """Build a public Go program."""
    go = shutil.which("go")
    if go is None:
        pytest.skip(f"no Go here to build {module} with")
    program = CLIENTS / "go" / module.split("@", maxsplit=1)[0].rsplit("/", 1)[1]
    if not program.exists():
        environment = {**os.environ, "GOBIN": str(program.parent), "GOFLAGS": "-mod=mod"}
        built = subprocess.run(
            [go, "install", module], env=environment, capture_output=True, text=True, check=False, timeout=1200
        )
        if built.returncode:
            pytest.skip(f"{module} cannot be built: {built.stderr.strip().splitlines()[-1]}")
    return program


@pytest.fixture(scope="module")
def pixels(digits: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10 digits, one of each, in numpy's format."""
    path = tmp_path_factory.mktemp("pixels") / "pixels.npy"
    np.save(path, digits[::10])
    return path


@pytest.fixture(scope="module")
def answers(digits: np.ndarray, server: ServiceProcess) -> list[int]:
    """The digits that digits.v1 returns for them."""
    from digitserve_client import DigitsClient  # noqa: PLC0415 (its stubs conflict with others)

    with DigitsClient(server.address) as client:
        return [int(digit) for digit in client.predict(digits[::10]).digits]


def run(*command: str | Path, status: int = 0, **options: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=ANSWERS_WITHIN, **options)
    assert done.returncode == status, done.stderr
    return done.stdout + (done.stderr if status else "")


@pytest.fixture(scope="module")
def triton(server: ServiceProcess, pixels: Path) -> dict[str, Any]:
    python = python_with("triton", "tritonclient[grpc]==2.73.0")
    found: dict[str, Any] = json.loads(run(python, PROGRAMS / "triton.py", server.address, pixels))
    return found


def test_tritonclient_finds_server_and_model_ready(triton: dict[str, Any]) -> None:
    assert triton["live"] is triton["ready"] is triton["model_ready"] is triton["model_ready_version"] is True
    assert triton["server_metadata"]["name"] == "digitserve"
    assert triton["index"] == {"models": [{"name": "digits", "version": "1", "state": "READY"}]}


def test_tritonclient_reads_metadata_and_config_with_its_own_stubs(triton: dict[str, Any]) -> None:
    assert triton["metadata"]["inputs"] == [{"name": "pixels", "datatype": "UINT8", "shape": ["-1", "784"]}]
    config = triton["config"]["config"]
    assert (config["name"], config["max_batch_size"], config["backend"]) == ("digits", 1024, "onnxruntime")
    assert config["input"] == [{"name": "pixels", "data_type": "TYPE_UINT8", "dims": ["784"]}]
    assert {output["name"] for output in config["output"]} == {"activations", "digit", "layer1", "layer2"}


def test_tritonclient_infers_in_every_way_it_has(triton: dict[str, Any], answers: list[int]) -> None:
    for way in ("infer", "infer_fp32", "infer_compressed", "aio"):
        assert triton[way] == answers, way
    assert triton["infer_timeout"] == answers[:1]
    assert triton["async"] == answers[:2]
    assert (triton["id"], triton["activations_shape"]) == ("r1", [10, 10])
    assert triton["all_outputs"] == ["activations", "digit", "layer1", "layer2"]


@pytest.mark.parametrize("by", ["port", "socket"])
def test_tritonclients_example_of_shared_memory_works(
    model_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    pixels: Path,
    answers: list[int],
    by: str,
) -> None:
    python = python_with("triton", "tritonclient[grpc]==2.73.0")
    socket = f"unix:{tmp_path_factory.mktemp('s') / 'digits.sock'}"
    with serving(model_path, "--shared-memory", "--listen", socket) as service:
        address = service.address if by == "port" else socket
        found = json.loads(run(python, PROGRAMS / "triton_shared_memory.py", address, pixels))
    assert found["digits"] == found["argmax"] == answers
    assert (found["regions"], found["left"], found["mapped"]) == (["input_data", "output_data"], {}, 0)


def test_tritonclient_streams_with_an_error_in_between(triton: dict[str, Any], answers: list[int]) -> None:
    refused = "inputs: are 1 ('picture'); expected one, 'pixels'"
    assert triton["stream"] == [*([str(i), answers[i]] for i in range(5)), refused, ["5", answers[5]]]


def test_tritonclient_finds_the_final_response_to_each_request_of_a_stream(triton: dict[str, Any]) -> None:
    assert triton["final"] == ["f", True]


def test_tritonclient_has_the_status_of_an_error_that_ends_its_stream(triton: dict[str, Any]) -> None:
    assert triton["stream_status"] == [
        "StatusCode.INVALID_ARGUMENT",
        "inputs: are 1 ('picture'); expected one, 'pixels'",
    ]


def test_tritonclient_raises_its_exception_with_our_message(triton: dict[str, Any]) -> None:
    refused = triton["refused"]
    assert refused["name"] == ["StatusCode.NOT_FOUND", "model_name: there is no model 'mnist'; 'digits' serves"]
    assert refused["version"] == ["StatusCode.NOT_FOUND", "model_version: there is no version '9'; '1' serves"]
    invalid = {
        "input": "inputs: are 1 ('picture'); expected one, 'pixels'",
        "shape": "pixels: has shape [10, 28, 28]; expected [n, 784], n from 1 to 1024",
        "type": "pixels: has datatype 'INT32'; expected 'UINT8' or 'FP32'",
        "output": "outputs: has 'softmax'; expected some of activations, digit, layer1, layer2",
    }
    for mistake, sentence in invalid.items():
        assert refused[mistake] == ["StatusCode.INVALID_ARGUMENT", sentence]
    for rpc in ("load", "unload", "shared_memory", "cuda_shared_memory", "trace", "log"):
        assert refused[rpc][0] == "StatusCode.UNIMPLEMENTED"
        assert refused[rpc][1]


def test_tritonclient_reads_statistics(triton: dict[str, Any]) -> None:
    [stats] = triton["statistics"]["model_stats"]
    assert stats["name"] == "digits"
    assert int(stats["inference_count"]) >= 40
    assert int(stats["inference_stats"]["success"]["count"]) >= 12
    assert int(stats["inference_stats"]["fail"]["count"]) >= 5


def test_kserves_client_infers_typed_and_raw(server: ServiceProcess, pixels: Path, answers: list[int]) -> None:
    python = python_with("kserve", "kserve==0.21.0")
    found = json.loads(run(python, PROGRAMS / "kserve_client.py", server.address, pixels))
    assert found["live"] is found["ready"] is found["model_ready"] is True
    for way in ("raw", "typed", "raw_fp32", "typed_fp32"):
        assert found[way] == answers, way
    assert found["id"] == "k1"
    assert "pixels: has shape [10, 28, 28]; expected [n, 784], n from 1 to 1024" in found["refused"]


@pytest.fixture(scope="module")
def http_server(model_path: Path, transport: str) -> Iterator[ServiceProcess]:  # noqa: ARG001 (sets the environment)
    with serving(model_path, "--http-port", "0") as service:
        yield service


def test_tritonclients_http_client_infers_in_every_way_it_has(
    http_server: ServiceProcess, pixels: Path, answers: list[int]
) -> None:
    python = python_with("triton-http", "tritonclient[http]==2.73.0")
    found = json.loads(run(python, PROGRAMS / "triton_http.py", http_address(http_server), pixels))
    assert found["live"] is found["ready"] is found["model_ready"] is found["model_ready_version"] is True
    assert found["unknown_model_ready"] is False
    assert found["server_metadata"]["name"] == "digitserve"
    assert found["metadata"]["inputs"] == [{"name": "pixels", "datatype": "UINT8", "shape": [-1, 784]}]
    assert (found["config"]["name"], found["config"]["max_batch_size"]) == ("digits", 1024)
    assert [(model["name"], model["state"]) for model in found["index"]] == [("digits", "READY")]
    assert found["digits"] == dict.fromkeys(found["digits"], answers)
    assert (found["id"], found["activations_shape"]) == ("r1", [10, 10])
    assert found["all_outputs"] == ["activations", "digit", "layer1", "layer2"]
    [statistics] = found["statistics"]["model_stats"]
    assert statistics["name"] == "digits"
    assert statistics["inference_stats"]["fail"]["count"] >= 6


def test_tritonclients_http_client_shows_each_error(http_server: ServiceProcess, pixels: Path) -> None:
    python = python_with("triton-http", "tritonclient[http]==2.73.0")
    refused = json.loads(run(python, PROGRAMS / "triton_http.py", http_address(http_server), pixels))["refused"]
    assert refused["name"] == ["404", "model_name: there is no model 'mnist'; 'digits' serves"]
    assert refused["version"] == ["404", "model_version: there is no version '9'; '1' serves"]
    assert refused["input"] == ["400", "inputs: are 1 ('picture'); expected one, 'pixels'"]
    assert refused["shape"] == ["400", "pixels: has shape [10, 28, 28]; expected [n, 784], n from 1 to 1024"]
    assert refused["type"] == ["400", "pixels: has datatype 'INT32'; expected 'UINT8' or 'FP32'"]
    assert refused["output"][0] == "400"
    assert refused["load"][0] == refused["unload"][0] == "501"
    assert refused["shared_memory"][0] == "404"


def test_kserves_http_client_infers_json_and_binary(
    http_server: ServiceProcess, pixels: Path, answers: list[int]
) -> None:
    python = python_with("kserve", "kserve==0.21.0")
    found = json.loads(run(python, PROGRAMS / "kserve_http.py", f"http://{http_address(http_server)}", pixels))
    assert found["live"] is found["ready"] is found["model_ready"] is True
    for form in ("binary", "json", "binary fp32", "json fp32"):
        assert found[form] == answers, form
    assert "pixels: has shape [10, 28, 28]; expected [n, 784], n from 1 to 1024" in found["refused"]


# Packages installed with the client, the module that imports them, and pip's requirements.
BESIDE: dict[str, tuple[list[str], list[str]]] = {
    "oldest": ([], [f"{name}=={oldest}" for name, oldest, _ in BOUNDS]),
    "newest": ([], []),
    "tritonclient": (["tritonclient.grpc"], ["tritonclient[grpc]==2.73.0"]),
    "kserve": (["kserve"], ["kserve==0.21.0"]),
    "mlserver": (["mlserver", "mlserver.grpc.dataplane_pb2_grpc"], ["mlserver==1.7.1"]),
}


@pytest.mark.parametrize("name", BESIDE)
def test_the_client_reads_digits_with_other_packages_installed(
    name: str, server: ServiceProcess, pixels: Path, answers: list[int], tmp_path: Path, wheels: dict[str, Path]
) -> None:
    modules, packages = BESIDE[name]
    needed = REQUIREMENTS if name in ("oldest", "newest") else requirements("client alone")  # both use one environment
    python = python_with(f"beside-{name}", *needed, *packages)
    install(python, wheels["digitserve_client"])
    found = json.loads(run(python, PROGRAMS / "with_other_packages.py", server.address, pixels, *modules, cwd=tmp_path))
    assert found["digits"] == answers
    for package, oldest, next_major in BOUNDS:
        installed = found["versions"][package]
        assert numbers(oldest) <= numbers(installed) < numbers(next_major)
        if name == "oldest":
            assert installed == oldest
    # The other packages exclude the newest protobuf; without them, pip installs it.
    assert (numbers(found["versions"]["protobuf"])[0] == 7) == (name == "newest")


@pytest.mark.parametrize("name", ["oldest", "newest"])
def test_the_server_serves_with_the_packages_at_both_ends_of_their_bounds(
    name: str, model_path: Path, pixels: Path, answers: list[int], tmp_path: Path, wheels: dict[str, Path]
) -> None:
    python = python_with(f"beside-{name}", *REQUIREMENTS, *BESIDE[name][1])
    install(python, *wheels.values())
    ports = ("--port", "0", "--metrics-port", "0")
    command = [python, "-m", "service", "--log-format", "json", "--model", model_path, "--transport", "grpcio", *ports]
    service = ServiceProcess(
        subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True),
    )
    try:
        service.wait_for("serving")
        found = json.loads(run(python, PROGRAMS / "with_other_packages.py", service.address, pixels, cwd=tmp_path))
        assert found["digits"] == answers
        assert service.stop() == 0
    finally:
        service.close()


def numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def test_grpcurl_without_a_proto_lists_both_services_and_predicts(
    server: ServiceProcess, digits: np.ndarray, answers: list[int]
) -> None:
    grpcurl = go_program("github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3")
    listed = run(grpcurl, "-plaintext", server.address, "list").split()
    assert {"digits.v1.DigitService", "inference.GRPCInferenceService", "grpc.health.v1.Health"} <= set(listed)
    pixels = base64.b64encode(digits[30].tobytes()).decode()
    request = json.dumps({"pixels": pixels})
    reply = run(grpcurl, "-plaintext", "-d", request, server.address, "digits.v1.DigitService/Predict")
    assert json.loads(reply)["digits"] == [answers[3]]
    request = json.dumps(
        {
            "model_name": "digits",
            "inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [1, 784]}],
            "outputs": [{"name": "digit"}],
            "raw_input_contents": [pixels],
        }
    )
    reply = run(grpcurl, "-plaintext", "-d", request, server.address, "inference.GRPCInferenceService/ModelInfer")
    raw = base64.b64decode(json.loads(reply)["raw_output_contents"][0])
    assert int.from_bytes(raw, "little") == answers[3]


@pytest.mark.parametrize("service", ["", "digits.v1.DigitService", "inference.GRPCInferenceService"])
def test_grpc_health_probe_finds_each_service_healthy(server: ServiceProcess, service: str) -> None:
    probe = go_program("github.com/grpc-ecosystem/grpc-health-probe@v0.4.61")
    command = [probe, f"-addr={server.address}", f"-service={service}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=ANSWERS_WITHIN)
    assert done.returncode == 0, done.stderr
    assert "SERVING" in done.stdout + done.stderr
