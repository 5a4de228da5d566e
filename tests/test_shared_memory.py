"""Requests and outputs in system shared memory, by Triton's extension, the same on both transports."""

from __future__ import annotations

import os
import secrets
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from conftest import ANSWERS_WITHIN, on_both_transports, serving
from digitserve_client import DigitsClient

from service.errors import ServiceError, Unimplemented
from service.handlers.local_client import PEER, socket_owners
from service.handlers.shared_memory import Placement, SharedMemoryRegions
from service.pb.inference import open_inference_pb2 as pb
from service.pb.inference.open_inference_pb2_grpc import GRPCInferenceServiceStub

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt
    from conftest import ServiceProcess

SHM = Path("/dev/shm")  # noqa: S108 (the subject of the test)
pytestmark = pytest.mark.skipif(not SHM.is_dir(), reason="no /dev/shm: expected Linux")

ME = os.geteuid()
OTHER = 12345


@pytest.fixture
def make_object() -> Iterator[Callable[[bytes], Path]]:
    """Makes shared memory objects, as shm_open does."""
    made: list[Path] = []

    def make(content: bytes) -> Path:
        made.append(SHM / f"digitserve-test-{secrets.token_hex(8)}")
        made[-1].write_bytes(content)
        return made[-1]

    yield make
    for path in made:
        path.unlink(missing_ok=True)


@pytest.fixture
def regions() -> Iterator[SharedMemoryRegions]:
    """The regions of a server, for the user who runs the tests, over a Unix domain socket."""
    found = SharedMemoryRegions(max_regions=3, max_bytes=2**20)
    token = PEER.set(lambda: f"unix:uid={ME}")
    yield found
    PEER.reset(token)
    found.close()


def call_as(peer: str) -> None:
    PEER.set(lambda: peer)


@pytest.fixture(scope="module")
def socket_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("s") / "digits.sock"


@pytest.fixture(scope="module")
def service(model_path: Path, socket_path: Path, transport: str) -> Iterator[ServiceProcess]:  # noqa: ARG001 (as in conftest)
    with serving(model_path, "--shared-memory", "--listen", f"unix:{socket_path}") as running:
        yield running


@pytest.fixture(params=["unix", "tcp"])
def stub(service: ServiceProcess, socket_path: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    address = f"unix:{socket_path}" if request.param == "unix" else service.address
    with grpc.insecure_channel(address) as channel:
        found: Any = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        yield found
        found.SystemSharedMemoryUnregister(pb.SystemSharedMemoryUnregisterRequest(), timeout=ANSWERS_WITHIN)


def register(stub: Any, name: str, path: Path, size: int, offset: int = 0) -> None:
    request = pb.SystemSharedMemoryRegisterRequest(name=name, key=f"/{path.name}", offset=offset, byte_size=size)
    stub.SystemSharedMemoryRegister(request, timeout=ANSWERS_WITHIN)


def place(tensor: Any, region: str, size: int, offset: int = 0) -> None:
    tensor.parameters["shared_memory_region"].string_param = region
    tensor.parameters["shared_memory_byte_size"].int64_param = size
    if offset:
        tensor.parameters["shared_memory_offset"].int64_param = offset


def request_from(region: str, images: int, datatype: str = "UINT8", offset: int = 0) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="digits", id="a")
    tensor = request.inputs.add(name="pixels", datatype=datatype, shape=[images, 784])
    place(tensor, region, images * 784 * (4 if datatype == "FP32" else 1), offset)
    return request


