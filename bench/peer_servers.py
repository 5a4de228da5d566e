"""The peers: how MLServer, KServe and Triton are set up to serve the same model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bench.messages import INFER
from bench.server import ABOUT, LOG, MODEL, ROOT, Server, ServerUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

PEERS = Path(__file__).parent / "peers"


def mlserver() -> Server:
    """Return MLServer in an environment of its own."""
    python = _environment("mlserver")
    folder = LOG / "mlserver"

    def command(port: int, http: int) -> list[str]:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(PEERS / "mlserver" / "runtime.py", folder)
        settings = {"name": "digits", "implementation": "runtime.Digits"}
        (folder / "model-settings.json").write_text(json.dumps(settings))
        # As its documentation advises for light models: no worker processes.
        options = {
            "http_port": http,
            "grpc_port": port,
            "metrics_port": 0,
            "parallel_workers": 0,
            "debug": False,
            "grpc_max_message_length": 2**30,
            "metrics_endpoint": None,
        }
        (folder / "settings.json").write_text(json.dumps(options))
        return [str(python.with_name("mlserver")), "start", str(folder)]

    return Server("mlserver", ABOUT["mlserver"], command, (INFER,))  # no binary tensors over HTTP


def kserve() -> Server:
    """Return KServe in an environment of its own."""
    python = _environment("kserve")

    def command(port: int, http: int) -> list[str]:
        return [str(python), str(PEERS / "kserve" / "server.py"), str(port), str(http)]

    return Server("kserve", ABOUT["kserve"], command)


def triton() -> Server:
    """Return Triton with its Python backend, in an environment of its own."""
    python = _environment("triton")
    shipped = _site_packages(python) / "pytriton" / "tritonserver"

    def backend(folder: Path) -> None:
        shutil.copytree(shipped / "backends" / "python", folder)
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        shutil.copy(shipped / "python_backend_stubs" / version / "triton_python_backend_stub", folder)

    config = (PEERS / "triton" / "config.pbtxt").read_text()
    return _triton("triton", python, ("python", backend), config, PEERS / "triton" / "model.py")


def triton_onnxruntime() -> Server:
    """Return Triton with its own ONNX Runtime backend, each request a run."""
    return _triton_onnxruntime("triton-onnxruntime", "")


def triton_onnxruntime_batching() -> Server:
    """Return the same with Triton's dynamic batching."""
    return _triton_onnxruntime("triton-onnxruntime-batching", "dynamic_batching { }\n")


def _triton_onnxruntime(name: str, batching: str) -> Server:
    built = _onnxruntime_backend()
    config = (PEERS / "triton-onnxruntime" / "config.pbtxt").read_text() + batching

    def backend(folder: Path) -> None:
        folder.symlink_to(built)

    return _triton(name, _environment("triton"), ("onnxruntime", backend), config, MODEL)


def _onnxruntime_backend() -> Path:
    """Return the folder of the backend, which TRITON_BACKENDS contains."""
    backends = os.environ.get("TRITON_BACKENDS", "")
    folder = Path(backends, "onnxruntime").absolute()
    if not backends or not (folder / "libtriton_onnxruntime.so").exists() or not any(folder.glob("libonnxruntime.so*")):
        raise ServerUnavailable(
            f"TRITON_BACKENDS: {repr(backends) if backends else 'not set'}; expected a folder that contains "
            "onnxruntime/libtriton_onnxruntime.so and onnxruntime/libonnxruntime.so; see docs/performance.md"
        )
    return folder


def _triton(name: str, python: Path, backend: tuple[str, Callable[[Path], None]], config: str, model: Path) -> Server:
    site, folder = _site_packages(python), LOG / name

    def command(port: int, http: int) -> list[str]:
        shutil.rmtree(folder, ignore_errors=True)
        for made in ("backends", "libraries", "models/digits/1"):
            (folder / made).mkdir(parents=True)
        kind, install = backend
        install(folder / "backends" / kind)
        # The wheel's copies have other names; a backend that was built elsewhere needs these.
        for plain, shipped in (
            ("libtritonserver.so", "libtritonserver-*.so"),
            ("libcudart.so.12", "libcudart-*.so.12*"),
        ):
            (folder / "libraries" / plain).symlink_to(next((site / "nvidia_pytriton.libs").glob(shipped)))
        (folder / "models" / "digits" / "config.pbtxt").write_text(config)
        shutil.copy(model, folder / "models" / "digits" / "1")
        return [
            *(str(site / "pytriton" / "tritonserver" / "bin" / "tritonserver"), "--allow-metrics=false"),
            *(f"--model-repository={folder / 'models'}", f"--backend-directory={folder / 'backends'}"),
            *(f"--grpc-port={port}", f"--http-port={http}"),
            "--disable-auto-complete-config",  # which would add dynamic batching to a configuration without it
            "--grpc-infer-allocation-pool-size=128",  # no allocation for as many calls as a row has in flight
        ]

    environment = {
        "LD_LIBRARY_PATH": f"{folder / 'libraries'}:{site / 'nvidia_pytriton.libs'}",
        "PATH": f"{python.parent}:{os.environ['PATH']}",
    }
    return Server(name, ABOUT[name], command, environment=environment)


def _site_packages(python: Path) -> Path:
    return next(python.parent.parent.glob("lib/python3*/site-packages"))


def _environment(peer: str) -> Path:
    """The Python of the peer's own environment, made on first use."""
    folder, wanted = ROOT / ".venv" / "peers" / peer, PEERS / peer / "requirements.txt"
    python, done = folder / "bin" / "python", folder / "installed"
    if not done.exists() or done.read_text() != wanted.read_text():
        print(f"bench: installing {peer} into {folder.relative_to(ROOT)} ...", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(wanted)]
        if subprocess.run(pip, check=False).returncode:
            raise ServerUnavailable(f"pip cannot install {wanted.relative_to(ROOT)}")
        done.write_text(wanted.read_text())
    return python
