"""python -m fuzz TARGET [libFuzzer's options]: coverage-guided, from the seeds, until -runs or -max_total_time."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["service", "client", "export", "google.protobuf", "PIL"]):
    from fuzz import targets
    from fuzz.seeds import seeds


def main() -> None:
    """Fuzz one target; a failing input is written to a file crash-*, for a regression test."""
    targets.no_environment()
    known = targets.targets()
    if len(sys.argv) < 2 or sys.argv[1] not in known:
        sys.exit(f"python -m fuzz TARGET [-runs=1000000] [-max_total_time=60]; TARGET is one of {', '.join(known)}")
    name = sys.argv.pop(1)
    corpus = Path("build") / "fuzz" / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds(name)):
        (corpus / f"seed-{number}").write_bytes(seed)
    options = [f"-artifact_prefix={corpus.parent}/{name}-", "-timeout=20", "-rss_limit_mb=4096", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, *sys.argv[1:], str(corpus)], known[name]())
    atheris.Fuzz()


if __name__ == "__main__":
    main()
