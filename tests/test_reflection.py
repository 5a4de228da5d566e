"""Reflection, v1 and v1alpha, on both transports: the descriptors of the services, and bounded memory."""

from __future__ import annotations

from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from conftest import wait_until
from digitserve_client import DigitsClient
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection_pb2 as v1alpha
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from service.handlers.reflection import MAX_REQUEST_BYTES, SymbolIndex
from service.pb.digits.v1 import digits_pb2
from service.pb.grpc.reflection.v1 import reflection_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy as np
    from conftest import ServiceProcess

VERSIONS = ["v1", "v1alpha"]
NOT_FOUND, INVALID_ARGUMENT = (code.value[0] for code in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT))
SERVICES = [
    *("digits.v1.DigitService", "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"),
    *("grpc.reflection.v1alpha.ServerReflection", "inference.GRPCInferenceService"),
]


@pytest.fixture
def channel(server: ServiceProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as channel:
        yield channel


def stream(channel: grpc.Channel, version: str, messages: Iterable[bytes], **options: Any) -> Any:
    rpc = channel.stream_stream(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo")
    return rpc(iter(messages), **options)


def ask(
    channel: grpc.Channel, version: str, *requests: pb.ServerReflectionRequest
) -> list[pb.ServerReflectionResponse]:
    messages = [request.SerializeToString() for request in requests]
    return [pb.ServerReflectionResponse.FromString(reply) for reply in stream(channel, version, messages, timeout=60)]


def files(reply: pb.ServerReflectionResponse) -> list[descriptor_pb2.FileDescriptorProto]:
    assert reply.WhichOneof("message_response") == "file_descriptor_response", reply
    found = reply.file_descriptor_response.file_descriptor_proto
    return [descriptor_pb2.FileDescriptorProto.FromString(content) for content in found]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_service_is_listed(channel: grpc.Channel, version: str) -> None:
    request = pb.ServerReflectionRequest(host="here", list_services="")
    [reply] = ask(channel, version, request)
    assert [service.name for service in reply.list_services_response.service] == SERVICES
    assert (reply.valid_host, reply.original_request) == ("here", request)


SYMBOLS = {
    "service": ("digits.v1.DigitService", "digits.v1"),
    "method": ("digits.v1.DigitService.Predict", "digits.v1"),
    "stream": ("inference.GRPCInferenceService.ModelStreamInfer", "inference"),
    "message": ("digits.v1.PredictRequest", "digits.v1"),
    "field": ("digits.v1.PredictRequest.pixels", "digits.v1"),
    "nested message": ("inference.ModelInferRequest.InferInputTensor", "inference"),
    "nested field": ("inference.ModelInferRequest.InferInputTensor.shape", "inference"),
    "oneof": ("inference.InferParameter.parameter_choice", "inference"),
    "enum": ("inference.DataType", "inference"),
    "enum value": ("inference.TYPE_UINT8", "inference"),
    "nested enum value": ("grpc.health.v1.HealthCheckResponse.SERVING", "grpc.health.v1"),
    "detail of an error": ("google.rpc.BadRequest", "google.rpc"),
    "v1": ("grpc.reflection.v1.ServerReflection.ServerReflectionInfo", "grpc.reflection.v1"),
    "v1alpha": ("grpc.reflection.v1alpha.ServerReflection.ServerReflectionInfo", "grpc.reflection.v1alpha"),
}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_file_of_each_kind_of_symbol_is_found(channel: grpc.Channel, version: str) -> None:
    requests = [pb.ServerReflectionRequest(file_containing_symbol=symbol) for symbol, _ in SYMBOLS.values()]
    replies = ask(channel, version, *requests)
    found = {kind: files(reply)[0].package for kind, reply in zip(SYMBOLS, replies, strict=True)}
    assert found == {kind: package for kind, (_, package) in SYMBOLS.items()}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_file_is_found_by_its_name(channel: grpc.Channel, version: str) -> None:
    [reply] = ask(channel, version, pb.ServerReflectionRequest(file_by_filename=digits_pb2.DESCRIPTOR.name))
    assert files(reply)[0].SerializeToString() == digits_pb2.DESCRIPTOR.serialized_pb


UNKNOWN = {
    "there is no symbol 'digits.v1.DigitService.Draw'": {"file_containing_symbol": "digits.v1.DigitService.Draw"},
    "there is no symbol ''": {"file_containing_symbol": ""},
    # In the process, but not part of its services.
    "there is no symbol 'google.protobuf.MethodOptions'": {"file_containing_symbol": "google.protobuf.MethodOptions"},
    "there is no file 'digits.proto'": {"file_by_filename": "digits.proto"},
    "there is no extension 1 of 'digits.v1.PredictRequest'": {
        "file_containing_extension": pb.ExtensionRequest(
            containing_type="digits.v1.PredictRequest", extension_number=1
        ),
    },
    "there is no message type 'digits.v1.DigitService'": {"all_extension_numbers_of_type": "digits.v1.DigitService"},
}


@pytest.mark.parametrize("version", VERSIONS)
def test_an_unknown_symbol_is_not_found_and_the_stream_continues(channel: grpc.Channel, version: str) -> None:
    requests = [pb.ServerReflectionRequest(**request) for request in UNKNOWN.values()]
    replies = ask(channel, version, *requests, pb.ServerReflectionRequest(list_services=""))
    found = [(reply.error_response.error_code, reply.error_response.error_message) for reply in replies[:-1]]
    assert found == [(NOT_FOUND, sentence) for sentence in UNKNOWN]
    assert [reply.original_request for reply in replies[:-1]] == requests
    assert replies[-1].HasField("list_services_response")


@pytest.mark.parametrize("version", VERSIONS)
def test_a_message_without_extensions_has_none(channel: grpc.Channel, version: str) -> None:
    name = "digits.v1.PredictRequest"
    [reply] = ask(channel, version, pb.ServerReflectionRequest(all_extension_numbers_of_type=name))
    assert reply.all_extension_numbers_response == pb.ExtensionNumberResponse(base_type_name=name)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_empty_request_is_answered_with_an_error(channel: grpc.Channel, version: str) -> None:
    nothing, _ = ask(channel, version, pb.ServerReflectionRequest(), pb.ServerReflectionRequest(list_services=""))
    assert nothing.error_response.error_code == INVALID_ARGUMENT


TOO_LONG = pb.ServerReflectionRequest(file_containing_symbol="x" * MAX_REQUEST_BYTES).SerializeToString()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("message", [b"\xff\xff", TOO_LONG], ids=["damaged", "too long"])
def test_a_damaged_or_long_request_ends_the_stream(channel: grpc.Channel, version: str, message: bytes) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(stream(channel, version, [message], timeout=60))
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details().startswith("message: ")


def test_the_standard_client_builds_every_service_from_the_descriptors(channel: grpc.Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    pool: Any = descriptor_pool.DescriptorPool(database)
    assert sorted(database.get_services()) == SERVICES
    for name in SERVICES:
        assert pool.FindServiceByName(name).full_name == name
    assert pool.FindMethodByName("digits.v1.DigitService.Predict").input_type.full_name == "digits.v1.PredictRequest"


def test_v1alpha_is_described_by_its_own_contract(channel: grpc.Channel) -> None:
    symbol = "grpc.reflection.v1alpha.ServerReflection"
    [reply] = ask(channel, "v1", pb.ServerReflectionRequest(file_containing_symbol=symbol))
    [found], expected = files(reply), descriptor_pb2.FileDescriptorProto.FromString(v1alpha.DESCRIPTOR.serialized_pb)
    assert (found.package, found.message_type, found.service) == (
        expected.package,
        expected.message_type,
        expected.service,
    )


def test_a_slow_reader_delays_no_other_client(server: ServiceProcess, digits: np.ndarray) -> None:
    request = pb.ServerReflectionRequest(file_containing_symbol="inference.ModelConfig").SerializeToString()
    series = ("grpc_server_msg_received_total", "ServerReflectionInfo")

    def received() -> float:
        counts = server.series().items()
        return sum(count for (name, labels), count in counts if name == series[0] and series[1] in labels)

    before, memory = received(), resident(server)
    with grpc.insecure_channel(server.address) as channel, DigitsClient(server.address) as others:
        # 300 MB of replies, all unread.
        unread = stream(channel, "v1", repeat(request, 20_000))
        wait_until(lambda: received() > before)
        for _ in range(100):
            assert others.predict(digits[:1]).digits[0] == 0
        assert resident(server) - memory < 64 * 2**20
        unread.cancel()


def resident(server: ServiceProcess) -> int:
    """Return the server's resident memory in bytes."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))


def test_extensions_are_found_by_the_type_that_they_extend() -> None:
    imported = annotations_pb2.DESCRIPTOR.serialized_pb
    index = SymbolIndex([descriptor_pb2.FileDescriptorProto.FromString(imported)], [])
    assert index.extensions == {"google.protobuf.MethodOptions": {72295728: "google/api/annotations.proto"}}
    assert index.symbols == {"google.api.http": "google/api/annotations.proto"}


def test_a_file_follows_its_imports_which_are_sent_once() -> None:
    imports = {"a": ["b", "c"], "b": ["d"], "c": ["d"], "d": []}
    index = SymbolIndex(
        [descriptor_pb2.FileDescriptorProto(name=name, dependency=on) for name, on in imports.items()], []
    )
    names = [descriptor_pb2.FileDescriptorProto.FromString(content).name for content in index.closure("a")]
    assert names == ["a", "b", "c", "d"]
    assert index.closure("e") == index.closure(None) == []
