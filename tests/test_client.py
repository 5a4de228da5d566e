"""The client with the real server, and with a server that fails on demand."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from concurrent import futures
from datetime import datetime
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from conftest import ROOT, SAMPLES, launch, on_both_transports, serving
from digitserve_client import AsyncDigitsClient, DigitsClient, DigitsError, FieldViolation
from google.protobuf.duration_pb2 import Duration
from google.rpc import status_pb2
from google.rpc.error_details_pb2 import RetryInfo
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from PIL import Image

from digitserve import render
from export import checkpoint
from service.pb.digits.v1.digits_pb2 import PredictResponse
from service.pb.digits.v1.digits_pb2_grpc import DigitServiceServicer, add_DigitServiceServicer_to_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import ServiceProcess

IMAGES = SAMPLES / "digits-100-images-idx3-ubyte"


@pytest.fixture
def client(server: ServiceProcess) -> Iterator[DigitsClient]:
    with DigitsClient(server.address) as client:
        yield client


def reference(digits: np.ndarray) -> Any:
    return checkpoint.load(checkpoint.committed("sigmoid")).network.forward(digits)


def test_answers_are_arrays(client: DigitsClient, digits: np.ndarray) -> None:
    found = client.predict(digits, include_hidden_layers=True)
    expected = reference(digits)
    np.testing.assert_array_equal(found.digits, expected.digit)
    for name in ("activations", "layer1", "layer2"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=0, atol=1e-5)
    assert found.model_version == "1"
    assert len(found.request_id) == 32


def test_hidden_layers_are_only_returned_on_request(client: DigitsClient, digits: np.ndarray) -> None:
    found = client.predict(digits[:3])
    assert found.layer1 is None
    assert found.layer2 is None


@pytest.mark.parametrize("shape", [(100, 784), (100, 28, 28)])
def test_many_images_in_either_shape(client: DigitsClient, digits: np.ndarray, shape: tuple[int, ...]) -> None:
    assert client.predict(digits.reshape(shape)).digits.shape == (100,)


@pytest.mark.parametrize("shape", [(784,), (28, 28), (1, 784)])
def test_one_image_in_any_shape(client: DigitsClient, digits: np.ndarray, shape: tuple[int, ...]) -> None:
    assert client.predict(digits[7].reshape(shape)).digits.tolist() == [reference(digits[7:8]).digit[0]]


def test_bytes_are_images_too(client: DigitsClient, digits: np.ndarray) -> None:
    assert client.predict(digits[:2].tobytes()).digits.shape == (2,)


@pytest.mark.parametrize(
    ("pixels", "sentence"),
    [
        (np.full((1, 784), 255.0, np.float32), r"pixels holds 255.0; expected floats from 0, background, to 1, ink"),
        (np.zeros((2, 783), np.uint8), r"pixels is uint8\[2, 783\]; expected"),
        (np.zeros((0, 784), np.uint8), r"pixels is uint8\[0, 784\]; expected"),
        (np.zeros((2, 2, 784), np.uint8), r"pixels is uint8\[2, 2, 784\]; expected"),
        (b"", "pixels holds 0 bytes; expected n x 784"),
        (bytes(785), "pixels holds 785 bytes; expected n x 784"),
    ],
)
def test_invalid_pixels_are_rejected_before_sending(client: DigitsClient, pixels: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        client.predict(pixels)


def test_a_stream_is_answered_in_order(client: DigitsClient, digits: np.ndarray) -> None:
    batches = [digits[i : i + 1 + i % 4] for i in range(90)]
    found = list(client.predict_stream(batches))
    assert [answer.digits.tolist() for answer in found] == [reference(b).digit.tolist() for b in batches]


def test_a_malformed_batch_in_a_stream_is_named_after_the_answers_before_it(
    client: DigitsClient, digits: np.ndarray
) -> None:
    answers = client.predict_stream([digits[:1], digits[:2], digits[:3].astype(np.float32)])
    assert [len(next(answers).digits) for _ in range(2)] == [1, 2]
    with pytest.raises(ValueError, match=r"pixels\[0\] holds .*; expected floats"):
        next(answers)


def test_an_exception_of_the_batches_is_raised(client: DigitsClient, digits: np.ndarray) -> None:
    def batches() -> Iterator[np.ndarray]:
        yield digits[:1]
        raise KeyError("lost")

    answers = client.predict_stream(batches())
    assert len(next(answers).digits) == 1
    with pytest.raises(KeyError, match="lost"):
        next(answers)


async def test_an_exception_of_async_batches_is_raised(server: ServiceProcess, digits: np.ndarray) -> None:
    async def batches() -> Any:
        yield digits[:1]
        raise KeyError("lost")

    async with AsyncDigitsClient(server.address) as client:
        answers = client.predict_stream(batches())
        assert len((await anext(answers)).digits) == 1
        with pytest.raises(KeyError, match="lost"):
            await anext(answers)


def test_a_stream_can_request_a_version(client: DigitsClient, digits: np.ndarray) -> None:
    assert [a.model_version for a in client.predict_stream([digits[:1]], model_version="1")] == ["1"]
    with pytest.raises(DigitsError, match="NOT_FOUND"):
        list(client.predict_stream([digits[:1]], model_version="9"))


def test_a_stream_has_a_deadline(digits: np.ndarray) -> None:
    with unreliable(grpc.StatusCode.OK, 0) as (_, address), DigitsClient(address) as client:
        client.predict(digits[:1])
        with pytest.raises(DigitsError) as caught:
            list(client.predict_stream([digits[:1]], timeout=0.3))
        assert str(caught.value) == f"DEADLINE_EXCEEDED: {address}: no answer within 0.3 s"


def test_an_answer_can_be_taken_out_of_many(client: DigitsClient, digits: np.ndarray) -> None:
    many = client.predict(digits, include_hidden_layers=True)
    alone = client.predict(digits[42], include_hidden_layers=True)
    for name in ("digits", "activations", "layer1", "layer2"):
        np.testing.assert_allclose(getattr(many[42], name), getattr(alone, name), rtol=0, atol=1e-6)


@pytest.mark.parametrize("connect", [DigitsClient, AsyncDigitsClient])
async def test_an_empty_address_is_rejected_by_name(connect: Any) -> None:
    with pytest.raises(ValueError, match="address is ''; expected host:port"):
        connect("")


def test_an_error_has_code_message_field_and_request_id(client: DigitsClient, digits: np.ndarray) -> None:
    with pytest.raises(DigitsError) as caught:
        client.predict(np.tile(digits, (11, 1)))
    error = caught.value
    sentence = "holds 1100 images; at most 1024 are allowed in one message"
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.message == f"pixels: {sentence}"
    assert error.violations == (FieldViolation("pixels", sentence),)
    assert len(error.request_id) == 32


def test_another_version_is_not_found(client: DigitsClient, digits: np.ndarray) -> None:
    with pytest.raises(DigitsError, match="NOT_FOUND: model_version: there is no version '9'"):
        client.predict(digits[:1], model_version="9")


def test_a_missing_server_is_unavailable_within_the_deadline(digits: np.ndarray) -> None:
    began = time.monotonic()
    with DigitsClient("127.0.0.1:1", timeout=2) as client:
        with pytest.raises(DigitsError) as caught:
            client.predict(digits[:1])
        assert not client.is_serving()
    assert caught.value.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert time.monotonic() - began < 5


async def test_the_async_client_does_the_same(server: ServiceProcess, digits: np.ndarray) -> None:
    async def batches() -> Any:
        for row in digits[:5]:
            yield row

    async with AsyncDigitsClient(server.address) as client:
        await client.wait_until_serving(5)
        many = await asyncio.gather(*(client.predict(row, include_hidden_layers=True) for row in digits))
        assert [answer.digits[0] for answer in many] == reference(digits).digit.tolist()
        streamed = [answer.digits[0] async for answer in client.predict_stream(batches())]
        assert streamed == reference(digits[:5]).digit.tolist()
        with pytest.raises(DigitsError, match="INVALID_ARGUMENT: pixels: holds 1100 images"):
            await client.predict(np.tile(digits, (11, 1)))
        with pytest.raises(ValueError, match="; expected integers from 0"):
            await client.predict(digits.astype(np.int64) + 1)


class Unreliable(DigitServiceServicer):
    """A server that fails `failures` calls, then answers."""

    def __init__(self, code: grpc.StatusCode, failures: int) -> None:
        self.code = code
        self.failures = failures
        self.calls = 0
        self.request_ids: set[str] = set()

    def PredictStream(self, _: Any, context: Any) -> Iterator[PredictResponse]:  # noqa: N802 (the contract's name)
        """Keep the call open."""
        left = threading.Event()
        context.add_callback(left.set)
        left.wait(10)
        yield from ()

    def Predict(self, _: Any, context: Any) -> PredictResponse:  # noqa: N802 (the contract's name)
        self.calls += 1
        self.request_ids |= {value for key, value in context.invocation_metadata() if key == "x-request-id"}
        if self.calls > self.failures:
            return PredictResponse(digits=[7], activations=[0.0] * 10, model_version="1")
        if self.code is grpc.StatusCode.ABORTED:  # as from a proxy: its code, with the server's details
            details = status_pb2.Status(code=grpc.StatusCode.INTERNAL.value[0], message="other")
            context.set_trailing_metadata((("grpc-status-details-bin", details.SerializeToString()),))
        if self.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            status = status_pb2.Status(code=self.code.value[0], message="full")
            status.details.add().Pack(RetryInfo(retry_delay=Duration(nanos=250_000_000)))
            context.abort_with_status(rpc_status.to_status(status))
        return context.abort(self.code, "not now")


@contextlib.contextmanager
def unreliable(code: grpc.StatusCode, failures: int) -> Iterator[tuple[Unreliable, str]]:
    server = grpc.server(futures.ThreadPoolExecutor(4))
    servicer, checks = Unreliable(code, failures), health.HealthServicer()
    add_DigitServiceServicer_to_server(servicer, server)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    checks.set("digits.v1.DigitService", health_pb2.HealthCheckResponse.SERVING)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield servicer, f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


def test_an_unavailable_call_is_retried() -> None:
    with unreliable(grpc.StatusCode.UNAVAILABLE, 2) as (servicer, address), DigitsClient(address) as client:
        answer = client.predict(bytes(784))
        assert answer.digits.tolist() == [7]
        assert servicer.calls == 3
        assert servicer.request_ids == {answer.request_id}


def test_an_unavailable_call_is_retried_until_its_deadline() -> None:
    with unreliable(grpc.StatusCode.UNAVAILABLE, 99) as (servicer, address), DigitsClient(address) as client:
        with pytest.raises(DigitsError, match="UNAVAILABLE: not now"):
            client.predict(bytes(784))
        assert servicer.calls == 5


@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT])
def test_other_codes_are_not_retried(code: grpc.StatusCode) -> None:
    with unreliable(code, 1) as (servicer, address), DigitsClient(address) as client:
        with pytest.raises(DigitsError):
            client.predict(bytes(784))
        assert servicer.calls == 1


def test_an_overloaded_server_sends_a_retry_delay() -> None:
    with unreliable(grpc.StatusCode.RESOURCE_EXHAUSTED, 1) as (servicer, address), DigitsClient(address) as client:
        with pytest.raises(DigitsError) as caught:
            client.predict(bytes(784))
        assert caught.value.retry_after == 0.25
        assert servicer.calls == 1


def test_details_that_contradict_the_status_are_left_out() -> None:
    with unreliable(grpc.StatusCode.ABORTED, 1) as (_, address), DigitsClient(address) as client:
        with pytest.raises(DigitsError, match="ABORTED: not now") as caught:
            client.predict(bytes(784))
        assert caught.value.violations == ()


@pytest.mark.slow
def test_a_client_waits_for_a_server_that_starts_late(model_path: Path, digits: np.ndarray) -> None:
    with serving(model_path) as first:
        port = first.address.rsplit(":", 1)[1]
        first.stop()
    with DigitsClient(f"127.0.0.1:{port}") as client:
        late: list[ServiceProcess] = []
        arguments = ("--model", model_path, "--port", port, "--metrics-port", "0")
        timer = threading.Timer(2, lambda: late.append(launch(*arguments)))
        timer.start()
        try:
            client.wait_until_serving(15)
            found = time.time()
            timer.join()
            began = datetime.fromisoformat(late[0].wait_for("serving")["timestamp"]).timestamp()
            assert found - began < 4, "gRPC's default pause between attempts can be minutes"
            assert client.predict(digits[:1]).digits.shape == (1,)
        finally:
            timer.join()
            late[0].close()


def run(*arguments: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "digitserve", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "80", **env}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60)


def unboxed(said: str) -> str:
    """Return the text of typer's box, in one line."""
    return " ".join(said.replace("│", " ").split())


