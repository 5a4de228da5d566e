"""Traces as a collector receives them: real servers, real calls, and spans over OTLP."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from conftest import ANSWERS_WITHIN, DEAD_PROXIES, ROOT, launch, needs_native, serving
from digitserve_client import AsyncDigitsClient, DigitsClient
from opentelemetry import propagate
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from service.observability.tracing import MAX_TRACED_MESSAGES
from service.pb.digits.v1.digits_pb2 import PredictRequest, PredictResponse
from service.pb.inference import open_inference_pb2 as oip

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from conftest import ServiceProcess

PREDICT, STREAM = "digits.v1.DigitService/Predict", "digits.v1.DigitService/PredictStream"
INFER = "inference.GRPCInferenceService/ModelInfer"
IMAGE = PredictRequest(pixels=bytes(784)).SerializeToString()
CALLER = "0af7651916cd43dd8448eb211c80319c"
NOT_SAMPLED = ("traceparent", f"00-{CALLER}-b7ad6b7169203331-00")


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """An OTLP receiver over gRPC that records its spans."""

    def __init__(self, address: str = "127.0.0.1:0", *, seconds: float = 0.0) -> None:
        self._seconds = seconds
        self._stopped = threading.Event()
        self.spans: list[Span] = []
        self.resources: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self._came = threading.Condition()
        self._server = grpc.server(ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port(address)}"
        self._server.start()

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 (named by the protocol)
        self._stopped.wait(self._seconds)
        with self._came:
            self.headers.append(dict(context.invocation_metadata()))
            for of_resource in request.resource_spans:
                self.resources.append(attributes(of_resource.resource))
                for scope in of_resource.scope_spans:
                    self.spans += scope.spans
            self._came.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def trace(self, trace_id: str, name: str) -> list[Span]:
        """Return the spans of a trace once its last span, `name`, has arrived."""

        def found() -> list[Span]:
            return [span for span in self.spans if span.trace_id.hex() == trace_id]

        with self._came:
            assert self._came.wait_for(lambda: any(s.name == name for s in found()), ANSWERS_WITHIN), self.spans
            return found()

    def stop(self) -> None:
        self._stopped.set()
        self._server.stop(0).wait()


def attributes(of: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in of.attributes}


def one(spans: list[Span], name: str) -> Span:
    (found,) = [span for span in spans if span.name == name]
    return found


def traceparent(number: int) -> tuple[str, str, str]:
    """Return the ids of a new trace, and the metadata of a client that records it."""
    trace_id = f"{number:032x}"
    return trace_id, "traceparent", f"00-{trace_id}-00f067aa0ba902b7-01"


@contextlib.contextmanager
def traced(model: Path, endpoint: str, *arguments: str, **env: str) -> Iterator[ServiceProcess]:
    """Start a server that sends its spans to `endpoint` every 50 ms."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"OTEL_BSP_SCHEDULE_DELAY": "50", "DIGITS_TRANSPORT": "grpcio", **env}.items():
            patch.setenv(name, value)
        with serving(model, "--otlp-endpoint", endpoint, *arguments) as service:
            yield service


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.stop()


@pytest.fixture(scope="module")
def service(model_path: Path, collector: Collector) -> Iterator[ServiceProcess]:
    """A server that only traces the calls that its clients trace; requests of more than 64 images run in a thread."""
    with traced(model_path, collector.endpoint, "--trace-sample-ratio", "0", "--inline-images", "64") as service:
        yield service