@on_both_transports
def test_input_and_outputs_in_shared_memory_give_the_answers_of_a_plain_call(
    stub: Any, make_object: Callable[[bytes], Path], digits: npt.NDArray[np.uint8]
) -> None:
    source, target = make_object(bytes(100) + digits.tobytes()), make_object(bytes(8 + 100 * 48))
    register(stub, "source", source, 100 * 784, offset=100)
    register(stub, "target", target, 8 + 100 * 48)
    request = request_from("source", 100)
    place(request.outputs.add(name="digit"), "target", 800, offset=8)
    place(request.outputs.add(name="activations"), "target", 4000, offset=808)
    request.outputs.add(name="layer2")
    reply = stub.ModelInfer(request, timeout=ANSWERS_WITHIN)
    assert [(one.name, [*one.shape]) for one in reply.outputs] == [
        ("digit", [100]),
        ("activations", [100, 10]),
        ("layer2", [100, 16]),
    ]
    assert [len(one) for one in reply.raw_output_contents] == [0, 0, 6400]
    plain = pb.ModelInferRequest(model_name="digits", raw_input_contents=[digits.tobytes()])
    plain.inputs.add(name="pixels", datatype="UINT8", shape=[100, 784])
    expected = stub.ModelInfer(plain, timeout=ANSWERS_WITHIN).raw_output_contents
    content = target.read_bytes()
    assert content[8:808] == expected[1]
    assert content[808:4808] == expected[0]
    assert reply.raw_output_contents[2] == expected[3]
    assert content[:8] == bytes(8)


@on_both_transports
def test_floats_and_streams_read_shared_memory_too(
    stub: Any, make_object: Callable[[bytes], Path], digits: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8]
) -> None:
    register(stub, "floats", make_object((digits / np.float32(255)).astype("<f4").tobytes()), 4 * 78400)
    target = make_object(bytes(800))
    register(stub, "target", target, 800)
    request = request_from("floats", 10, "FP32")
    place(request.outputs.add(name="digit"), "target", 80)
    wrong = request_from("floats", 10, "FP32", offset=78400 * 4 - 100)
    replies = [*stub.ModelStreamInfer(iter([request, wrong, request]), timeout=ANSWERS_WITHIN)]
    assert [bool(reply.error_message) for reply in replies] == [False, True, False]
    assert "ends at 344860 of 'floats', which has 313600 bytes" in replies[1].error_message
    assert (np.frombuffer(target.read_bytes()[:80], "<i8") == labels[:10]).mean() > 0.7


@on_both_transports
def test_regions_are_listed_until_they_are_unregistered(stub: Any, make_object: Callable[[bytes], Path]) -> None:
    path = make_object(bytes(100))
    register(stub, "one", path, 60, offset=40)
    register(stub, "two", path, 100)
    status = stub.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest(), timeout=ANSWERS_WITHIN)
    assert set(status.regions) == {"one", "two"}
    one = status.regions["one"]
    assert (one.name, one.key, one.offset, one.byte_size) == ("one", f"/{path.name}", 40, 60)
    stub.SystemSharedMemoryUnregister(pb.SystemSharedMemoryUnregisterRequest(name="one"), timeout=ANSWERS_WITHIN)
    with pytest.raises(grpc.RpcError) as caught:
        stub.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest(name="one"), timeout=ANSWERS_WITHIN)
    error: Any = caught.value
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "name: there is no region 'one'")
    stub.CudaSharedMemoryUnregister(pb.NotOffered(), timeout=ANSWERS_WITHIN)
    metadata = stub.ServerMetadata(pb.ServerMetadataRequest(), timeout=ANSWERS_WITHIN)
    assert "system_shared_memory" in metadata.extensions


@on_both_transports
def test_a_region_that_is_truncated_under_calls_ends_them_and_not_the_server(
    stub: Any, service: ServiceProcess, make_object: Callable[[bytes], Path], digits: npt.NDArray[np.uint8]
) -> None:
    content = digits.tobytes()
    path, target = make_object(content), make_object(bytes(800))
    register(stub, "source", path, len(content))
    register(stub, "target", target, 800)
    stopped = threading.Event()

    def truncate() -> None:
        while not stopped.is_set():
            for each, size in ((path, len(content)), (target, 800)):
                os.truncate(each, 0)
                os.truncate(each, size)

    thread = threading.Thread(target=truncate)
    thread.start()
    try:
        request = request_from("source", 100)
        place(request.outputs.add(name="digit"), "target", 800)
        for _ in range(200):
            try:
                stub.ModelInfer(request, timeout=ANSWERS_WITHIN)
            except grpc.RpcError as e:
                error: Any = e
                assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error
    finally:
        stopped.set()
        thread.join()
    os.truncate(path, 0)
    with pytest.raises(grpc.RpcError, match="has 0 bytes in 'source'; expected 78400"):
        stub.ModelInfer(request_from("source", 100), timeout=ANSWERS_WITHIN)
    assert service.process.poll() is None
    with DigitsClient(service.address, timeout=ANSWERS_WITHIN) as client:
        assert client.is_serving()


