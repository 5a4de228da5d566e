"""Public tools for gRPC servers: grpcurl, grpc_health_probe, ghz and buf, on both transports."""

from __future__ import annotations

import base64
import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import toolchains
from certificates import Authority
from conftest import ROOT
from secure_server import TOKEN, SecureServer, serving_securely

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
    from conftest import ServiceProcess

PREDICT = "digits.v1.DigitService/Predict"
SERVICES = ["digits.v1.DigitService", "inference.GRPCInferenceService", "grpc.health.v1.Health"]
INVALID_ARGUMENT, UNAUTHENTICATED = 64 + 3, 64 + 16  # grpcurl's exit status for a code
RPC_FAILED, CONNECTION_FAILED = 3, 2  # grpc_health_probe's


@pytest.fixture(scope="module")
def secure(model_path: Path, transport: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureServer]:
    del transport  # sets the environment
    with serving_securely(model_path, tmp_path_factory.mktemp("secure")) as server:
        yield server


@pytest.fixture(scope="module")
def request_of(digits: np.ndarray) -> dict[int, str]:
    """A PredictRequest in JSON for each digit from 0 to 2."""
    return {digit: json.dumps({"pixels": base64.b64encode(digits[10 * digit]).decode()}) for digit in range(3)}


def run(*command: str | Path, status: int = 0, **options: Any) -> str:
    """Run a tool; return both its outputs."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=120, **options
    )
    assert done.returncode == status, done.stdout
    return done.stdout


def documents(text: str) -> list[Any]:
    """Parse consecutive JSON documents."""
    decoder, found = json.JSONDecoder(), []
    while text := text.lstrip():
        document, end = decoder.raw_decode(text)
        found.append(document)
        text = text[end:]
    return found


def test_grpcurl_describes_the_service_by_reflection(server: ServiceProcess) -> None:
    grpcurl = toolchains.go_tool("grpcurl")
    assert set(SERVICES) <= set(run(grpcurl, "-plaintext", server.address, "list").split())
    described = run(grpcurl, "-plaintext", server.address, "describe", "digits.v1.DigitService")
    assert "rpc PredictStream ( stream .digits.v1.PredictRequest )" in described


def test_grpcurl_streams_and_shows_the_request_id(server: ServiceProcess, request_of: dict[int, str]) -> None:
    grpcurl = toolchains.go_tool("grpcurl")
    stream = [grpcurl, "-plaintext", "-d", "@", server.address, "digits.v1.DigitService/PredictStream"]
    replies = documents(run(*stream, input="\n".join(request_of.values())))
    assert [reply["digits"] for reply in replies] == [[0], [1], [2]]
    verbose = [
        grpcurl,
        "-plaintext",
        "-v",
        "-H",
        "x-request-id: grpcurl-1",
        "-d",
        request_of[0],
        server.address,
        PREDICT,
    ]
    assert "x-request-id: grpcurl-1" in run(*verbose).partition("Response trailers received:")[2]


def test_grpcurl_prints_the_field_of_a_bad_request(server: ServiceProcess) -> None:
    bad = json.dumps({"pixels": base64.b64encode(b"abc").decode()})
    grpcurl = toolchains.go_tool("grpcurl")
    printed = run(grpcurl, "-plaintext", "-d", bad, server.address, PREDICT, status=INVALID_ARGUMENT)
    assert "Code: InvalidArgument" in printed
    assert "google.rpc.BadRequest" in printed
    assert '"field": "pixels"' in printed


def test_grpcurl_needs_the_token_over_tls(secure: SecureServer, request_of: dict[int, str]) -> None:
    grpcurl = toolchains.go_tool("grpcurl")

    def predict(token: str, status: int) -> str:
        options = ["-import-path", ROOT / "proto", "-proto", "digits/v1/digits.proto", "-cacert", secure.authority]
        header = f"authorization: Bearer {token}"
        return run(grpcurl, *options, "-H", header, "-d", request_of[2], secure.address, PREDICT, status=status)

    assert json.loads(predict(TOKEN, 0))["digits"] == [2]
    assert "Code: Unauthenticated" in predict("wrong", UNAUTHENTICATED)


@pytest.mark.parametrize("service", ["", *SERVICES[:2]])
def test_the_probe_finds_a_service_healthy(server: ServiceProcess, service: str) -> None:
    probe = toolchains.go_tool("grpc-health-probe")
    assert "status: SERVING" in run(probe, f"-addr={server.address}", f"-service={service}")
    assert "status: SERVING" in run(probe, f"-addr={server.address}", f"-service={service}", "-gzip")


def test_the_probe_fails_on_an_unknown_service(server: ServiceProcess) -> None:
    probe = toolchains.go_tool("grpc-health-probe")
    assert "NotFound" in run(probe, f"-addr={server.address}", "-service=digits.v2", status=RPC_FAILED)


def test_the_probe_verifies_the_certificate(secure: SecureServer, tmp_path: Path) -> None:
    probe = [toolchains.go_tool("grpc-health-probe"), f"-addr={secure.address}", "-tls"]
    assert "status: SERVING" in run(*probe, f"-tls-ca-cert={secure.authority}")
    other = Authority(tmp_path, name="another").certificate
    run(*probe, f"-tls-ca-cert={other}", status=CONNECTION_FAILED)


@pytest.mark.parametrize("call", ["Predict", "PredictStream"])
def test_ghz_gets_an_answer_to_every_call(server: ServiceProcess, request_of: dict[int, str], call: str) -> None:
    contract = ["--import-paths", ROOT / "proto", "--proto", ROOT / "proto" / "digits" / "v1" / "digits.proto"]
    assert ghz(server, call, request_of[1], *contract) == {"OK": 200}


def test_ghz_finds_the_method_by_reflection(server: ServiceProcess, request_of: dict[int, str]) -> None:
    assert ghz(server, "Predict", request_of[1]) == {"OK": 200}


def test_grpcurl_describes_a_method_by_reflection(server: ServiceProcess) -> None:
    described = run(toolchains.go_tool("grpcurl"), "-plaintext", server.address, "describe", PREDICT.replace("/", "."))
    assert "rpc Predict ( .digits.v1.PredictRequest )" in described


def ghz(server: ServiceProcess, call: str, data: str, *options: str | Path) -> dict[str, int]:
    """Send 200 calls, 8 concurrent ones over 2 connections; return the number of calls by status."""
    load = ["--insecure", "--total=200", "--concurrency=8", "--connections=2", "--format=json"]
    method = f"digits.v1.DigitService/{call}"
    command = [toolchains.go_tool("ghz"), *load, *options, "--call", method, "--data", data, server.address]
    distribution: dict[str, int] = json.loads(run(*command))["statusCodeDistribution"]
    return distribution


def test_buf_lints_the_contracts() -> None:
    assert run(toolchains.go_tool("buf"), "lint", "proto", cwd=ROOT) == ""


def test_buf_curl_predicts_and_streams_by_reflection(server: ServiceProcess, request_of: dict[int, str]) -> None:
    curl = [toolchains.go_tool("buf"), "curl", "--protocol=grpc", "--http2-prior-knowledge"]
    url = f"http://{server.address}"
    assert f"{SERVICES[0]}\n" in run(*curl, "--list-services", url)
    reply = json.loads(run(*curl, "--data", request_of[2], f"{url}/{PREDICT}"))
    assert reply["digits"] == [2]
    replies = run(*curl, "--data", "\n".join(request_of.values()), f"{url}/digits.v1.DigitService/PredictStream")
    assert [reply["digits"] for reply in documents(replies)] == [[0], [1], [2]]