@pytest.fixture(scope="module")
def channel(service: ServiceProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(service.address) as channel:
        yield channel


def call(channel: grpc.Channel, method: str, request: bytes, *metadata: tuple[str, str]) -> bytes:
    return bytes(channel.unary_unary(f"/{method}")(request, metadata=metadata, timeout=10))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_traces_to_loopback_pass_no_proxy(model_path: Path, host: str) -> None:
    receiver = Collector()
    trace_id, *context = traceparent(77)
    try:
        with (
            traced(model_path, receiver.endpoint.replace("127.0.0.1", host), **DEAD_PROXIES) as service,
            grpc.insecure_channel(service.address, [("grpc.enable_http_proxy", 0)]) as channel,
        ):
            call(channel, PREDICT, IMAGE, tuple(context))
            assert receiver.trace(trace_id, PREDICT)
    finally:
        receiver.stop()


def test_a_call_is_a_span_with_its_steps_under_it(channel: grpc.Channel, collector: Collector) -> None:
    trace_id, *context = traceparent(1)
    before = time.time_ns()
    call(channel, PREDICT, PredictRequest(pixels=bytes(784 * 3)).SerializeToString(), tuple(context))
    spans = collector.trace(trace_id, PREDICT)
    root = one(spans, PREDICT)
    assert (root.kind, root.parent_span_id.hex()) == (Span.SPAN_KIND_SERVER, "00f067aa0ba902b7")
    assert attributes(root) == {
        "rpc.system.name": "grpc",
        "rpc.method": PREDICT,
        "rpc.response.status_code": "OK",
        "digits.images": 3,
    }
    assert root.status.code == Status.STATUS_CODE_UNSET
    steps = [one(spans, name) for name in ("decode", "queue", "run", "encode")]
    assert len(spans) == 5
    assert {step.parent_span_id for step in steps} == {root.span_id}
    assert {step.kind for step in steps} == {Span.SPAN_KIND_INTERNAL}
    times = [time for step in steps for time in (step.start_time_unix_nano, step.end_time_unix_nano)]
    within = [before, root.start_time_unix_nano, *times, root.end_time_unix_nano, time.time_ns()]
    assert within == sorted(within)
    run = attributes(steps[2])
    assert run.pop("digits.run") >= 1
    assert run == {"digits.batch.images": 3, "digits.model.version": "1"}


def test_the_other_protocol_and_the_other_rpcs_are_traced_too(channel: grpc.Channel, collector: Collector) -> None:
    trace_id, *context = traceparent(2)
    request = oip.ModelInferRequest(model_name="digits", raw_input_contents=[bytes(784)])
    request.inputs.add(name="pixels", datatype="UINT8", shape=[1, 784])
    call(channel, INFER, request.SerializeToString(), tuple(context))
    assert sorted(s.name for s in collector.trace(trace_id, INFER)) == sorted(
        [INFER, "decode", "queue", "run", "encode"]
    )
    trace_id, *context = traceparent(3)
    call(channel, "digits.v1.DigitService/GetNetwork", b"", tuple(context))
    assert len(collector.trace(trace_id, "digits.v1.DigitService/GetNetwork")) == 1


def test_the_resource_names_the_server_and_follows_the_standard_variables(
    model_path: Path, collector: Collector
) -> None:
    env = {
        "OTEL_SERVICE_NAME": "digits-of-the-post",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
        "OTEL_EXPORTER_OTLP_HEADERS": "x-api-key=secret",
    }
    with traced(model_path, collector.endpoint, **env) as service, grpc.insecure_channel(service.address) as channel:
        trace_id, *context = traceparent(4)
        call(channel, PREDICT, IMAGE, tuple(context))
        collector.trace(trace_id, PREDICT)
    resource = collector.resources[-1]
    assert (resource["service.name"], resource["deployment.environment.name"]) == ("digits-of-the-post", "test")
    assert resource["service.version"]
    assert len(resource["service.instance.id"]) == 36
    assert collector.headers[-1]["x-api-key"] == "secret"


@pytest.mark.parametrize(
    "context",
    [
        [("traceparent", "nonsense")],
        [("traceparent", f"00-{'0' * 32}-b7ad6b7169203331-01")],
        [("traceparent", f"ff-{CALLER}-b7ad6b7169203331-01")],
        [("tracestate", "vendor=1")],
    ],
    ids=["nonsense", "zeros", "version", "no parent"],
)
def test_an_invalid_trace_context_starts_a_trace_by_the_ratio(model_path: Path, context: list[tuple[str, str]]) -> None:
    collector = Collector()
    with traced(model_path, collector.endpoint, "--trace-sample-ratio", "1") as service:
        with grpc.insecure_channel(service.address) as channel:
            call(channel, PREDICT, IMAGE, *context)
        service.stop()
    collector.stop()
    root = one(collector.spans, PREDICT)
    assert root.parent_span_id == b""
    assert root.trace_id.hex() not in (CALLER, "0" * 32)
    assert root.trace_state == ""


def test_the_client_decides_on_recording_and_otherwise_the_ratio(channel: grpc.Channel, collector: Collector) -> None:
    call(channel, PREDICT, IMAGE, NOT_SAMPLED)
    call(channel, PREDICT, IMAGE)  # the ratio is 0
    trace_id, *context = traceparent(5)
    call(channel, PREDICT, IMAGE, tuple(context), ("tracestate", "vendor=1"))
    assert one(collector.trace(trace_id, PREDICT), PREDICT).trace_state == "vendor=1"
    assert all(len(span.parent_span_id) == 8 for span in collector.spans if span.name == PREDICT)
    assert CALLER not in {span.trace_id.hex() for span in collector.spans}


def test_a_rejected_call_is_no_error_of_the_server_and_has_the_reason(
    channel: grpc.Channel, collector: Collector
) -> None:
    trace_id, *context = traceparent(6)
    with pytest.raises(grpc.RpcError):
        call(channel, PREDICT, b"", tuple(context))
    spans = collector.trace(trace_id, PREDICT)
    root, decode = one(spans, PREDICT), one(spans, "decode")
    assert attributes(root)["rpc.response.status_code"] == "INVALID_ARGUMENT"
    assert "error.type" not in attributes(root)
    assert {span.status.code for span in spans} == {Status.STATUS_CODE_UNSET}
    assert attributes(decode)["error.type"] == "service.errors.InvalidInput"
    (event,) = decode.events
    assert attributes(event)["exception.message"] == "pixels: is empty; expected n x 784 bytes, n at least 1"


def test_the_span_of_a_request_past_its_deadline_in_the_queue_has_the_reason(
    channel: grpc.Channel, collector: Collector
) -> None:
    trace_id, *context = traceparent(14)
    request = oip.ModelInferRequest(model_name="digits", raw_input_contents=[bytes(784)])
    request.inputs.add(name="pixels", datatype="UINT8", shape=[1, 784])
    request.parameters["timeout"].int64_param = 1  # a microsecond
    with pytest.raises(grpc.RpcError):
        call(channel, INFER, request.SerializeToString(), tuple(context))
    spans = collector.trace(trace_id, INFER)
    assert sorted(span.name for span in spans) == ["decode", INFER, "queue"]
    assert attributes(one(spans, "queue"))["error.type"] == "service.errors.DeadlineExceeded"
    root = one(spans, INFER)
    assert (attributes(root)["error.type"], root.status.code) == ("DEADLINE_EXCEEDED", Status.STATUS_CODE_ERROR)


def test_the_server_errors_of_the_conventions_are_errors(channel: grpc.Channel, collector: Collector) -> None:
    trace_id, *context = traceparent(7)
    method = "inference.GRPCInferenceService/TraceSetting"
    with pytest.raises(grpc.RpcError):
        call(channel, method, b"", tuple(context))
    root = one(collector.trace(trace_id, method), method)
    assert root.status.code == Status.STATUS_CODE_ERROR
    assert attributes(root)["rpc.response.status_code"] == attributes(root)["error.type"] == "UNIMPLEMENTED"


def test_health_checks_are_not_traced(channel: grpc.Channel, collector: Collector) -> None:
    trace_id, *context = traceparent(8)
    call(channel, "grpc.health.v1.Health/Check", b"", tuple(context))
    other, *context = traceparent(9)
    call(channel, PREDICT, IMAGE, tuple(context))
    collector.trace(other, PREDICT)
    assert trace_id not in {span.trace_id.hex() for span in collector.spans}


def test_the_log_and_the_exemplars_name_the_trace(service: ServiceProcess, channel: grpc.Channel) -> None:
    def refused(name: str, *context: tuple[str, str]) -> dict[str, Any]:
        with pytest.raises(grpc.RpcError):
            call(channel, PREDICT, b"", ("x-request-id", name), *context)
        return service.wait_for("call rejected", request_id=name)

    trace_id, *context = traceparent(10)
    assert refused("recorded", tuple(context))["trace_id"] == trace_id
    assert refused("only by the client", NOT_SAMPLED)["trace_id"] == CALLER
    assert "trace_id" not in refused("by nobody")

    long_id = "r" * 100
    call(channel, PREDICT, IMAGE, tuple(context), ("x-request-id", "short"))
    short, long = exemplars(service, "OK"), []
    call(channel, PREDICT, IMAGE, tuple(context), ("x-request-id", long_id))
    long = exemplars(service, "OK")
    assert short == [{"trace_id": trace_id, "request_id": "short"}]
    assert long == [{"trace_id": trace_id}]  # both would be more than OpenMetrics allows
    call(channel, PREDICT, IMAGE, NOT_SAMPLED, ("x-request-id", "no trace to be found"))
    assert exemplars(service, "OK") == [{"request_id": "no trace to be found"}]
    assert {"request_id": "no trace to be found"} in exemplars(service, None)


def exemplars(service: ServiceProcess, code: str | None) -> list[dict[str, str]]:
    """Return the exemplars of Predict: of its calls with that code, or of its latency buckets."""
    from urllib.request import Request, urlopen  # noqa: PLC0415

    request = Request(service.metrics_url, headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    with urlopen(request, timeout=ANSWERS_WITHIN) as reply:
        families = list(parse_openmetrics(reply.read().decode()))
    name = "grpc_server_handled" if code else "grpc_server_handling_seconds"
    (family,) = [family for family in families if family.name == name]
    return [
        dict(sample.exemplar.labels)
        for sample in family.samples
        if sample.exemplar and sample.labels["grpc_method"] == "Predict" and sample.labels.get("grpc_code") == code
    ]


def test_requests_that_shared_a_run_name_the_same_one(channel: grpc.Channel, collector: Collector) -> None:
    """A large request keeps the model's thread busy, so that requests which arrive meanwhile share the next run."""
    large = PredictRequest(pixels=bytes(784 * 1024)).SerializeToString()
    predict = channel.unary_unary(f"/{PREDICT}")
    for attempt in range(20):
        ids = [traceparent(1000 + attempt * 100 + i) for i in range(9)]
        futures = [
            predict.future(large if i < 3 else IMAGE, metadata=(tuple(context),), timeout=10)
            for i, (_, *context) in enumerate(ids)
        ]
        assert [len(PredictResponse.FromString(f.result()).digits) for f in futures] == [1024] * 3 + [1] * 6
        runs = [one(collector.trace(trace_id, PREDICT), "run") for trace_id, *_ in ids[3:]]
        numbers = [attributes(run)["digits.run"] for run in runs]
        if len(set(numbers)) < len(numbers):
            break
    else:
        pytest.fail("no two requests shared a run")
    shared = max(numbers, key=numbers.count)
    alike = [run for run, number in zip(runs, numbers, strict=True) if number == shared]
    assert len({(run.start_time_unix_nano, run.end_time_unix_nano) for run in alike}) == 1
    assert {attributes(run)["digits.batch.images"] for run in alike} == {len(alike)}


def test_the_run_names_the_version_that_answered_before_and_after_a_swap(
    make_model: Callable[..., Path], tmp_path: Path, collector: Collector
) -> None:
    def place(version: str) -> None:
        (tmp_path / version).mkdir()
        make_model(version=version).rename(tmp_path / version / "model.onnx")

    place("1")
    versions = []
    with traced(tmp_path, collector.endpoint) as service, grpc.insecure_channel(service.address) as channel:
        for number in (20, 21):
            trace_id, *context = traceparent(number)
            call(channel, PREDICT, IMAGE, tuple(context))
            versions.append(attributes(one(collector.trace(trace_id, PREDICT), "run"))["digits.model.version"])
            if number == 20:
                place("2")
                service.process.send_signal(signal.SIGHUP)
                service.wait_for("model loaded", model_version="2")
    assert versions == ["1", "2"]


def test_each_message_of_a_stream_has_a_span_up_to_a_bound(channel: grpc.Channel, collector: Collector) -> None:
    trace_id, *context = traceparent(11)
    stream = channel.stream_stream(f"/{STREAM}")
    sent = MAX_TRACED_MESSAGES + 10
    assert len(list(stream(iter([IMAGE] * sent), metadata=(tuple(context),), timeout=20))) == sent
    spans = collector.trace(trace_id, STREAM)
    root, messages = one(spans, STREAM), [span for span in spans if span.name == "message"]
    assert attributes(root)["digits.messages"] == sent
    assert [attributes(span)["digits.message"] for span in messages] == list(range(1, MAX_TRACED_MESSAGES + 1))
    assert {span.parent_span_id for span in messages} == {root.span_id}
    under = [span.name for span in spans if span.parent_span_id == messages[0].span_id]
    assert under == ["decode", "queue", "run", "encode"]
    assert len(spans) == 1 + 5 * MAX_TRACED_MESSAGES


def test_an_error_in_a_stream_is_on_its_message(channel: grpc.Channel, collector: Collector) -> None:
    trace_id, *context = traceparent(12)
    method = "inference.GRPCInferenceService/ModelStreamInfer"
    wrong = oip.ModelInferRequest(model_name="letters").SerializeToString()
    (reply,) = channel.stream_stream(f"/{method}")(iter([wrong]), metadata=(tuple(context),), timeout=10)
    assert "letters" in oip.ModelStreamInferResponse.FromString(reply).error_message
    spans = collector.trace(trace_id, method)
    assert attributes(one(spans, method))["rpc.response.status_code"] == "OK"
    assert attributes(one(spans, "message"))["error.type"] == "service.errors.ModelNotFound"


async def test_the_clients_propagate_the_current_trace(service: ServiceProcess, collector: Collector) -> None:
    def context() -> list[tuple[str, str]]:
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        return list(carrier.items())

    async def batches() -> AsyncIterator[np.ndarray]:
        yield np.zeros((1, 784), np.uint8)

    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("caller")
    with DigitsClient(service.address, metadata=context) as client, tracer.start_as_current_span("caller") as caller:
        client.predict(np.zeros((1, 784), np.uint8))
    assert_child(collector, caller, PREDICT)
    async with AsyncDigitsClient(service.address, metadata=context) as other:
        with tracer.start_as_current_span("caller") as caller:
            assert len([answer async for answer in other.predict_stream(batches())]) == 1
    assert_child(collector, caller, STREAM)


def assert_child(collector: Collector, caller: Any, name: str) -> None:
    parent = caller.get_span_context()
    (child,) = [span for span in collector.trace(f"{parent.trace_id:032x}", name) if span.name == name]
    assert int.from_bytes(child.parent_span_id) == parent.span_id


def test_a_stop_sends_the_queued_spans(model_path: Path) -> None:
    collector = Collector()
    env = {"OTEL_BSP_SCHEDULE_DELAY": "3600000"}
    with traced(model_path, collector.endpoint, **env) as service:
        with grpc.insecure_channel(service.address) as channel:
            for _ in range(7):
                call(channel, PREDICT, IMAGE)
        assert collector.spans == []
        assert service.stop() == 0
        assert service.lines[-1]["event"] == "stopped"
        assert not [line for line in service.lines if line["event"] == "spans dropped"]
    assert len(collector.spans) == 35
    collector.stop()


@pytest.mark.slow
def test_a_missing_collector_loses_spans_and_no_request(model_path: Path) -> None:
    collector = Collector()
    collector.stop()
    with traced(model_path, collector.endpoint, OTEL_BSP_MAX_EXPORT_BATCH_SIZE="100") as service:
        with grpc.insecure_channel(service.address) as channel:
            for _ in range(1000):
                call(channel, PREDICT, IMAGE)
        series = service.series()
        # The exporter still retries the first batch while the queue fills with 4,096 spans.
        assert series["digits_trace_spans_total", ("dropped",)] + series["digits_trace_spans_total", ("failed",)] >= 800
        assert series["digits_trace_spans_total", ("sent",)] == 0
        assert series["grpc_server_handled_total", ("OK", "Predict", "digits.v1.DigitService", "unary")] == 1000
        assert service.stop() == 0
        events = [line["event"] for line in service.lines]
        (why,) = [line for line in service.lines if line["event"] == "trace export failed"]
        assert "UNAVAILABLE" in why["reason"]
        assert events[-2:] == ["spans dropped", "stopped"]


@pytest.mark.slow
def test_the_recovery_of_the_collector_is_logged(model_path: Path) -> None:
    collector = Collector()
    port = collector.endpoint.rsplit(":", 1)[1]
    collector.stop()
    env = {"OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
    with (
        traced(model_path, collector.endpoint, **env) as service,
        grpc.insecure_channel(service.address) as channel,
    ):
        call(channel, PREDICT, IMAGE)
        service.wait_for("trace export failed")
        again = Collector(f"127.0.0.1:{port}")
        until = time.monotonic() + ANSWERS_WITHIN
        while not again.spans and time.monotonic() < until:  # the exporter waits before it connects again
            call(channel, PREDICT, IMAGE)
            time.sleep(0.2)
        service.wait_for("trace export recovered")
        assert service.series()["digits_trace_spans_total", ("sent",)] >= 5
        again.stop()


@pytest.mark.slow
def test_a_hanging_collector_delays_no_stop_beyond_the_grace(model_path: Path) -> None:
    collector = Collector(seconds=100)
    with traced(model_path, collector.endpoint, "--shutdown-grace", "1") as service:
        with grpc.insecure_channel(service.address) as channel:
            call(channel, PREDICT, IMAGE)
        began = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - began < 50
        assert [line["event"] for line in service.lines][-2:] == ["spans dropped", "stopped"]
    collector.stop()


def test_without_an_endpoint_no_tracing_module_is_loaded(model_path: Path) -> None:
    look = f"""
import asyncio, json, sys
from service.config import Settings
from service.observability.logs import make_logger
from service.runtime.server import compose
async def main():
    settings = Settings(model={str(model_path)!r}, port=0, metrics_port=0, transport="grpcio")
    server = compose(settings, make_logger("json", "error"))
    parts = [server.batcher, server.transport._instrumentation]
    print(json.dumps([type(part).__module__ for part in parts] + ["opentelemetry" in sys.modules]))
asyncio.run(main())
"""
    seen = subprocess.run([sys.executable, "-c", look], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(seen.stdout) == ["service.batching.batcher", "service.transports.grpcio.instrumentation", False]


def test_without_the_extra_the_error_names_it(model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "opentelemetry").mkdir()
    (tmp_path / "opentelemetry" / "__init__.py").write_text(
        "raise ModuleNotFoundError('No module named opentelemetry')"
    )
    arguments = (
        "--model",
        model_path,
        "--port",
        "0",
        "--metrics-port",
        "0",
        "--otlp-endpoint",
        "http://localhost:4317",
    )
    service = launch(*arguments, env={"PYTHONPATH": str(tmp_path), "DIGITS_TRANSPORT": "grpcio"})
    try:
        assert service.ended() == 1
        assert service.lines[-1]["event"] == "cannot start"
        assert "--otlp-endpoint (or DIGITS_OTLP_ENDPOINT) needs the extra `tracing`" in service.lines[-1]["reason"]
        assert "pip install 'digitserve[tracing]'" in service.lines[-1]["reason"]
    finally:
        service.close()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "paper"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "5000"),
        ("OTEL_SPAN_EVENT_COUNT_LIMIT", "many"),
    ],
)
def test_an_invalid_standard_variable_is_a_one_line_error(model_path: Path, variable: str, value: str) -> None:
    arguments = (
        "--model",
        model_path,
        "--port",
        "0",
        "--metrics-port",
        "0",
        "--otlp-endpoint",
        "http://localhost:4317",
    )
    service = launch(*arguments, env={variable: value, "DIGITS_TRANSPORT": "grpcio"})
    try:
        assert service.ended() == 1
        assert service.lines[-1]["event"] == "cannot start"
        assert service.lines[-1]["reason"].startswith("--otlp-endpoint http://localhost:4317: ")
        assert service.lines[-1]["reason"].endswith(": check the OTEL_ variables")
    finally:
        service.close()


@needs_native
def test_tracing_uses_grpcio_instead_of_the_native_transport(model_path: Path, collector: Collector) -> None:
    with traced(model_path, collector.endpoint, DIGITS_TRANSPORT="auto") as service:
        (chosen,) = [line for line in service.lines if line["event"] == "transport chosen"]
        assert (chosen["transport"], chosen["reason"]) == ("grpcio", "native does not offer --otlp-endpoint")


def test_the_run_that_failed_is_in_the_trace(model_path: Path) -> None:
    """No input fails a real session, so the test replaces the model's predict."""
    look = f"""
import asyncio, grpc
from service.config import Settings
from service.observability.logs import make_logger
from service.runtime.server import compose
from service.inference.model import Model
async def main():
    server = compose(Settings(model={str(model_path)!r}, port=0, metrics_port=0, transport="grpcio",
                    otlp_endpoint=ENDPOINT), make_logger("json", "critical"))
    def fail(pixels): raise MemoryError("no room")
    server.models.model.predict = fail
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{{server.port}}") as channel:
        try:
            await channel.unary_unary("/{PREDICT}")({IMAGE!r})
        except grpc.RpcError as e:
            assert e.code() is grpc.StatusCode.INTERNAL, e
    await server.stop()
asyncio.run(main())
"""
    collector = Collector()
    subprocess.run([sys.executable, "-c", look.replace("ENDPOINT", repr(collector.endpoint))], cwd=ROOT, check=True)
    collector.stop()
    root, run = one(collector.spans, PREDICT), one(collector.spans, "run")
    assert root.status.code == run.status.code == Status.STATUS_CODE_ERROR
    assert (attributes(root)["error.type"], attributes(run)["error.type"]) == ("INTERNAL", "MemoryError")
    assert "encode" not in {span.name for span in collector.spans}
    assert one(collector.spans, "queue").status.code == Status.STATUS_CODE_UNSET
