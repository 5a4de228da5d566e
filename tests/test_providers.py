"""The requested provider runs the whole model, or the server does not start.

ONNX Runtime has five silent fallbacks to the CPU. The first and the fifth are real here, with the CPU's wheel. The
others are replays of onnxruntime-gpu (tests/fake_onnxruntime.py).
"""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import fake_onnxruntime
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from conftest import ROOT, launch, serving
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from structlog.testing import CapturingLogger
from test_model import sealed

from service.config import SettingsError, load
from service.errors import ProviderError, StartError
from service.inference import plugins
from service.inference.model import Model
from service.inference.onnx_outputs import keep_outputs
from service.inference.provider_diagnostics import explain
from service.inference.providers import SessionFactory
from service.inference.sessions import OUTPUTS
from service.provider_options import parsed_options

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


for_the_cpu = pytest.mark.skipif(
    "CUDAExecutionProvider" in ort.get_available_providers(), reason="this ONNX Runtime has CUDA"
)
has_azure = pytest.mark.skipif(
    "AzureExecutionProvider" not in ort.get_available_providers(), reason="this ONNX Runtime has no Azure"
)


def refusal(*arguments: str | Path, env: dict[str, str] | None = None) -> str:
    """Return why the server does not start."""
    service = launch(*arguments, "--port", "0", "--metrics-port", "0", env=env)
    try:
        assert service.ended() == 1
        [line] = [line for line in service.lines if line["event"] != "starting"]
        assert line["event"] == "cannot start"
        return str(line["reason"])
    finally:
        service.close()


def session_factory(name: str, **options: Any) -> SessionFactory:
    return SessionFactory(name, CapturingLogger(), **options)  # type: ignore[arg-type]


