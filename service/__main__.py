"""python -m service: serve model.onnx until SIGTERM or SIGINT."""

from __future__ import annotations

import os
import signal
import sys
import time

_PROCESS_START = time.monotonic()

# An import does not handle KeyboardInterrupt, and the event loop handles no signal while the model loads.
if __name__ == "__main__" or sys.argv[0].endswith("digitserve serve"):
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import asyncio
import ctypes
import platform
from typing import TYPE_CHECKING

from service.config import SettingsError, load
from service.environment import unknown_variables

if TYPE_CHECKING:
    from collections.abc import Callable

# The C core of gRPC writes to standard error in its own format; its errors reach us as exceptions.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
# The thread that passes calls to Python reads the connections too. grpcio's default, the event engine, passes each read
# between threads. That costs 90 us per call, and a third of the CPU of a large one. Read when grpc is imported.
GRPC_EXPERIMENTS = "-event_engine_listener"
os.environ.setdefault("GRPC_EXPERIMENTS", GRPC_EXPERIMENTS)

_STANDARD_ERROR = 2
_M_ARENA_MAX, _M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -8, -3, -1  # of malloc.h


def main() -> int:
    """Run the server; return its exit status: 0 after a clean stop, 1 if it cannot start, 2 for an invalid option."""
    reserve_standard_streams()
    try:
        settings = load(sys.argv[1:])
    except SettingsError as e:
        print(e, file=sys.stderr)  # noqa: T201 (before there is a log)
        return 2
    # Imported late, so that --help and an invalid option answer at once.
    from service.errors import StartError  # noqa: PLC0415
    from service.observability.logs import capture_libraries, make_logger  # noqa: PLC0415
    from service.runtime.components import provider_table  # noqa: PLC0415
    from service.runtime.lifecycle import run  # noqa: PLC0415
    from service.runtime.server import compose  # noqa: PLC0415

    limit_malloc_arenas()
    log = make_logger(settings.log_format, settings.log_level)
    capture_libraries(log)
    if settings.list_providers:
        print(provider_table(settings, log), end="")  # noqa: T201 (the option's purpose)
        return 0
    # As SIGINT: no client waits before it serves. Without a log line: the signal may interrupt the log itself.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    log.info("starting", **settings.described())
    for name, suggestion in unknown_variables(os.environ).items():
        log.warning("unknown variable", variable=name, **({"suggestion": suggestion} if suggestion else {}))
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(run(compose, settings, log, _PROCESS_START))
    except StartError as e:
        log.error("cannot start", reason=str(e))  # noqa: TRY400 (one sentence for the operator, no traceback)
        return 1
    return 0


def reserve_standard_streams() -> None:
    """Open /dev/null for closed standard streams, so that no other file gets their descriptors."""
    if sys.stderr is None:
        while os.open(os.devnull, os.O_RDWR) < _STANDARD_ERROR:
            pass


def limit_malloc_arenas() -> None:
    """Let the threads share two malloc arenas of glibc: by default each has its own, and none returns its memory.

    Otherwise each reload of the model leaves some of its memory in another arena.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_ARENA_MAX, 2)
        libc.mallopt(_M_MMAP_THRESHOLD, 2**20)  # above the largest batch; larger blocks are returned at once
        libc.mallopt(
            _M_TRIM_THRESHOLD, 2**24
        )  # keeps memory for some batches: each returned page costs a page fault later


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return the factory of uvloop, which is faster, or None for asyncio's own loop."""
    try:
        import uvloop  # noqa: PLC0415 (not on Windows)
    except ImportError:
        return None
    return uvloop.new_event_loop


if __name__ == "__main__":
    sys.exit(main())