def test_predict_shows_picture_answer_and_activations(server: ServiceProcess) -> None:
    done = run("predict", IMAGES, "--limit", "2", "--address", server.address)
    assert done.returncode == 0, done.stderr
    assert "image 1" in done.stdout
    assert "98 more images" in done.stdout
    assert "%" in done.stdout, "ink, drawn without colour if there is no terminal"
    assert sum(line.strip().endswith("1.0") or "█" in line for line in done.stdout.splitlines()) >= 2


def test_predict_as_json_prints_only_one_document(server: ServiceProcess, digits: np.ndarray, tmp_path: Path) -> None:
    picture = tmp_path / "digit.png"
    Image.fromarray(255 - digits[31].reshape(28, 28)).resize((280, 280)).save(picture)
    done = run("predict", IMAGES, picture, "--json", "--hidden", "--limit", "2", DIGITS_ADDRESS=server.address)
    answers = json.loads(done.stdout)
    assert [(a["file"], a["image"], a["digit"]) for a in answers] == [
        (str(IMAGES), 0, 0),
        (str(IMAGES), 1, 0),
        (str(picture), 0, 3),
    ]
    assert all(len(a["activations"]) == 10 and len(a["layer1"]) == len(a["layer2"]) == 16 for a in answers)


def test_predict_continues_after_a_file_that_is_not_an_image(server: ServiceProcess, tmp_path: Path) -> None:
    bad = tmp_path / "notes.txt"
    bad.write_text("seven")
    done = run("predict", bad, IMAGES, "--json", "--limit", "1", "--address", server.address)
    assert done.returncode == 1
    refused, answer = json.loads(done.stdout)
    assert refused == {"file": str(bad), "error": done.stderr.strip().removeprefix(f"{bad}: ")}
    assert answer["digit"] == 0
    assert (
        done.stderr.strip() == f"{bad}: is no picture (PNG, JPEG, GIF, BMP, WEBP, TIFF, PPM) and no IDX file of images"
    )


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["predict", str(IMAGES), "--address", "127.0.0.1:1", "--timeout", "1"], 3),
        (["demo", "--address", "127.0.0.1:1", "--wait", "0.2"], 3),
        (["predict"], 2),
        (["predict", str(IMAGES), "--limit", "0"], 2),
        (["predict", str(IMAGES), "--address", ""], 2),
        (["demo", "--address", "127.0.0.1:1", "--wait", "nan"], 2),
        (["health", "--address", "127.0.0.1:1"], 3),
        (["health", "--address", "127.0.0.1:70000"], 2),
        (["health", "--address", "http://127.0.0.1:1"], 2),
        (["health", "--tls-ca", str(IMAGES)], 2),
    ],
)
def test_exit_statuses_are_those_of_the_help(arguments: list[str], status: int) -> None:
    done = run(*arguments)
    assert done.returncode == status
    assert "Traceback" not in done.stderr


