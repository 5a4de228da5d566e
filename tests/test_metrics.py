"""The content of /metrics after known traffic."""

from __future__ import annotations

import gzip
import platform
import re
import socket
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import grpc
import numpy as np
import onnxruntime
import pytest
from conftest import ANSWERS_WITHIN, serving, wait_until
from digitserve_client import uncertainty
from google.rpc import code_pb2
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from export import checkpoint
from service import __version__
from service.network import HIGHEST_SECOND, LOWEST_TOP
from service.observability.histogram import MAX_EXEMPLAR_REQUEST_ID
from service.observability.metrics import CONFIDENCE_BUCKETS, Metrics
from service.observability.metrics_server import MetricsServer
from service.pb.digits.v1.digits_pb2 import PredictRequest, PredictResponse
from service.transports.status import code_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import ServiceProcess

pytestmark = pytest.mark.usefixtures("transport")

PREDICT = ("Predict", "digits.v1.DigitService", "unary")
STREAM = ("PredictStream", "digits.v1.DigitService", "bidi_stream")


@pytest.fixture(scope="module")
def after_traffic(
    model_path: Path,
    digits: np.ndarray,
    transport: str,  # noqa: ARG001 (sets the environment)
) -> Iterator[tuple[ServiceProcess, list[int]]]:
    """A new server after 7 single images, one batch of 100, a stream of 5 and 2 malformed calls."""
    with serving(model_path) as service, grpc.insecure_channel(service.address) as channel:
        unary = channel.unary_unary("/digits.v1.DigitService/Predict")
        stream = channel.stream_stream("/digits.v1.DigitService/PredictStream")

        def request(rows: np.ndarray) -> bytes:
            return PredictRequest(pixels=rows.tobytes()).SerializeToString()

        replies = [unary(request(row), timeout=10) for row in digits[:7]]
        replies.append(unary(request(digits), timeout=10))
        replies += list(stream((request(row) for row in digits[:5]), timeout=10))
        for _ in range(2):
            with pytest.raises(grpc.RpcError):
                unary(b"", timeout=10)
        yield service, [digit for raw in replies for digit in PredictResponse.FromString(raw).digits]


def test_calls_messages_and_codes_are_counted_under_the_standard_names(
    after_traffic: tuple[ServiceProcess, list[int]],
) -> None:
    series = after_traffic[0].series()
    assert series["grpc_server_started_total", PREDICT] == 10
    assert series["grpc_server_msg_received_total", PREDICT] == 10
    assert series["grpc_server_msg_sent_total", PREDICT] == 8
    assert series["grpc_server_handled_total", ("OK", *PREDICT)] == 8
    assert series["grpc_server_handled_total", ("InvalidArgument", *PREDICT)] == 2
    assert series["grpc_server_handled_total", ("Internal", *PREDICT)] == 0
    assert series["grpc_server_handling_seconds_count", PREDICT] == 10
    assert series["grpc_server_started_total", STREAM] == 1
    assert series["grpc_server_msg_received_total", STREAM] == 5
    assert series["grpc_server_msg_sent_total", STREAM] == 5
    assert series["grpc_server_handled_total", ("OK", *STREAM)] == 1
    assert series["digits_requests_in_flight", PREDICT] == 0


def test_latency_has_buckets_fit_for_microseconds(after_traffic: tuple[ServiceProcess, list[int]]) -> None:
    series = after_traffic[0].series()
    edges = [
        float(labels[3])
        for name, labels in series
        if name == "grpc_server_handling_seconds_bucket" and labels[0] == "Predict"
    ]
    assert min(edges) == 50e-6
    assert sum(edge < 0.005 for edge in edges) >= 8
    assert 0 < series["grpc_server_handling_seconds_sum", PREDICT] < 10


def test_runs_and_batch_sizes_are_counted(after_traffic: tuple[ServiceProcess, list[int]]) -> None:
    series = after_traffic[0].series()
    # Messages of a stream that arrive together can share a run.
    runs = series["digits_inference_seconds_count", ()]
    assert 9 <= runs <= 13
    assert series["digits_batch_size_count", ()] == runs
    assert series["digits_batch_size_sum", ()] == 112
    assert 7 <= series["digits_batch_size_bucket", ("1.0",)] <= runs - 1
    assert series["digits_queue_seconds_count", ()] == 13
    assert series["digits_queue_images", ()] == 0


