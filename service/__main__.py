"""python -m service: serve model.onnx until SIGTERM or SIGINT."""

from __future__ import annotations

import os
import signal
import sys
import time

_PROCESS_START = time.monotonic()

# Imports are not prepared for KeyboardInterrupt, and while the model is loaded the event loop hears of no signal.
if __name__ == "__main__" or sys.argv[0].rpartition(os.sep)[2] == "digitserve":
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import asyncio
import ctypes
import platform
from typing import TYPE_CHECKING

from service.config import SettingsError, load, unknown_variables

if TYPE_CHECKING:
    from collections.abc import Callable

# The C core of gRPC writes to standard error in a format of its own; what matters of it reaches us as an exception.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
# Connections are read by the one thread that hands their calls to Python. The event engine, grpcio's default, passes
# each read from thread to thread, which costs 90 us a call and a third of the CPU of a large one. Read at its import.
GRPC_EXPERIMENTS = "-event_engine_listener"
os.environ.setdefault("GRPC_EXPERIMENTS", GRPC_EXPERIMENTS)

_STANDARD_ERROR = 2
_M_ARENA_MAX, _M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -8, -3, -1  # of malloc.h


def main() -> int:
    """Exit status: 0 after a clean stop, 1 where the server cannot start, 2 for a bad option."""
    keep_standard_error()
    try:
        settings = load(sys.argv[1:])
    except SettingsError as e:
        print(e, file=sys.stderr)  # noqa: T201 (before there is a log)
        return 2
    # Imported late: --help and a bad option answer at once.
    from service.errors import StartError  # noqa: PLC0415
    from service.observability.logs import capture_libraries, make_logger  # noqa: PLC0415
    from service.runtime.lifecycle import run  # noqa: PLC0415
    from service.runtime.server import compose  # noqa: PLC0415

    keep_memory_together()
    log = make_logger(settings.log_format, settings.log_level)
    capture_libraries(log)
    # As SIGINT: nobody is owed an answer before it serves. Without a word: the log's writer may be what is interrupted.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    log.info("starting", **settings.described())
    for name, meant in unknown_variables(os.environ).items():
        log.warning("unknown variable", variable=name, **({"suggestion": meant} if meant else {}))
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(run(compose, settings, log, _PROCESS_START))
    except StartError as e:
        log.error("cannot start", reason=str(e))  # noqa: TRY400 (one sentence for the operator, no traceback)
        return 1
    return 0


def keep_standard_error() -> None:
    """Where the process was started without one, nothing else may get its number, and what libraries print into it."""
    if sys.stderr is None:
        while os.open(os.devnull, os.O_RDWR) < _STANDARD_ERROR:
            pass


def keep_memory_together() -> None:
    """Let glibc's threads share two heaps, where each would have one of its own and give back nothing of it.

    Every model that is loaded while the server serves would otherwise leave some of its memory in another heap.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_ARENA_MAX, 2)
        libc.mallopt(_M_MMAP_THRESHOLD, 2**20)  # more than the largest batch takes: what is larger goes back at once
        libc.mallopt(_M_TRIM_THRESHOLD, 2**24)  # room for some batches stays: a page given back is a fault at the next


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The faster uvloop where there is one, else asyncio's own."""
    try:
        import uvloop  # noqa: PLC0415 (not on Windows)
    except ImportError:
        return None
    return uvloop.new_event_loop


if __name__ == "__main__":
    sys.exit(main())