def test_a_rejected_batch_is_status_four(model_path: Path) -> None:
    with serving(model_path, "--max-batch-size", "2") as small:
        done = run("predict", IMAGES, "--limit", "3", "--address", small.address)
    assert done.returncode == 4
    assert "pixels: holds 3 images; at most 2 are allowed" in done.stderr


def test_more_images_than_a_message_may_hold_go_in_several(server: ServiceProcess, tmp_path: Path) -> None:
    many = tmp_path / "many.idx"
    header = b"\x00\x00\x08\x03" + b"".join(n.to_bytes(4) for n in (1100, 28, 28))
    many.write_bytes(header + 11 * IMAGES.read_bytes()[16:])
    done = run("predict", many, "--json", "--limit", "1100", "--address", server.address)
    answers = json.loads(done.stdout)
    assert [a["image"] for a in answers] == list(range(1100))
    digits = [a["digit"] for a in answers]
    assert digits == 11 * digits[:100]


def test_the_answer_is_an_8_and_a_3() -> None:
    said = [render.answer(np.eye(10, dtype=np.float32)[digit], digit, numbers=False).plain for digit in (3, 8)]
    assert said == ["a 3", "an 8"]


def test_a_terminal_without_unicode_gets_bars_of_ascii(server: ServiceProcess) -> None:
    done = run("predict", IMAGES, "--limit", "1", "--address", server.address, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "0 ####" in done.stdout


def test_health_exits_with_zero_if_the_server_serves(server: ServiceProcess) -> None:
    done = run("health", "--address", server.address)
    assert (done.returncode, done.stdout) == (0, "SERVING\n")
    done = run("health", "--address", server.address, "--service", "nobody")
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.startswith("NOT_FOUND: ")
    done = run("health", "--address", "127.0.0.1:1")
    assert (done.returncode, done.stdout) == (3, "")
    assert (
        done.stderr == "UNAVAILABLE: 127.0.0.1:1: the port is closed; start a server with `make run` or "
        "`python -m service`\n"
    )


@on_both_transports
def test_health_distinguishes_a_draining_server_from_a_stopped_one(model_path: Path) -> None:
    with serving(model_path, "--drain-wait", "5") as service:
        service.process.send_signal(signal.SIGTERM)
        service.wait_for("stopping")
        done = run("health", "--address", service.address)
        assert (done.returncode, done.stdout, done.stderr) == (1, "NOT_SERVING\n", "")


async def test_the_async_client_reports_health_too(server: ServiceProcess) -> None:
    async with AsyncDigitsClient(server.address) as client:
        assert await client.health() == "SERVING"
        with pytest.raises(DigitsError, match="NOT_FOUND"):
            await client.health("nobody")


def test_answers_are_a_sequence(client: DigitsClient, digits: np.ndarray) -> None:
    found = client.predict(digits[:5], include_hidden_layers=True)
    assert len(found) == 5
    assert [one.digits.item() for one in found] == found.digits.tolist()
    np.testing.assert_array_equal(found[-1].activations, found.activations[4:])
    part = found[1:4:2]
    assert len(part) == 2
    assert part.layer1 is not None
    assert (part.digits.shape, part.activations.shape, part.layer1.shape) == ((2,), (2, 10), (2, 16))
    np.testing.assert_array_equal(part.activations, found.activations[[1, 3]])
    assert len(found[9:]) == 0
    with pytest.raises(IndexError):
        found[5]
    with pytest.raises(TypeError):
        found["1"]  # type: ignore[index]


def test_demo_shows_ten_digits_latencies_and_next_commands(server: ServiceProcess) -> None:
    done = run("demo", "--address", server.address)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("right") + done.stdout.count(", not ") == 10
    assert "p50" in done.stdout
    assert "p99" in done.stdout
    unfolded = done.stdout.replace(" \\\n      ", " ")
    assert f"digitserve predict {IMAGES.relative_to(ROOT)} --limit 3 --address {server.address}" in unfolded
    assert all(len(line) <= 80 or "digitserve predict" in line for line in done.stdout.splitlines())


def on_a_terminal(address: str, **env: str) -> bytes:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "digitserve", "predict", str(IMAGES), "--limit", "1", "--address", address]
    environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", "COLUMNS": "80", **env}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=theirs) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # Linux's error for a closed terminal
            while chunk := os.read(ours, 65536):
                shown += chunk
        assert process.wait(30) == 0
    os.close(ours)
    return shown


