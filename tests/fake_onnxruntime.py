"""A replay of ONNX Runtime's behaviour with CUDA, for machines without it. Only this boundary is replayed.

    python tests/fake_onnxruntime.py [options of the service]

REPLAY names the behaviour. Exceptions and output were recorded from onnxruntime-gpu 1.31.1 on a machine without a GPU.
The failure of a run has the same form. A working session computes on the CPU and reports CUDA.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import onnxruntime as ort

from service.inference import built_in, provider_diagnostics

CUDA = "CUDAExecutionProvider"
CALL = (
    "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:154 std::conditional_t<THRW, void, onnxruntime::"
    "common::Status> onnxruntime::CudaCall(ERRTYPE, const char*, const char*, SUCCTYPE, const char*, const char*, int) "
    "[with ERRTYPE = cudaError; bool THRW = true; SUCCTYPE = cudaError; std::conditional_t<THRW, void, common::Status> "
    "= void] {} ; GPU=-1 ; hostname=vm ; file=/onnxruntime_src/onnxruntime/core/providers/cuda/"
    "cuda_execution_provider.cc ; line=317 ; expr=cudaSetDevice(info_.device_id); "
)
LEFT_TO_THE_CPU = (
    "[ONNXRuntimeError] : 1 : FAIL : This session contains graph nodes that are assigned to the default CPU EP, but "
    "fallback to CPU EP has been explicitly disabled by the user."
)
NOT_LOADED = (
    "\x1b[1;31m2026-11-25 01:53:36.516391143 [E:onnxruntime:Default, provider_bridge_ort.cc:2458 operator()] "
    "/onnxruntime_src/onnxruntime/core/session/provider_bridge_ort.cc:2043 onnxruntime::Provider& "
    "onnxruntime::ProviderLibrary::Get() [ONNXRuntimeError] : 1 : FAIL : Failed to load library /venv/onnxruntime/capi/"
    "libonnxruntime_providers_cuda.so with error: {}: cannot open shared object file: No such file or directory\n"
    "\x1b[m\n"
)
UNKNOWN_OPTION = (
    "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_execution_provider_info.cc:63 static onnxruntime::"
    "CUDAExecutionProviderInfo onnxruntime::CUDAExecutionProviderInfo::FromProviderOptions(const onnxruntime::"
    "ProviderOptions&) [ONNXRuntimeError] : 1 : FAIL : provider_options_utils.h:182 Parse Unknown provider "
    'option: "nonsense".'
)
OPENVINO_THREADS = (
    "\x1b[1;31m2026-11-25 02:03:33.089738764 [E:onnxruntime:Default, provider_bridge_ort.cc:2310 Create] /onnxruntime/"
    "onnxruntime/core/providers/openvino/openvino_provider_factory.cc:332 void onnxruntime::openvino_ep::"
    "ParseProviderInfo(const onnxruntime::ProviderOptions&, const onnxruntime::ConfigOptions*, ProviderInfo&) [ERROR] "
    "[OpenVINO-EP] Number of threads should be a number. \n\x1b[m"
)
ILLEGAL = CALL.format("CUDA failure 700: an illegal memory access was encountered")
NO_MEMORY = CALL.format("CUDA failure 2: out of memory")
HANGS = "hangs"
_Session = ort.InferenceSession


class Replayed(_Session):  # type: ignore[misc]
    """A session with the behaviour of REPLAY. While the file REPLAY_BROKEN exists, the device fails or hangs."""

    def __init__(self, content: bytes, options: ort.SessionOptions, *, providers: list[Any], **more: Any) -> None:
        self.on_cuda = providers != ["CPUExecutionProvider"]
        if not self.on_cuda:
            super().__init__(content, options, providers=providers)
            return
        assert options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
        assert more == {"enable_fallback": 0}
        [(provider, self.options)] = providers
        assert provider == CUDA
        replay = os.environ.get("REPLAY", "works")
        if replay in ("no library", "no driver", "no kernel"):
            raise RuntimeError(LEFT_TO_THE_CPU)
        if replay == "no device":
            raise RuntimeError(CALL.format("CUDA failure 100: no CUDA-capable device is detected"))
        _break_if_broken()
        super().__init__(content, providers=["CPUExecutionProvider"])

    def get_providers(self) -> list[str]:
        return [CUDA, "CPUExecutionProvider"] if self.on_cuda else list(super().get_providers())

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        return {CUDA: {"device_id": "0", "use_tf32": "1", "gpu_mem_limit": "1", **self.options}}

    def get_provider_graph_assignment_info(self) -> list[Any]:
        elsewhere = "CPUExecutionProvider" if os.environ.get("REPLAY") == "one node elsewhere" else CUDA
        on = [(CUDA, "Gemm"), (elsewhere, "ArgMax")]
        return [SimpleNamespace(ep_name=name, get_nodes=lambda op=op: [SimpleNamespace(op_type=op)]) for name, op in on]

    def run(self, names: Any, feeds: Any, *more: Any) -> Any:
        if self.on_cuda:
            _break_if_broken()
        found = super().run(names, feeds, *more)
        if self.on_cuda and os.environ.get("REPLAY") == "other answers":
            found[1] = found[1] + 0.001
        return found


def _break_if_broken() -> None:
    broken = Path(os.environ.get("REPLAY_BROKEN", "/nowhere"))
    if broken.exists() and broken.read_text() != HANGS:
        raise RuntimeError(ILLEGAL)
    while broken.exists():
        time.sleep(0.01)


def probe(provider: str, _: bytes, __: dict[str, str]) -> tuple[str, list[str]]:
    """Replay the result of `service.inference.provider_diagnostics.probe`."""
    assert provider == CUDA
    return {
        "no library": (NOT_LOADED.format("libcublasLt.so.13"), []),
        "no driver": (NOT_LOADED.format("libcuda.so.1"), []),
    }.get(os.environ["REPLAY"], ("", ["ArgMax"]))


def available() -> list[str]:
    """Replay `get_available_providers` of that wheel."""
    return ["TensorrtExecutionProvider", CUDA, "CPUExecutionProvider"]


def replay() -> None:
    """Start the replay in this process."""
    built_in.ort.InferenceSession = Replayed
    built_in.ort.get_available_providers = available
    provider_diagnostics.probe = probe


if __name__ == "__main__":
    from service.__main__ import main

    replay()
    sys.exit(main())
