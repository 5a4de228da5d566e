"""Why an execution provider could not take the model, in one sentence, where ONNX Runtime tells it on standard error.

`python -m service.inference.provider_diagnostics PROVIDER OPTIONS` is the process that is asked: what it says is
heard without touching the log of the one that serves.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys

WITHIN = 60  # seconds; loading CUDA for the first time takes some

_REASONS = {
    r"(libcuda\.so\.1|nvcuda\.dll)": """the NVIDIA driver ({0}) is missing: install it, or start the container with its
        GPU, which takes the NVIDIA container toolkit (`docker run --gpus all`)""",
    r"(lib(?:cudnn|cublas|cudart|cufft|curand|nvrtc|nvJitLink)\w*\.so[.\d]*): cannot open": """NVIDIA's library {0} is
        missing: `make gpu` installs it, or pip install 'onnxruntime-gpu[cuda,cudnn]'""",
    r"(libnvinfer\w*\.so[.\d]*): cannot open|Please install (TensorRT) libraries": """{0} is missing: install TensorRT
        from NVIDIA's packages""",
    r"(lib[\w.+-]*\.so[.\d]*): cannot open": "the library {0} is missing: install the package that has it",
    r"CUDA failure (35): ": """the NVIDIA driver is too old for the CUDA of this ONNX Runtime (CUDA failure {0}): update
        it; `nvidia-smi` shows both versions""",
    r"CUDA failure (100): ": """there is no NVIDIA GPU (CUDA failure {0}): `nvidia-smi` must list one, and
        CUDA_VISIBLE_DEVICES must not hide it""",
    r"CUDA failure (101): |Invalid (device_id|device ordinal)": """there is no device of that number ({0}): see
        --device-id, and `nvidia-smi` for those that there are""",
    r"CUDA failure (\d+: [^;\n]*\w)": "CUDA says {0}",
    r'(?:Unknown provider option: "|Invalid \w+ EP option: )(\w+)': "it has no option {0}: see --provider-options",
    r'Failed to parse provider option "(\w+)"': "it does not take the value of its option {0}: see --provider-options",
    r"(Device \S+ is not available)": "ONNX Runtime says: {0}",
}
"""Patterns in what ONNX Runtime says, and what each means to an operator; the first that is found counts."""

_PLACES = (
    r"\x1b\[[0-9;]*m",
    r"^.*\[E:onnxruntime[^]]*\] ",
    r"/onnxruntime\S* .*?\)(?:::<.*?\)>)? ",
    r"\[ONNXRuntimeError\] : \d+ : \w+ : ",
)
"""What stands around its words: colours, the time, and where in its source it says them."""


def sentence(said: str) -> str:
    """What ONNX Runtime said, as one sentence for the operator: what is missing and how to get it."""
    for pattern, meaning in _REASONS.items():
        if found := re.search(pattern, said):
            return " ".join(meaning.split()).format(next(group for group in found.groups() if group))
    lines = [line for line in said.splitlines() if line.strip()] or ["nothing"]
    words = next((line for line in lines if "[E:onnxruntime" in line), lines[0])
    for place in _PLACES:
        words = re.sub(place, "", words)
    return f"ONNX Runtime says: {words.strip()[:300]}"


def ask(provider: str, content: bytes, options: dict[str, str]) -> tuple[str, list[str]]:
    """What `provider` says while a session of the model is made, and the operators that it leaves to the CPU."""
    asked = subprocess.run(  # noqa: S603 (this module, by the interpreter that runs it)
        [sys.executable, "-m", "service.inference.provider_diagnostics", provider, json.dumps(options)],
        input=content,
        capture_output=True,
        timeout=WITHIN,
        check=False,
    )
    said = asked.stderr.decode(errors="replace")
    return said, json.loads(asked.stdout) if asked.returncode == 0 else []


def main(provider: str, options: str) -> None:
    """Make the session as ONNX Runtime does by itself, and print the operators that went to the CPU."""
    import onnxruntime as ort  # noqa: PLC0415 (in the process that is asked alone)

    with contextlib.redirect_stdout(io.StringIO()):
        ort.preload_dlls()
    ort.set_default_logger_severity(3)
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = ort.InferenceSession(sys.stdin.buffer.read(), settings, providers=[(provider, json.loads(options))])
    parts = session.get_provider_graph_assignment_info()
    print(json.dumps(sorted({node.op_type for part in parts if part.ep_name != provider for node in part.get_nodes()})))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
