"""Reloads of the model while it serves: no lost call, no mixed answers, and no invalid model."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import shutil
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import onnx
import pytest
from certificates import put
from conftest import ANSWERS_WITHIN, launch, on_both_transports, serving, wait_until
from digitserve_client import AsyncDigitsClient, DigitsClient, DigitsError
from grpc import aio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from structlog.testing import CapturingLogger

from export import checkpoint, graph
from service.config import SettingsError, load
from service.errors import ModelFileError, ReloadRejected
from service.inference.repository import ModelRepository
from service.observability.metrics import Metrics
from service.pb.inference import open_inference_pb2 as pb
from service.runtime.reloader import Reloader

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import ServiceProcess

TOKEN = "a-token-for-model-control"  # noqa: S105 (only of this test)
NETWORKS = {name: checkpoint.load(checkpoint.committed(name)) for name in ("sigmoid", "relu")}
BLANK = np.zeros((1, 784), np.uint8)


def activation(version: int | str) -> Any:
    """Odd versions are the sigmoid network and even ones the ReLU network, so that their answers differ."""
    return "sigmoid" if int(version) % 2 else "relu"


def content(version: int) -> bytes:
    return graph.build(NETWORKS[activation(version)], version=str(version))


def add(folder: Path, version: int, data: bytes | None = None) -> None:
    """Add a version atomically, as a deployment does."""
    (folder / str(version)).mkdir(parents=True, exist_ok=True)
    put(folder / str(version) / "model.onnx", content(version) if data is None else data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    add(tmp_path / "digits", 1)
    return tmp_path / "digits"


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    (tmp_path / "tokens").write_text(TOKEN)
    return tmp_path / "tokens"


def reloads(service: ServiceProcess) -> tuple[float, float]:
    series = service.series()
    return tuple(series["digits_model_reloads_total", (result,)] for result in ("loaded", "rejected"))  # type: ignore[return-value]


def version_of(service: ServiceProcess) -> str:
    with DigitsClient(service.address) as client:
        return client.predict(BLANK).model_version


@on_both_transports
def test_a_new_version_is_loaded_and_reported_everywhere(folder: Path) -> None:
    with serving(folder, "--model-poll", "0.05") as service, DigitsClient(service.address) as client:
        assert client.predict(BLANK).model_version == "1"
        add(folder, 10)
        add(folder, 9)
        service.wait_for("model loaded", model_version="10")
        assert client.predict(BLANK, model_version="10").model_version == "10"
        with pytest.raises(DigitsError, match="there is no version '1'; '10' serves"):
            client.predict(BLANK, model_version="1")
        with grpc.insecure_channel(service.address) as channel:

            def ask(rpc: str, request: Any, reply: Any) -> Any:
                call: Any = channel.unary_unary(f"/inference.GRPCInferenceService/{rpc}")
                return reply.FromString(call(request.SerializeToString(), timeout=5))

            metadata = ask("ModelMetadata", pb.ModelMetadataRequest(name="digits"), pb.ModelMetadataResponse)
            assert (list(metadata.versions), metadata.properties["activation"]) == (["10"], "relu")
            found = ask("ModelStatistics", pb.ModelStatisticsRequest(), pb.ModelStatisticsResponse).model_stats[0]
            assert (found.version, found.inference_count, found.inference_stats.fail.count) == ("10", 1, 1)
            index = ask("RepositoryIndex", pb.RepositoryIndexRequest(), pb.RepositoryIndexResponse)
            assert [(model.version, model.state) for model in index.models] == [("10", "READY")]
        assert 'activation="relu"' in service.get("/metrics")
        assert 'version="10"' in service.get("/metrics")
        assert 'activation="sigmoid"' not in service.get("/metrics")
        (folder / "10" / "model.onnx").unlink()
        (folder / "10").rmdir()
        service.wait_for("model loaded", model_version="9", previous_version="10")


@on_both_transports
def test_sighup_loads_a_replaced_file(tmp_path: Path) -> None:
    put(tmp_path / "model.onnx", content(1))
    with serving(tmp_path / "model.onnx") as service:
        put(tmp_path / "model.onnx", content(2))
        service.process.send_signal(signal.SIGHUP)
        service.wait_for("model loaded", model_version="2", activation="relu")
        assert version_of(service) == "2"
        service.process.send_signal(signal.SIGHUP)  # the file is unchanged
        time.sleep(0.2)
        assert reloads(service) == (1, 0)
        assert service.stop() == 0


@on_both_transports
def test_a_pinned_version_serves_alone_and_its_file_may_change(folder: Path) -> None:
    add(folder, 2)
    with serving(folder, "--model-version", "1", "--model-poll", "0.05") as service:
        add(folder, 3)
        add(folder, 1, graph._sealed(renamed(content(2), version="1")))
        service.wait_for("model loaded", model_version="1", activation="relu")
        assert version_of(service) == "1"
    for arguments, sentence in [(("--model-version", "7"), "7/model.onnx: no such file")]:
        service = launch("--model", folder, "--port", "0", "--metrics-port", "0", *arguments)
        try:
            assert service.ended() == 1
            assert sentence in service.lines[-1]["reason"]
        finally:
            service.close()


def renamed(data: bytes, **metadata: str) -> onnx.ModelProto:
    model = onnx.load_from_string(data)
    for entry in model.metadata_props:
        entry.value = {**metadata, "content_sha256": "0" * 64}.get(entry.key, entry.value)
    return model


def wrong_shape(data: bytes) -> bytes:
    model = renamed(data)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 783
    return graph._sealed(model)


BAD = {
    "half-written": (
        lambda data: data[: len(data) // 2],
        "not a model that `python -m export onnx` wrote, or only a part of one",
    ),
    "cut early": (lambda data: data[:100], "not a model that `python -m export onnx` wrote, or only a part of one"),
    "empty": (lambda _: b"", "not a model that `python -m export onnx` wrote"),
    "one bit": (lambda data: data[:9000] + bytes([data[9000] ^ 1]) + data[9001:], "damaged: its content"),
    "wrong shape": (wrong_shape, "783"),
    "foreign": (lambda data: graph._sealed(renamed(data, name="letters")), "is the model 'letters'; expected 'digits'"),
    "misplaced": (lambda data: graph._sealed(renamed(data, version="7")), "its metadata has version 7; expected 2"),
}


@on_both_transports
def test_an_unusable_version_is_rejected_in_reply_metric_and_log_while_the_old_one_serves(
    folder: Path, tokens: Path
) -> None:
    with (
        serving(folder, "--model-control", "--tokens-file", tokens) as service,
        DigitsClient(service.address, token_file=tokens) as client,
    ):
        for number, (name, (spoil, sentence)) in enumerate(BAD.items(), 1):
            add(folder, 2, spoil(content(2)))
            code, said = load_model(service)
            assert (code, sentence in said) == (grpc.StatusCode.FAILED_PRECONDITION, True), (name, said)
            assert said.startswith("version 1 still serves: ")
            assert sentence in service.wait_for("model rejected")["reason"]
            assert client.predict(BLANK).model_version == "1"
            assert reloads(service) == (0, number)
        add(folder, 2)
        assert load_model(service) == (grpc.StatusCode.OK, "")
        assert client.predict(BLANK).model_version == "2"
        assert reloads(service) == (1, len(BAD))


def load_model(
    service: ServiceProcess,
    token: str = TOKEN,
    request: bytes = pb.RepositoryModelLoadRequest(model_name="digits").SerializeToString(),
) -> tuple[grpc.StatusCode, str]:
    with grpc.insecure_channel(service.address) as channel:
        call: Any = channel.unary_unary("/inference.GRPCInferenceService/RepositoryModelLoad")
        try:
            call(request, timeout=10, metadata=(("authorization", f"Bearer {token}"),))
        except grpc.RpcError as e:
            return e.code(), e.details()
        return grpc.StatusCode.OK, ""


@on_both_transports
def test_model_control_is_off_by_default_and_needs_a_token(folder: Path, tokens: Path) -> None:
    with serving(folder) as service:
        code, said = load_model(service)
        assert (code, "--model-control" in said) == (grpc.StatusCode.UNIMPLEMENTED, True)
    with serving(folder, "--model-control", "--tokens-file", tokens) as service:
        assert load_model(service, token="another-token-than-that")[0] is grpc.StatusCode.UNAUTHENTICATED  # noqa: S106
        other = pb.RepositoryModelLoadRequest(model_name="letters").SerializeToString()
        assert load_model(service, request=other)[0] is grpc.StatusCode.NOT_FOUND
        with_file = b"\x12\x06digits\x1a\x0a\x0a\x04file\x12\x02\x0a\x00"  # Triton's parameters, field 3
        assert load_model(service, request=with_file)[0] is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(SettingsError, match=r"--model-control \(or DIGITS_MODEL_CONTROL\) without authentication"):
        load(["--model-control"])


@on_both_transports
def test_a_bad_newest_version_does_not_keep_a_server_from_starting(folder: Path) -> None:
    add(folder, 2, b"half")
    with serving(folder, "--model-poll", "0.05") as service:
        assert [line["event"] for line in service.lines] == ["starting", "model rejected", "serving"]
        assert version_of(service) == "1"
        time.sleep(0.3)
        assert reloads(service) == (0, 1)  # once, in spite of repeated polls
        add(folder, 2)
        service.wait_for("model loaded", model_version="2")


def test_a_folder_without_a_version_is_rejected_by_name(tmp_path: Path) -> None:
    (tmp_path / "latest").mkdir()
    (tmp_path / "01").mkdir()
    (tmp_path / "3").mkdir()  # its file is not yet written
    with pytest.raises(ModelFileError, match=r"has no version; expected .*/1/model\.onnx"):
        ModelRepository(tmp_path).candidates()


@pytest.mark.slow
@on_both_transports
async def test_a_hundred_swaps_under_load_lose_no_call_and_mix_no_answer(
    folder: Path, tokens: Path, digits: np.ndarray
) -> None:
    """Every answer is that of the version that it names, and memory is unchanged."""
    expected = {name: trained.network.forward(digits).activations for name, trained in NETWORKS.items()}
    answered: list[str] = []
    done = asyncio.Event()

    async def ask(client: AsyncDigitsClient, images: int) -> None:
        pixels = np.resize(digits, (images, 784))
        while not done.is_set():
            found = await client.predict(pixels, timeout=20)
            right = np.resize(expected[activation(found.model_version)], (images, 10))
            np.testing.assert_allclose(found.activations, right, rtol=0, atol=1e-5)
            answered.append(found.model_version)

    arguments = ("--model-control", "--tokens-file", tokens, "--inline-images", "4")
    with serving(folder, *arguments) as service:
        async with AsyncDigitsClient(service.address, token_file=tokens) as client:
            load_ = [asyncio.create_task(ask(client, images)) for images in (1, 1, 3, 40, 100)]
            memory = []
            async with aio.insecure_channel(service.address) as channel:
                swap = channel.unary_unary("/inference.GRPCInferenceService/RepositoryModelLoad")
                request = pb.RepositoryModelLoadRequest(model_name="digits").SerializeToString()
                for version in range(2, 102):
                    add(folder, version)
                    await swap(request, timeout=20, metadata=(("authorization", f"Bearer {TOKEN}"),))
                    memory.append((await asyncio.to_thread(service.series))["process_resident_memory_bytes", ()])
            done.set()
            await asyncio.gather(*load_)
        assert (await asyncio.to_thread(reloads, service)) == (100, 0)
        assert service.stop() == 0
        assert not [line for line in service.lines if line["event"] in ("call rejected", "call failed")]
    versions = list(map(int, answered))
    assert len(set(versions)) > 50
    assert max(memory[80:]) < 1.1 * max(memory[20:40]), [round(m / 2**20) for m in memory]


async def test_a_call_is_answered_by_the_version_at_its_arrival(folder: Path, digits: np.ndarray) -> None:
    from service.batching.batcher import Batcher  # noqa: PLC0415 (only for this test)
    from service.observability.statistics import Statistics  # noqa: PLC0415

    place = ModelRepository(folder)
    first = place.load(place.candidates()[0])
    add(folder, 2)
    second = place.load(place.candidates()[0])
    statistics = [Statistics(), Statistics()]
    batcher = Batcher(
        first, Metrics(CollectorRegistry()), statistics[0], max_batch_size=1000, max_queued_images=1000, inline=0
    )
    early = [asyncio.ensure_future(batcher.predict(digits[:10])) for _ in range(3)]
    await asyncio.sleep(0)
    batcher.swap(second, statistics[1])
    late = [asyncio.ensure_future(batcher.predict(digits[:10])) for _ in range(3)]
    for asked, model in ((early, first), (late, second)):
        for reply in await asyncio.gather(*asked):
            np.testing.assert_allclose(reply.activations, model.predict(digits[:10]).activations, atol=1e-6)
    assert [counts.images for counts in statistics] == [30, 30]
    await batcher.close()


@pytest.fixture(scope="module")
def whole(make_model: Callable[..., Path]) -> bytes:
    return make_model(version="2").read_bytes()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damaged_file_is_accepted(folder: Path, whole: bytes, data: st.DataObject) -> None:
    """A flipped, truncated, repeated or generated file is rejected with a one-line error, or is the same model."""
    kind = data.draw(st.sampled_from(["flip", "cut", "insert", "random"]))
    at = data.draw(st.integers(0, len(whole) - 1))
    spoilt = {
        "flip": lambda: whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :],
        "cut": lambda: whole[:at],
        "insert": lambda: whole[:at] + data.draw(st.binary(min_size=1, max_size=50)) + whole[at:],
        "random": lambda: data.draw(st.binary(max_size=500)),
    }[kind]()
    add(folder, 2, spoilt)
    place = ModelRepository(folder)
    with pytest.raises(ModelFileError) as caught:
        place.load(place.candidates()[0])
    assert "\n" not in str(caught.value)


async def test_a_volume_that_does_not_answer_is_reported_and_blocks_no_call(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, place, answers = CapturingLogger(), ModelRepository(folder), threading.Event()
    reloader = Reloader(place, Metrics(CollectorRegistry()), log)  # type: ignore[arg-type]
    taken: list[str] = []
    candidates = place.candidates
    monkeypatch.setattr("service.runtime.reloader.READ_TIMEOUT", 0.1)
    monkeypatch.setattr(place, "candidates", lambda: (answers.wait(ANSWERS_WITHIN), candidates())[1])
    add(folder, 2)
    for _ in range(2):
        with pytest.raises(ReloadRejected, match=r"could not be read within .* s: its volume does not answer"):
            await reloader.reload(lambda model: taken.append(model.info.version))
    for _ in range(5):  # polls of the same file log once
        await reloader.reload(lambda model: taken.append(model.info.version), force=False)
    assert [call.method_name for call in log.calls] == ["error", "error"]
    answers.set()
    async with asyncio.timeout(ANSWERS_WITHIN):
        while not taken:  # the pending read still blocks the first reloads
            await reloader.reload(lambda model: taken.append(model.info.version), force=False)
            await asyncio.sleep(0.01)
    assert taken == ["2"]


async def test_a_file_that_becomes_readable_is_loaded_without_another_change(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests may run as root, who can read any file, so the test denies reading."""
    monkeypatch.setattr("service.runtime.reloader.RETRY_INTERVAL", 0.0)
    log = CapturingLogger()
    reloader = Reloader(ModelRepository(folder), Metrics(CollectorRegistry()), log)  # type: ignore[arg-type]
    taken: list[str] = []
    add(folder, 2)

    def deny(_: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.read_bytes", deny)
        for _ in range(3):
            await reloader.reload_in_background(lambda model: taken.append(model.info.version), force=False)
    assert taken == []
    await reloader.reload_in_background(lambda model: taken.append(model.info.version), force=False)
    assert taken == ["2"]
    assert [call.args[0] for call in log.calls] == ["model rejected", "model loaded"]


async def test_a_reloader_continues_after_an_internal_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics(CollectorRegistry())
    place = ModelRepository(folder)
    reloader = Reloader(place, metrics, CapturingLogger())  # type: ignore[arg-type]
    taken: list[str] = []
    add(folder, 2)
    with monkeypatch.context() as patch:
        patch.setattr(place, "load", lambda _: 1 / 0)
        await reloader.reload_in_background(lambda model: taken.append(model.info.version), force=False)
    assert taken == []
    add(folder, 3)
    with contextlib.suppress(ReloadRejected):
        await reloader.reload(lambda model: taken.append(model.info.version))
    assert taken == ["3"]


def test_an_ignored_folder_is_warned_of_once_and_counted(folder: Path) -> None:
    shutil.copytree(folder / "1", folder / "0002")
    (folder / "latest").mkdir()
    (folder / ".staging").mkdir()
    put(folder / ".staging" / "model.onnx", content(3))
    with serving(folder, "--model-poll", "0.05") as service:
        (warned,) = [line for line in service.lines if line["event"] == "model folder ignored"]
        assert warned["folder"] == str(folder / "0002")
        assert warned["reason"] == "the name is no version; expected a number from 1, without leading zeros"
        assert version_of(service) == "1"
        (folder / "5").mkdir()  # its file has another name
        put(folder / "5" / "network.onnx", content(5))
        assert service.wait_for("model folder ignored")["reason"] == "holds no model.onnx"
        wait_until(lambda: service.series()["digits_model_folders_ignored", ()] == 2)
        shutil.rmtree(folder / "0002")
        add(folder, 5)
        service.wait_for("model loaded", model_version="5")
        wait_until(lambda: service.series()["digits_model_folders_ignored", ()] == 0)
        assert service.stop() == 0
        assert [line["event"] for line in service.lines].count("model folder ignored") == 2


def test_a_pinned_version_and_a_file_have_no_folders_to_ignore(folder: Path) -> None:
    shutil.copytree(folder / "1", folder / "0002")
    assert list(ModelRepository(folder).skipped_folders()) == ["0002"]
    assert ModelRepository(folder, version="1").skipped_folders() == {}
    assert ModelRepository(folder / "1" / "model.onnx").skipped_folders() == {}
