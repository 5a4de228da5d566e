"""The parts that need no cluster: options, merged metrics of replicas, and translated errors of Ray."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from conftest import ROOT
from digitserve_client import AsyncDigitsClient
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from grpc import aio
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from ray_serve.config import ClusterSettings, load
from ray_serve.exposition import merge
from service.config import Settings, SettingsError
from service.observability.metrics import Metrics
from service.observability.rpc_metrics import Rpc, RpcMetrics
from service.pb.digits.v1.digits_pb2 import PredictResponse

if TYPE_CHECKING:
    import numpy as np


def exposition(calls: int) -> str:
    registry = CollectorRegistry()
    rpc = RpcMetrics(Metrics(registry), Rpc("unary", "digits.v1.DigitService", "Predict"))
    for _ in range(calls):
        rpc.finish(rpc.start(), "OK", "")
    return generate_latest(registry).decode()


def test_the_metrics_of_replicas_are_one_text_with_a_label_for_each() -> None:
    texts = {"one": exposition(3), "two": exposition(4)}
    found = {family.name: family for family in text_string_to_metric_families(merge(texts))}
    for replica, calls in (("one", 3), ("two", 4)):
        samples = found["grpc_server_handled"].samples
        labels = {"replica": replica, "grpc_method": "Predict", "grpc_code": "OK"}
        assert [s.value for s in samples if labels.items() <= s.labels.items()] == [calls]
    alone = {family.name: family for family in text_string_to_metric_families(texts["one"])}
    assert {name: len(family.samples) * 2 for name, family in alone.items()} == {
        name: len(family.samples) for name, family in found.items()
    }
    assert {name: family.type for name, family in alone.items()} == {name: f.type for name, f in found.items()}


def test_an_option_of_the_service_is_the_same_here() -> None:
    shared = set(ClusterSettings.model_fields) & set(Settings.model_fields) - {"port", "metrics_host", "metrics_port"}
    assert {"model", "max_batch_size", "log_level"} < shared
    for name in shared:
        here, there = ClusterSettings.model_fields[name], Settings.model_fields[name]
        assert (here.default, here.description) == (there.default, there.description)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--min-replicas", "3", "--max-replicas", "2"], "--min-replicas is 3, more than --max-replicas, 2"),
        (
            ["--max-batch-size", "0"],
            "--max-batch-size (or DIGITS_MAX_BATCH_SIZE) is '0'; expected greater than or equal to 1",
        ),
        (["--port", "0"], "--port (or DIGITS_PORT) is '0'; expected greater than or equal to 1"),
        (["--target-ongoing", "none"], "--target-ongoing (or DIGITS_TARGET_ONGOING) is 'none'; expected a valid"),
    ],
)
def test_a_bad_option_is_a_one_line_error(arguments: list[str], sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(arguments)
    assert str(caught.value).startswith(sentence)


def test_the_service_does_not_import_ray() -> None:
    look = """
import sys, service.runtime.server, service.__main__
print([name for name in sys.modules if name.split(".")[0] in ("ray", "cluster")])
"""
    seen = subprocess.run([sys.executable, "-c", look], cwd=ROOT, capture_output=True, text=True, check=True)
    assert seen.stdout.strip() == "[]"


class Context:
    """The used part of grpcio's context of a call."""

    def __init__(self, code: grpc.StatusCode | None, details: str) -> None:
        self.told: dict[str, Any] = {"code": code, "details": details, "trailing": (("request_id", "r"),)}

    def code(self) -> Any:
        return self.told["code"]

    def details(self) -> Any:
        return self.told["details"].encode()

    def trailing_metadata(self) -> Any:
        return self.told["trailing"]

    def set_code(self, code: Any) -> None:
        self.told["code"] = code

    def set_details(self, details: Any) -> None:
        self.told["details"] = details

    def set_trailing_metadata(self, trailing: Any) -> None:
        self.told["trailing"] = trailing


GONE = "the replica of this call is gone, or none is ready yet: send the call again"