@on_both_transports
def test_without_the_option_shared_memory_is_off(server: ServiceProcess) -> None:
    with grpc.insecure_channel(server.address) as channel:
        stub: Any = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        with pytest.raises(grpc.RpcError, match="shared memory is off; expected a server with --shared-memory"):
            register(stub, "source", SHM / "none", 1)
        with pytest.raises(grpc.RpcError, match=r"pixels: shared memory \(shared_memory_region\) is off; expected"):
            stub.ModelInfer(request_from("source", 1), timeout=ANSWERS_WITHIN)
        metadata = stub.ServerMetadata(pb.ServerMetadataRequest(), timeout=ANSWERS_WITHIN)
        assert "system_shared_memory" not in metadata.extensions


def refusal(register: Callable[..., None], *arguments: Any) -> str:
    with pytest.raises(ServiceError) as caught:
        register(*arguments)
    return str(caught.value)


@pytest.mark.parametrize(
    "key",
    [
        *(
            "",
            "/",
            "..",
            "/..",
            ".",
            "//etc/passwd",
            "/../etc/passwd",
            "../../etc/passwd",
            "/a/b",
            "/shm/../a",
            "a\0b",
        ),
        "/" + "a" * 256,
    ],
)
def test_a_key_leads_to_no_file_beyond_shared_memory(regions: SharedMemoryRegions, key: str) -> None:
    assert refusal(regions.register, "a", key, 0, 1).startswith("key: is ")


@pytest.mark.parametrize("kind", ["link", "folder", "pipe", "missing"])
def test_only_an_object_is_opened(
    regions: SharedMemoryRegions, make_object: Callable[[bytes], Path], kind: str
) -> None:
    path = make_object(bytes(10))
    if kind != "missing":
        target = path.rename(path.with_suffix(".target"))
        try:
            if kind == "link":
                path.symlink_to(target)
            elif kind == "folder":
                path.mkdir()
            else:
                os.mkfifo(path)
            assert refusal(regions.register, "a", path.name, 0, 1).startswith("key: ")
        finally:
            target.unlink()
            if kind == "folder":
                path.rmdir()
    else:
        path.unlink()
        reason = refusal(regions.register, "a", path.name, 0, 1)
        assert reason.endswith("cannot be opened for reading and writing: No such file or directory")


def test_an_object_of_another_user_is_rejected(
    regions: SharedMemoryRegions, make_object: Callable[[bytes], Path]
) -> None:
    path = make_object(bytes(10))
    regions.register("mine", path.name, 0, 10)
    call_as(f"unix:uid={OTHER}")
    assert "is no shared memory object of user 12345" in refusal(regions.register, "a", path.name, 0, 10)
    assert regions.status("") == {}
    assert "which is no region" in refusal(regions.read, "pixels", Placement("mine", 0, 10))
    assert "which is no region" in refusal(regions.write, "digit", Placement("mine", 0, 10), b"a")
    regions.unregister("")
    call_as("unix:")  # a user who is not known
    assert set(regions.status("")) == {"mine"}


@pytest.mark.parametrize(
    "peer", ["", "ipv4:10.0.0.1:5", "ipv6:[fe80::1]:5", "ipv4:127.0.0.1.evil:5", "ipv6:%5B2001::%5D:1"]
)
def test_a_client_on_another_machine_has_no_shared_memory(regions: SharedMemoryRegions, peer: str) -> None:
    call_as(peer)
    with pytest.raises(Unimplemented, match="shared memory is for clients on the server's machine"):
        regions.status("")


def test_over_tcp_the_kernel_names_the_user(regions: SharedMemoryRegions, make_object: Callable[[bytes], Path]) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
        listener.accept()[0],
    ):
        port = client.getsockname()[1]
        assert socket_owners(port) == {ME}
        call_as(f"ipv4:127.0.0.1:{port}")
        regions.register("a", make_object(bytes(10)).name, 0, 10)
    call_as("ipv4:127.0.0.1:1")  # of no open socket
    reason = refusal(regions.register, "b", make_object(bytes(10)).name, 0, 10)
    assert reason == "key: is of another user; over TCP only the server's user may register a region"


