"""python tests/e2e/faulty_service.py [options]: the service, with a fault while a file with its name exists.

The folder FAULTS holds the files, each with its fault:

- error: a run of the model raises an exception that the service does not expect.
- slow: a run takes 200 ms longer.
- flaky: every tenth run fails as on a device without memory, with the provider `cuda`.
- device: the device is lost, or a run hangs if the file contains `hangs`, with the provider `cuda`.
- memory: the process holds 450 MB more.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

FAULTS = Path(os.environ["FAULTS"])
os.environ["REPLAY_BROKEN"] = str(FAULTS / "device")
sys.path.insert(0, str(Path(__file__).parent.parent))

import fake_onnxruntime  # noqa: E402 (reads the variable)
import onnxruntime as ort  # noqa: E402 (as above)

from service.__main__ import main  # noqa: E402 (as above)
from service.inference.model import Model  # noqa: E402 (as above)
from service.transports.grpcio import server as grpcio_server  # noqa: E402 (as above)

RUNS = itertools.count()


def is_there(fault: str) -> bool:
    return (FAULTS / fault).exists()


class Faulty(fake_onnxruntime.Replayed):
    """A session with the faults whose files exist."""

    def run(self, names: Any, feeds: Any, *more: Any) -> Any:
        if is_there("slow"):
            time.sleep(0.2)
        if is_there("error"):
            raise LookupError("a fault of the service")
        if is_there("flaky") and next(RUNS) % 10 == 0:
            raise RuntimeError(fake_onnxruntime.NO_MEMORY)
        return super().run(names, feeds, *more)


def hold_memory() -> None:
    held = b""
    while True:
        held = (held or b"x" * 450_000_000) if is_there("memory") else b""
        time.sleep(0.5)


if __name__ == "__main__":
    fake_onnxruntime.replay()
    ort.InferenceSession = Faulty
    Model.float_graph = None  # type: ignore[assignment]  # the session of the native transport would have no faults
    grpcio_server.HAS_KNOWN_INTERNALS = False  # upstream's accept loop, which ends at a path that is not text
    threading.Thread(target=hold_memory, daemon=True).start()
    sys.exit(main())
