"""Explain in one sentence why an execution provider cannot run the model; ONNX Runtime writes it to standard error.

`python -m service.inference.provider_diagnostics PROVIDER OPTIONS` is the probe process: its standard
error is read without touching the server's log.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys

PROBE_TIMEOUT = 60  # seconds; loading CUDA for the first time takes some

_EXPLANATIONS = {
    r"(libcuda\.so\.1|nvcuda\.dll)": """the NVIDIA driver ({0}) is missing: install it, or start the container with its
        GPU, which takes the NVIDIA container toolkit (`docker run --gpus all`)""",
    r"(lib(?:cudnn|cublas|cudart|cufft|curand|nvrtc|nvJitLink)\w*\.so[.\d]*): cannot open": """NVIDIA's library {0} is
        missing: `make gpu` installs it, or pip install 'onnxruntime-gpu[cuda,cudnn]'""",
    r"(libnvinfer\w*\.so[.\d]*): cannot open|Please install (TensorRT) libraries": """{0} is missing: install TensorRT
        from NVIDIA's packages""",
    r"Failed to get symbol CreateEpFactories with error: (\S+): ": """{0} is no plugin of ONNX Runtime: it has no
        CreateEpFactories""",
    r'below the minimum required version "([\d.]+)"': "it needs onnxruntime {0} or newer: pip install -U onnxruntime",
    r"(lib[\w.+-]*\.so[.\d]*): cannot open": "the library {0} is missing: install the package that has it",
    r"CUDA failure (35): ": """the NVIDIA driver is too old for the CUDA of this ONNX Runtime (CUDA failure {0}): update
        it; `nvidia-smi` shows both versions""",
    r"CUDA failure (100): ": """there is no NVIDIA GPU (CUDA failure {0}): `nvidia-smi` must list one, and
        CUDA_VISIBLE_DEVICES must not hide it""",
    r"CUDA failure (101): |Invalid (device_id|device ordinal)": """there is no device of that number ({0}): see
        --device-id, and `nvidia-smi` for those that there are""",
    r"CUDA failure (\d+: [^;\n]*\w)": "CUDA reports {0}",
    r'(?:Unknown provider option: "|Invalid \w+ EP option: )(\w+)': "it has no option {0}: see --provider-options",
    r'Failed to parse provider option "(\w+)"': "it does not take the value of its option {0}: see --provider-options",
    r"(Device \S+ is not available)": "ONNX Runtime: {0}",
    r"Failed to load library \S+ with error: ([^\n]+)": "its library does not load: {0}",
    r"Failed to get a WebGPU (adapter): ": "WebGPU finds no {0}: look at `vulkaninfo --summary`",
    r"\[Device\] is (lost)": "the device is {0}",
    r"is invalid (due to a previous error)": "a buffer is invalid {0}, such as too little memory on the device",
}
"""Patterns in ONNX Runtime's messages, and the operator's explanation of each; the first match counts."""

_NOISE = (
    r"\x1b\[[0-9;]*m",
    r"^.*\[E:onnxruntime[^]]*\] ",
    r"/onnxruntime\S* .*?\)(?:::<.*?\)>)? ",
    r"\[ONNXRuntimeError\] : \d+ : \w+ : ",
)
"""Text around its messages: colours, the time, and the place in its source."""


def explain(message: str) -> str:
    """Return ONNX Runtime's message as one line for the operator: the missing part and its remedy."""
    for pattern, meaning in _EXPLANATIONS.items():
        if match := re.search(pattern, message):
            return " ".join(meaning.split()).format(next(group for group in match.groups() if group))
    lines = [line for line in message.splitlines() if line.strip()] or ["nothing"]
    words = next((line for line in lines if "[E:onnxruntime" in line), lines[0])
    for place in _NOISE:
        words = re.sub(place, "", words)
    return f"ONNX Runtime: {words.strip()[:300]}"


def session_fault(message: str) -> str:
    """Return the fault of a session that no run can use again, from ONNX Runtime's message; else an empty string."""
    if "[Device] is lost" in message:
        return "lost its device"
    if "is invalid due to a previous error" in message:
        return "had no memory for a buffer"  # WebGPU keeps it, and gives it to every later run of that size
    return ""


def probe(provider: str, content: bytes, options: dict[str, str]) -> tuple[str, list[str]]:
    """Return the output of `provider` while it creates a session, and the operators that it leaves to the CPU."""
    completed = subprocess.run(  # noqa: S603 (this module, by the interpreter that runs it)
        [sys.executable, "-m", "service.inference.provider_diagnostics", provider, json.dumps(options)],
        input=content,
        capture_output=True,
        timeout=PROBE_TIMEOUT,
        check=False,
    )
    message = completed.stderr.decode(errors="replace")
    return message, json.loads(completed.stdout) if completed.returncode == 0 else []


def main(provider: str, options: str) -> None:
    """Make the session as ONNX Runtime does by itself, and print the operators that went to the CPU."""
    import onnxruntime as ort  # noqa: PLC0415 (in the probe process alone)

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