def test_regions_are_bounded(regions: SharedMemoryRegions, make_object: Callable[[bytes], Path]) -> None:
    name = make_object(bytes(2**20)).name
    assert refusal(regions.register, "a", name, 0, 2**20 + 1) == "byte_size: is 1048577; expected 1 to 1048576"
    assert refusal(regions.register, "a", name, 0, 0) == "byte_size: is 0; expected 1 to 1048576"
    assert refusal(regions.register, "a", name, 1, 2**20) == "byte_size: ends at 1048577; the object has 1048576 bytes"
    assert "the object has 1048576 bytes" in refusal(regions.register, "a", name, 2**64 - 1, 10)
    assert refusal(regions.register, "", name, 0, 1).startswith("name: has 0 characters")
    for each in "abc":
        regions.register(each, name, 0, 10)
    assert refusal(regions.register, "a", name, 0, 10).startswith("name: 'a' is registered")
    assert refusal(regions.register, "d", name, 0, 10) == "name: would be one region more than 3; unregister one first"
    regions.unregister("a")
    assert refusal(regions.register, "d", name, 0, 2**20) == "byte_size: is 1048576; expected 1 to 1048556"
    before = len([*Path("/proc/self/fd").iterdir()])
    regions.unregister("")
    assert len([*Path("/proc/self/fd").iterdir()]) == before - 2


def test_a_tensor_stays_within_its_region(regions: SharedMemoryRegions, make_object: Callable[[bytes], Path]) -> None:
    path = make_object(bytes(range(100)))
    regions.register("a", path.name, 10, 50)
    assert regions.read("pixels", Placement("a", 45, 5)) == bytes(range(55, 60))
    for placement in (Placement("a", 46, 5), Placement("a", 2**63 - 1, 5), Placement("a", 0, 51)):
        assert "of 'a', which has 50 bytes" in refusal(regions.read, "pixels", placement)
        assert "of 'a', which has 50 bytes" in refusal(regions.write, "digit", placement, b"abcde")
    assert "has room for 4 bytes; expected at least 5" in refusal(
        regions.write, "digit", Placement("a", 0, 4), b"abcde"
    )
    regions.write("digit", Placement("a", 45, 5), b"abcde")
    assert path.read_bytes() == bytes(range(55)) + b"abcde" + bytes(range(60, 100))
    os.truncate(path, 58)
    assert "has been truncated" in refusal(regions.write, "digit", Placement("a", 45, 5), b"abcde")
    assert path.stat().st_size == 58


def test_an_object_that_is_replaced_is_still_the_registered_one(
    regions: SharedMemoryRegions, make_object: Callable[[bytes], Path]
) -> None:
    path = make_object(b"before")
    regions.register("a", path.name, 0, 6)
    path.unlink()
    path.write_bytes(b"after!")
    assert regions.read("pixels", Placement("a", 0, 6)) == b"before"


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("shared_memory_byte_size", {"int64_param": -1}, "pixels: has no valid shared_memory_byte_size"),
        ("shared_memory_byte_size", {"string_param": "784"}, "pixels: has no valid shared_memory_byte_size"),
        ("shared_memory_byte_size", {"int64_param": 783}, "pixels: has 783 raw bytes; expected 784"),
        ("shared_memory_offset", {"int64_param": -1}, "pixels: has no valid shared_memory_offset"),
        ("shared_memory_offset", {"uint64_param": 2**64 - 1}, "pixels: ends at 18446744073709552399 of 'source'"),
        ("shared_memory_region", {"int64_param": 1}, "pixels: has no text as shared_memory_region"),
        ("shared_memory_region", {"string_param": "none"}, "pixels: names 'none', which is no region"),
    ],
)
@on_both_transports
def test_invalid_parameters_are_named(
    stub: Any, make_object: Callable[[bytes], Path], key: str, value: dict[str, Any], problem: str
) -> None:
    register(stub, "source", make_object(bytes(784)), 784)
    request = request_from("source", 1)
    request.inputs[0].parameters[key].CopyFrom(pb.InferParameter(**value))
    with pytest.raises(grpc.RpcError, match=problem) as caught:
        stub.ModelInfer(request, timeout=ANSWERS_WITHIN)
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
