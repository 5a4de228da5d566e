"""digitserve, and python -m digitserve: one program for serving, exporting, predicting and scoring."""

from __future__ import annotations

from commandline import startup

startup.exit_on_interrupt(__name__)

import sys

from digitserve import programs


def main() -> int:
    """Run a command; return the exit status that its `--help` documents."""
    if sys.argv[1:2] and sys.argv[1] in programs.PROGRAMS:
        return programs.run(sys.argv[1], sys.argv[2:])
    from commandline import streams  # noqa: PLC0415 (a program above has its own imports)
    from digitserve.commands import app  # noqa: PLC0415 (as above)

    return streams.run(app)


if __name__ == "__main__":
    sys.exit(main())
