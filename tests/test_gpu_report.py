"""The report of a machine with a GPU lists completed, failed and unfinished suites."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from conftest import ROOT

if TYPE_CHECKING:
    from pathlib import Path

sys.path.insert(0, str(ROOT / "scripts"))
try:
    import gpu_report
finally:
    sys.path.pop(0)


def test_a_suite_is_reported_with_counts_failures_and_reasons_to_skip(tmp_path: Path) -> None:
    results = tmp_path / "tests.xml"
    results.write_text(
        '<testsuites><testsuite><testcase name="a" time="1.5"/><testcase name="b" time="1"><failure/></testcase>'
        '<testcase name="c"><skipped message="no GPU"/></testcase><testcase name="d"><skipped message="no GPU"/>'
        "</testcase></testsuite></testsuites>"
    )
    assert gpu_report.outcome(results).splitlines() == [
        "1 passed, 1 failed, 2 skipped; 2 s of all workers together.",
        "",
        "- failed: b",
        "- skipped 2: no GPU",
    ]


def test_unfinished_and_missing_suites_are_in_the_report() -> None:
    _, ended = gpu_report.run([sys.executable, "-c", "import time; time.sleep(600)"], 0.1)
    assert ended == "did not finish within 0.1 s"
    assert gpu_report.run(["no-such-command"], 60)[1] == "no-such-command is not installed"
    output, ended = gpu_report.run([sys.executable, "-c", "print(1); raise SystemExit('why')"], 60)
    assert (output, ended) == ("1\n", "ended with status 1: why\n")
    report = gpu_report.render([gpu_report.Part("Bench", "a table"), gpu_report.Part("Tests", "", ended)], 9.6)
    assert report.splitlines()[2].endswith("took 10 s.")
    assert "## Bench\n\na table\n" in report
    assert "**ended with status 1: why" in report


def test_the_parts_together_end_within_six_minutes() -> None:
    parts = 3 * gpu_report.COMMAND_DEADLINE + 2 * gpu_report.TEST_DEADLINE + 2 * gpu_report.BENCH_DEADLINE
    assert parts < 420, "the two calls of nvidia-smi take less than a second"
    assert parts - 2 * gpu_report.COMMAND_DEADLINE < 360


@pytest.mark.parametrize("name", list(gpu_report.SUITES))
def test_every_suite_exists(name: str) -> None:
    assert all((ROOT / file).exists() for file in gpu_report.SUITES[name])