@pytest.fixture
def replaying(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A function that starts a replay of ONNX Runtime with CUDA in this process, by its name."""

    def replay(what: str) -> None:
        monkeypatch.setenv("REPLAY", what)

    monkeypatch.setattr(ort, "InferenceSession", fake_onnxruntime.Replayed)
    monkeypatch.setattr(ort, "get_available_providers", fake_onnxruntime.available)
    monkeypatch.setattr(plugins, "installed", list)
    monkeypatch.setattr("service.inference.provider_diagnostics.probe", fake_onnxruntime.probe)
    monkeypatch.setattr(ort, "set_default_logger_severity", lambda _: None)  # it would stay set in this process
    return replay


# 1: not built in. Real, because these wheels lack the provider.


@for_the_cpu
def test_a_provider_that_is_not_built_in_is_rejected_with_its_package(model_path: Path) -> None:
    assert refusal("--model", model_path, "--provider", "cuda") == (
        f"--provider (or DIGITS_PROVIDER) is 'cuda', but the onnxruntime {ort.__version__} that is installed has only "
        "azure, cpu: `make gpu` installs onnxruntime-gpu in an environment of its own"
    )
    with pytest.raises(ProviderError, match="no plugin that has it is installed: pip install onnxruntime-ep-openvino"):
        Model(model_path, sessions=session_factory("openvino"))


def test_an_unknown_provider_is_rejected_with_the_known_ones() -> None:
    with pytest.raises(StartError, match=r"is 'cude'; expected auto, .*cpu, cuda, .*tensorrt, tensorrt-rtx, .*webgpu"):
        session_factory("cude")


@for_the_cpu
def test_auto_on_an_install_for_the_cpu_uses_it_without_a_warning(model_path: Path) -> None:
    with serving(model_path) as service:
        assert [line["event"] for line in service.lines if line["level"] != "info"] == []
        assert "cuda" not in "".join(line["reason"] for line in service.lines if line["event"] == "provider chosen")
        assert service.lines[-1]["provider"] == "CPUExecutionProvider"
        assert service.get("/healthz") == "SERVING on CPUExecutionProvider\n"


# 2 and 3: its library does not load, or the creation of a session fails. Replayed from a recording.


RECORDED = {
    "no library": (
        "NVIDIA's library libcublasLt.so.13 is missing: `make gpu` installs it, or pip install "
        "'onnxruntime-gpu[cuda,cudnn]'"
    ),
    "no driver": (
        "the NVIDIA driver (libcuda.so.1) is missing: install it, or start the container with its GPU, which takes the "
        "NVIDIA container toolkit (`docker run --gpus all`)"
    ),
    "no device": (
        "there is no NVIDIA GPU (CUDA failure 100): `nvidia-smi` must list one, and CUDA_VISIBLE_DEVICES must not hide "
        "it"
    ),
    "no kernel": "it has no kernel for ArgMax of the model, which the CPU would have run",
    "one node elsewhere": "it has no kernel for ArgMax of the model, which the CPU would have run",
    "other answers": "its activations differ by 0.001 from the CPU's; at most 0.0001 may be",
}


@pytest.mark.parametrize(("what", "reason"), RECORDED.items(), ids=RECORDED)
def test_unusable_cuda_is_rejected_with_the_missing_part(
    model_path: Path, replaying: Callable[[str], None], what: str, reason: str
) -> None:
    replaying(what)
    with pytest.raises(ProviderError) as caught:
        Model(model_path, sessions=session_factory("cuda"))
    assert str(caught.value) == f"--provider (or DIGITS_PROVIDER) is 'cuda', but {reason}"


@pytest.mark.parametrize(("what", "reason"), RECORDED.items(), ids=RECORDED)
def test_auto_then_uses_the_cpu_with_a_warning_and_keeps_it(
    model_path: Path, replaying: Callable[[str], None], what: str, reason: str
) -> None:
    replaying(what)
    chosen, log = session_factory("auto"), CapturingLogger()
    chosen._log = log  # type: ignore[assignment]
    model = Model(model_path, sessions=chosen)
    assert model.provider == "CPUExecutionProvider"
    [line] = log.calls
    assert (line.method_name, line.kwargs["reason"]) == ("warning", f"cuda cannot be used: {reason}")
    replaying("works")
    assert Model(model_path, sessions=chosen).provider == "CPUExecutionProvider"


def test_auto_uses_working_cuda_and_never_falls_back_to_the_cpu(
    model_path: Path, digits: np.ndarray, replaying: Callable[[str], None]
) -> None:
    replaying("works")
    chosen = session_factory("auto")
    model = Model(model_path, sessions=chosen)
    assert model.provider == "CUDAExecutionProvider"
    np.testing.assert_array_equal(model.predict(digits).activations, Model(model_path).predict(digits).activations)
    replaying("no device")
    with pytest.raises(ProviderError, match="there is no NVIDIA GPU"):
        Model(model_path, sessions=chosen)
    with pytest.raises(ProviderError, match="there is no NVIDIA GPU"):
        model.recreate_session()


def test_options_reach_onnx_runtime_and_tf32_is_off_by_default(
    model_path: Path, replaying: Callable[[str], None]
) -> None:
    replaying("works")

    def options(**given: Any) -> dict[str, str]:
        return dict(Model(model_path, sessions=session_factory("cuda", **given))._session._session.options)  # type: ignore[union-attr]

    assert options() == {"use_tf32": "0"}
    assert options(device_id=2, memory_limit=2**20) == {"use_tf32": "0", "device_id": "2", "gpu_mem_limit": "1048576"}
    assert options(options={"use_tf32": "1"}) == {"use_tf32": "1"}


# 5: no kernel. Real, because the CPU's wheels include the Azure provider, which has no kernels for this network.


@has_azure
def test_a_provider_that_would_leave_nodes_to_the_cpu_is_rejected_with_their_names(model_path: Path) -> None:
    assert refusal("--model", model_path, "--provider", "azure") == (
        "--provider (or DIGITS_PROVIDER) is 'azure', but it has no kernel for ArgMax, Cast, Gemm, Sigmoid of the "
        "model, which the CPU would have run"
    )


def test_an_invalid_file_is_reported_before_the_provider(tmp_path: Path) -> None:
    assert refusal("--model", tmp_path / "model.onnx", "--provider", "azure").endswith("`python -m export onnx`")


# Two builds of ONNX Runtime in one environment.


@for_the_cpu
def test_two_builds_of_onnx_runtime_are_rejected_by_name(model_path: Path, tmp_path: Path) -> None:
    metadata = tmp_path / "onnxruntime_gpu-1.31.1.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.31.1\n")
    assert refusal("--model", model_path, env={"PYTHONPATH": str(tmp_path)}) == (
        "onnxruntime and onnxruntime-gpu are both installed and have overwritten each other's files: `pip uninstall "
        "onnxruntime onnxruntime-gpu`, then install the one that you want"
    )


# Messages of ONNX Runtime, and the explanations for the operator.


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (fake_onnxruntime.CALL.format("CUDA failure 35: CUDA driver version is insufficient"), "driver is too old"),
        (fake_onnxruntime.CALL.format("CUDA failure 101: invalid device ordinal"), "there is no device of that number"),
        (fake_onnxruntime.NO_MEMORY, "CUDA reports 2: out of memory"),
        (fake_onnxruntime.ILLEGAL, "CUDA reports 700: an illegal memory access was encountered"),
        (fake_onnxruntime.NOT_LOADED.format("libnvinfer.so.10"), "libnvinfer.so.10 is missing: install TensorRT"),
        (fake_onnxruntime.NOT_LOADED.format("libhsa.so.1"), "the library libhsa.so.1 is missing"),
        (fake_onnxruntime.UNKNOWN_OPTION, "it has no option nonsense: see --provider-options"),
        ("x.cc:1 f() Invalid OpenVINO EP option: nonsense\n", "it has no option nonsense: see --provider-options"),
        ('Failed to parse provider option "use_tf32": parse_string.h:116', "it does not take the value of its option"),
        (
            fake_onnxruntime.OPENVINO_THREADS,
            "ONNX Runtime: [ERROR] [OpenVINO-EP] Number of threads should be a number.",
        ),
        ("", "nothing"),
    ],
)
def test_a_message_of_onnx_runtime_is_explained_in_one_line_without_paths(said: str, told: str) -> None:
    assert told in explain(said)
    assert "hostname" not in explain(said)
    assert "\n" not in explain(said)


@given(said=st.text(max_size=400))
def test_any_message_of_onnx_runtime_becomes_one_line(said: str) -> None:
    assert len(explain(said).splitlines()) == 1


# The graph for a device.


@given(names=st.sets(st.sampled_from([*OUTPUTS, "W1", "b3"])))
def test_the_model_with_fewer_outputs_gives_the_same_results(model_path: Path, names: set[str]) -> None:
    expected = onnx.load(model_path)
    kept = [output for output in expected.graph.output if output.name in names]
    del expected.graph.output[:]
    expected.graph.output.extend(kept)
    assert onnx.load_from_string(keep_outputs(model_path.read_bytes(), names)) == expected


def test_every_wire_type_is_skipped_and_an_invalid_one_is_an_error() -> None:
    fields = b"\x08\x96\x01" + b"\x11" + b"12345678" + b"\x1d" + b"1234" + b"\x22\x02ab"
    assert keep_outputs(fields, OUTPUTS) == fields
    with pytest.raises(ValueError, match="no fields of wire type 3"):
        keep_outputs(b"\x0b", OUTPUTS)


# Options.


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("device_type=CPU", {"device_type": "CPU"}),
        ("a=1, b = x=y ,c=", {"a": "1", "b": "x=y", "c": ""}),
        ('{"a": 1, "b": true, "c": "x,y"}', {"a": "1", "b": "true", "c": "x,y"}),
    ],
)
def test_provider_options_are_pairs_or_a_json_object(text: str, options: dict[str, str]) -> None:
    assert parsed_options(text) == options
    assert load(["--provider", "openvino", f"--provider-options={text}"]).provider_options == text


@pytest.mark.parametrize(
    ("arguments", "refused"),
    [
        (["--provider", "CUDA"], "--provider (or DIGITS_PROVIDER) is 'CUDA'; expected a match of"),
        (
            ["--provider", "openvino", "--provider-options", "device_type"],
            "--provider-options (or DIGITS_PROVIDER_OPTIONS) is 'device_type'; expected key=value,key=value or a JSON",
        ),
        (
            ["--provider", "openvino", "--provider-options", '{"a": []}'],
            "expected strings, numbers and booleans",
        ),
        (["--provider", "openvino", "--provider-options", "{"], "expected key=value,key=value or a JSON object"),
        (["--provider-options", "a=b"], "--provider (or DIGITS_PROVIDER) is 'auto'; expected its name"),
        (["--provider", "cpu", "--device-id", "1"], "--device-id (or DIGITS_DEVICE_ID) without a device: --provider"),
        (["--provider", "openvino", "--gpu-memory-limit", "1GiB"], "is 'openvino'; expected auto or cuda"),
        (
            ["--gpu-memory-limit", "1GB"],
            "--gpu-memory-limit (or DIGITS_GPU_MEMORY_LIMIT) is '1GB'; expected a match of",
        ),
    ],
)
def test_invalid_options_are_rejected_by_name(arguments: list[str], refused: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(arguments)
    assert refused in str(caught.value)


@pytest.mark.parametrize(("text", "size"), [("4096", 4096), ("512MiB", 2**29), ("2GiB", 2**31)])
def test_a_memory_limit_is_in_bytes_or_a_unit(text: str, size: int) -> None:
    assert load([f"--gpu-memory-limit={text}"]).gpu_memory_bytes == size


def test_by_default_there_are_no_provider_options_and_no_memory_limit() -> None:
    assert load([]).gpu_memory_bytes == 0
    assert parsed_options(load([]).provider_options) == {}


# The process that determines the reason.


@has_azure
def test_the_probe_process_names_the_operators_that_the_cpu_would_run(model_path: Path) -> None:
    command = [sys.executable, "-m", "service.inference.provider_diagnostics", "AzureExecutionProvider", "{}"]
    asked = subprocess.run(command, cwd=ROOT, input=model_path.read_bytes(), capture_output=True, check=True)
    assert asked.stdout.decode() == '["ArgMax", "Cast", "Gemm", "Sigmoid"]\n'
    assert asked.stderr == b""


def failing_on_ink(model_path: Path, path: Path) -> Path:
    """Add a lookup without an entry for a pixel of 255 to the network, so that ONNX Runtime fails a run."""
    model = onnx.load(model_path)
    for node in model.graph.node:
        node.input[:] = ["looked" if name == "ink" else name for name in node.input]
    lookup = [
        helper.make_node("Cast", ["pixels"], ["index"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "index"], ["nothing"]),
        helper.make_node("Add", ["ink", "nothing"], ["looked"]),
    ]
    for place, node in enumerate(lookup):
        model.graph.node.insert(1 + place, node)
    model.graph.initializer.append(helper.make_tensor("table", TensorProto.FLOAT, [255], np.zeros(255)))
    path.write_bytes(sealed(model))
    return path


def test_a_failed_run_on_the_cpu_is_not_a_device_failure(model_path: Path, tmp_path: Path) -> None:
    model = Model(failing_on_ink(model_path, tmp_path / "model.onnx"))
    model.predict(np.full((1, 784), 254, np.uint8))
    with pytest.raises(Exception, match="indices element out of data bounds"):
        model.predict(np.full((1, 784), 255, np.uint8))