@pytest.mark.parametrize(
    ("code", "details", "expected", "sentence"),
    [
        (grpc.StatusCode.INTERNAL, "The actor died unexpectedly: /home/...", grpc.StatusCode.UNAVAILABLE, GONE),
        (grpc.StatusCode.INTERNAL, "internal error", grpc.StatusCode.INTERNAL, "internal error"),
        (grpc.StatusCode.NOT_FOUND, "Application metadata not set.", grpc.StatusCode.UNAVAILABLE, GONE),
        (grpc.StatusCode.NOT_FOUND, "model_name: there is no", grpc.StatusCode.NOT_FOUND, "model_name: there is no"),
        (grpc.StatusCode.UNAVAILABLE, "Deployment is unavailable", grpc.StatusCode.UNAVAILABLE, GONE),
        (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "Request dropped due to backpressure (num_queued_requests=9)",
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "queue full: too many calls wait for a replica",
        ),
        (None, "", None, ""),
    ],
)
def test_errors_of_ray_are_translated(
    code: grpc.StatusCode | None, details: str, expected: grpc.StatusCode | None, sentence: str
) -> None:
    registration = pytest.importorskip("ray_serve.registration", reason="Ray is not installed: `make test-ray` does")
    context = Context(code, details)
    registration.translate_status(context)
    assert (context.told["code"], context.told["details"]) == (expected, sentence)
    if (code, details) != (expected, sentence):
        status = Status.FromString(dict(context.told["trailing"])["grpc-status-details-bin"])
        assert (status.code, status.message) == (expected.value[0] if expected else 0, sentence)
        assert any(detail.Is(RetryInfo.DESCRIPTOR) for detail in status.details) == sentence.startswith("queue full")


def test_messages_pass_the_proxy_as_bytes_and_each_method_is_registered_once() -> None:
    registration = pytest.importorskip("ray_serve.registration", reason="Ray is not installed: `make test-ray` does")
    registered: dict[str, Any] = {}
    server = SimpleNamespace(
        service_handler_factory=lambda **_: None,
        add_generic_rpc_handlers=lambda _: None,
        add_registered_method_handlers=lambda service, handlers: registered.update({service: handlers}),
    )
    for function in (registration.digits, registration.inference, registration.health):
        function(SimpleNamespace(**dict.fromkeys(METHODS)), server)
    assert set(registered) == {"digits.v1.DigitService", "inference.GRPCInferenceService", "grpc.health.v1.Health"}
    assert {handler.request_deserializer for handlers in registered.values() for handler in handlers.values()} == {None}


async def test_a_client_with_retries_repeats_a_call_of_a_killed_replica(digits: np.ndarray) -> None:
    registration = pytest.importorskip("ray_serve.registration", reason="Ray is not installed: `make test-ray` does")
    calls = 0

    async def as_ray(_: bytes, context: Any) -> bytes:
        nonlocal calls
        calls += 1
        if calls < 3:
            context.set_code(grpc.StatusCode.INTERNAL)
            context.set_details("The actor died unexpectedly")
            return b""
        return PredictResponse(digits=[7], activations=[0.0] * 10).SerializeToString()

    handler = registration.ErrorTranslator(lambda **_: as_ray)(service_method="/digits.v1.DigitService/Predict")
    server = aio.server()
    methods = {"Predict": grpc.unary_unary_rpc_method_handler(handler)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("digits.v1.DigitService", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with AsyncDigitsClient(f"127.0.0.1:{port}") as client:
            assert (await client.predict(digits[0])).digits.tolist() == [7]
    finally:
        await server.stop(None)
    assert calls == 3


METHODS = [
    *("Predict", "PredictStream", "Explain", "GetNetwork", "Check", "List", "Watch", "ModelInfer", "ModelStreamInfer"),
    *("ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics"),
    *("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload", "TraceSetting", "LogSettings"),
    *(f"{k}SharedMemory{v}" for k in ("System", "Cuda") for v in ("Status", "Register", "Unregister")),
]
