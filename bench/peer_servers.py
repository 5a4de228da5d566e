"""The peers: how MLServer, KServe and Triton are set up to serve the same model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from bench.server import ABOUT, LOG, ROOT, Server, ServerUnavailable

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

    return Server("mlserver", ABOUT["mlserver"], command)


def kserve() -> Server:
    """Return KServe in an environment of its own."""
    python = _environment("kserve")

    def command(port: int, http: int) -> list[str]:
        return [str(python), str(PEERS / "kserve" / "server.py"), str(port), str(http)]

    return Server("kserve", ABOUT["kserve"], command)


def triton() -> Server:
    """Return Triton in an environment of its own."""
    python = _environment("triton")
    site = next(python.parent.parent.glob("lib/python3*/site-packages"))
    shipped, folder = site / "pytriton" / "tritonserver", LOG / "triton"

    def command(port: int, http: int) -> list[str]:
        shutil.rmtree(folder, ignore_errors=True)
        backend, model = folder / "backends" / "python", folder / "models" / "digits"
        shutil.copytree(shipped / "backends" / "python", backend)
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        shutil.copy(shipped / "python_backend_stubs" / version / "triton_python_backend_stub", backend)
        (model / "1").mkdir(parents=True)
        shutil.copy(PEERS / "triton" / "config.pbtxt", model)
        shutil.copy(PEERS / "triton" / "model.py", model / "1")
        return [
            *(str(shipped / "bin" / "tritonserver"), f"--model-repository={folder / 'models'}"),
            *(f"--backend-directory={folder / 'backends'}", f"--grpc-port={port}", f"--http-port={http}"),
            "--allow-metrics=false",
        ]

    environment = {
        "LD_LIBRARY_PATH": str(site / "nvidia_pytriton.libs"),
        "PATH": f"{python.parent}:{os.environ['PATH']}",
    }
    return Server("triton", ABOUT["triton"], command, environment=environment)


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