def test_on_a_terminal_the_picture_is_in_shades_of_grey(server: ServiceProcess) -> None:
    shown = on_a_terminal(server.address)
    assert "▀".encode() in shown
    assert b"38;2;" in shown


def test_on_a_terminal_without_colour_the_picture_is_still_one(server: ServiceProcess) -> None:
    shown = on_a_terminal(server.address, NO_COLOR="1")
    assert "▀".encode() not in shown
    assert b"%%%" in shown


def test_an_explanation_adds_up_in_either_client(server: ServiceProcess, digits: np.ndarray) -> None:
    async def asynchronously() -> Any:
        async with AsyncDigitsClient(server.address) as client:
            return await client.explain(digits[:3], [(3, 7), (1, 2)]), await client.network()

    with DigitsClient(server.address) as client:
        synchronously = client.explain(digits[:3], [(3, 7), (1, 2)]), client.network()
    for found, network in (synchronously, asyncio.run(asynchronously())):
        np.testing.assert_array_equal(found.answers.digits, reference(digits[:3]).digit)
        assert [[(e.layer, e.index) for e in one] for one in found.explanations] == [[(3, 7), (1, 2)]] * 3
        for row, one in enumerate(found.explanations):
            for why in one:
                total = why.contributions.sum(dtype=np.float64) + why.bias
                assert total == pytest.approx(found.sums[why.layer - 1][row, why.index], abs=1e-4)
                assert why.gradient.shape == (784,)
        assert [weights.shape for weights in network.weights] == [(16, 784), (16, 16), (10, 16)]
        assert network.weights_sha256 == checkpoint.load(checkpoint.committed("sigmoid")).network.sha256()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_invalid_explanation_is_rejected_by_field(
    server: ServiceProcess, digits: np.ndarray, asynchronous: bool
) -> None:
    async def ask() -> None:
        async with AsyncDigitsClient(server.address) as client:
            await client.explain(digits[0], [(3, 10)])

    with pytest.raises(DigitsError) as refused, DigitsClient(server.address) as client:
        asyncio.run(ask()) if asynchronous else client.explain(digits[0], [(3, 10)])
    assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.violations == (FieldViolation("neurons[0].index", "is 10; layer 3 has neurons 0 to 9"),)


def test_predict_explains_in_the_terminal_and_as_a_picture(server: ServiceProcess, tmp_path: Path) -> None:
    out = tmp_path / "why.png"
    done = run("predict", IMAGES, "--limit", "2", "--explain", "--explain-png", out, DIGITS_ADDRESS=server.address)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the pixels that spoke for") == 2
    with Image.open(out) as picture:
        assert picture.size == (448, 448)
        left, right = (np.asarray(picture.convert("RGB"))[:, half] for half in (slice(224), slice(224, None)))
    assert (left[..., 0] == left[..., 2]).all(), "the digits are grey"
    assert (right[..., 2] > right[..., 0]).any(), "some pixels supported them"


def test_an_unwritable_picture_is_a_one_line_error(server: ServiceProcess, tmp_path: Path) -> None:
    out = tmp_path / "no" / "why.png"
    done = run("predict", IMAGES, "--limit", "1", "--explain-png", out, DIGITS_ADDRESS=server.address)
    assert done.returncode == 2
    assert "does not exist; expected a file in an existing folder" in unboxed(done.stderr)
    assert "Traceback" not in done.stderr