def test_predictions_are_counted_by_digit(after_traffic: tuple[ServiceProcess, list[int]]) -> None:
    service, answered = after_traffic
    series = service.series()
    for digit in range(10):
        assert series["digits_predictions_total", (str(digit),)] == answered.count(digit)


def test_confidence_is_counted_for_every_image_answered(
    after_traffic: tuple[ServiceProcess, list[int]], digits: np.ndarray
) -> None:
    series = after_traffic[0].series()
    assert series["digits_confidence_count", ()] == 112
    network = checkpoint.load(checkpoint.committed("sigmoid")).network
    activations = network.forward(np.concatenate([digits[:7], digits, digits[:5]])).activations
    second, confidences = np.sort(activations, axis=1)[:, -2:].T
    unsure = (confidences < LOWEST_TOP) | (second > HIGHEST_SECOND)
    assert series["digits_unsure_total", ()] == unsure.sum() > 0
    assert series["digits_confidence_sum", ()] == pytest.approx(confidences.sum(), rel=1e-5)
    for edge in CONFIDENCE_BUCKETS:
        assert series["digits_confidence_bucket", (str(edge),)] == (confidences <= edge).sum()


def test_the_client_and_the_server_call_the_same_answers_unsure() -> None:
    assert (uncertainty.LOWEST_TOP, uncertainty.HIGHEST_SECOND) == (LOWEST_TOP, HIGHEST_SECOND)


def test_a_batch_is_counted_as_its_images_one_by_one() -> None:
    activations = np.random.default_rng(0).random((50, 10), dtype=np.float32) ** 2
    activations[0] = 0.5  # on a boundary: belongs to the bucket that ends there
    digits = activations.argmax(axis=1)
    registries = CollectorRegistry(), CollectorRegistry()
    at_once, one_by_one = map(Metrics, registries)
    at_once.record_run(digits, activations, 1e-3)
    for i in range(50):
        one_by_one.record_run(digits[i : i + 1], activations[i : i + 1], 1e-3)
    for digit in range(10):
        counts = [
            registry.get_sample_value("digits_predictions_total", {"digit": str(digit)}) for registry in registries
        ]
        assert counts == [(digits == digit).sum()] * 2
    for edge in (*map(str, CONFIDENCE_BUCKETS), "+Inf"):
        counts = [registry.get_sample_value("digits_confidence_bucket", {"le": edge}) for registry in registries]
        assert counts[0] == counts[1] is not None
    sums = [registry.get_sample_value("digits_confidence_sum") for registry in registries]
    assert sums[0] == pytest.approx(sums[1])


def test_the_time_of_the_last_success_changes_with_answers_and_not_with_rejections(model_path: Path) -> None:
    with serving(model_path) as service, grpc.insecure_channel(service.address) as channel:
        call = channel.unary_unary("/digits.v1.DigitService/Predict")

        def last() -> float:
            return service.series()["digits_last_success_timestamp_seconds", ()]

        assert last() == 0
        call(PredictRequest(pixels=bytes(784)).SerializeToString(), timeout=10)
        first = last()
        assert first == pytest.approx(time.time(), abs=60)
        time.sleep(0.01)
        with pytest.raises(grpc.RpcError):
            call(b"", timeout=10)
        assert last() == first
        call(PredictRequest(pixels=bytes(784)).SerializeToString(), timeout=10)
        assert last() > first


def test_the_limit_of_the_queue_is_a_metric(model_path: Path) -> None:
    with serving(model_path, "--max-queued-images", "77") as service:
        assert service.series()["digits_queue_capacity_images", ()] == 77


def test_the_metric_of_serving_agrees_with_health(model_path: Path) -> None:
    with serving(model_path, "--drain-wait", "600") as service:
        assert service.series()["digits_serving", ()] == 1
        service.process.terminate()
        service.wait_for("stopping")
        wait_until(lambda: service.series()["digits_serving", ()] == 0)


def test_the_program_in_service_is_named(after_traffic: tuple[ServiceProcess, list[int]]) -> None:
    text = next(
        line for line in after_traffic[0].get("/metrics").splitlines() if line.startswith("digits_server_info{")
    )
    assert re.findall(r'(\w+)="([^"]+)"', text) == [
        ("grpcio", grpc.__version__),
        ("host", socket.gethostname()),
        ("onnxruntime", onnxruntime.__version__),
        ("python", platform.python_version()),
        ("version", __version__),
    ]


def test_a_request_id_is_the_exemplar_in_openmetrics(model_path: Path, digits: np.ndarray) -> None:
    with serving(model_path) as service, grpc.insecure_channel(service.address) as channel:
        call = channel.unary_unary("/digits.v1.DigitService/Predict")
        ids = {"good-1", "x" * 128}
        for request_id in sorted(ids):
            call(
                PredictRequest(pixels=digits[0].tobytes()).SerializeToString(),
                metadata=[("x-request-id", request_id)],
                timeout=10,
            )
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", timeout=10)
        given = dict(caught.value.trailing_metadata())["x-request-id"]
        request = urllib.request.Request(
            service.metrics_url, headers={"Accept": "application/openmetrics-text; version=1.0.0"}
        )
        with urllib.request.urlopen(request, timeout=10) as reply:
            assert reply.headers["Content-Type"].startswith("application/openmetrics-text")
            families = {family.name: family for family in parse_openmetrics(reply.read().decode())}
        plain = service.get("/metrics")
    buckets = families["grpc_server_handling_seconds"].samples
    assert {sample.exemplar.labels["request_id"] for sample in buckets if sample.exemplar} <= {"good-1", given}
    handled = {
        sample.labels["grpc_code"]: sample.exemplar.labels["request_id"]
        for sample in families["grpc_server_handled"].samples
        if sample.exemplar
    }
    assert handled == {"OK": "good-1", "InvalidArgument": given}
    assert "good-1" not in plain
    assert max(map(len, ids)) > MAX_EXEMPLAR_REQUEST_ID


def test_the_model_in_service_is_named(after_traffic: tuple[ServiceProcess, list[int]]) -> None:
    text = next(line for line in after_traffic[0].get("/metrics").splitlines() if line.startswith("digits_model_info{"))
    for label in ('version="1"', 'activation="sigmoid"', 'provider="CPUExecutionProvider"', "weights_sha256="):
        assert label in text


def test_the_process_is_measured(after_traffic: tuple[ServiceProcess, list[int]]) -> None:
    series = after_traffic[0].series()
    assert series["process_resident_memory_bytes", ()] > 20e6
    assert series["process_open_fds", ()] > 3
    assert series["process_cpu_seconds_total", ()] > 0


def test_metrics_are_compressed_on_request(after_traffic: tuple[ServiceProcess, list[int]]) -> None:
    request = urllib.request.Request(after_traffic[0].metrics_url, headers={"Accept-Encoding": "gzip"})
    with urllib.request.urlopen(request, timeout=10) as reply:
        assert reply.headers["Content-Encoding"] == "gzip"
        assert b"grpc_server_handled_total" in gzip.decompress(reply.read())


def test_other_paths_list_the_valid_ones(after_traffic: tuple[ServiceProcess, list[int]]) -> None:
    service, _ = after_traffic
    assert service.get("/healthz") == "SERVING on CPUExecutionProvider\n"
    assert "/metrics" in service.get("/")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        service.get("/admin")


def test_a_silent_connection_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.observability.metrics_server._IDLE_TIMEOUT", 1)
    endpoint = MetricsServer(CollectorRegistry(), is_serving=lambda: True)
    endpoint.start("127.0.0.1", 0)
    with socket.create_connection(("127.0.0.1", endpoint.port), ANSWERS_WITHIN) as silent:
        assert silent.recv(1) == b""
    endpoint.stop()


def test_every_status_code_has_its_name_in_gos_spelling() -> None:
    assert [code_name(number) for number in (0, 1, 3, 4, 8, 14, 16)] == [
        *("OK", "Canceled", "InvalidArgument", "DeadlineExceeded", "ResourceExhausted", "Unavailable"),
        "Unauthenticated",
    ]
    assert len({code_name(number) for number in code_pb2.Code.values()}) == 17
