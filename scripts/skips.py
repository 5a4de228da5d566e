"""List the tests that no run executed, from pytest's JUnit files; status 1 if one is not accepted.

    python scripts/skips.py build/ci/*.xml

A test that one run skips and another executes is not in the list. tests/accepted_skips.toml lists the accepted ones.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tomllib
from collections import defaultdict
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from xml.etree import ElementTree as ET

ACCEPTED = Path(__file__).parent.parent / "tests" / "accepted_skips.toml"


@dataclass(frozen=True)
class Accepted:
    """Accepted skips for one reason."""

    tests: str
    """A pattern of module or module::test."""
    reason: str
    """A pattern of the reason of the skip."""
    why: str
    without: tuple[str, ...] = ()
    """Commands; if one of them is installed, the skip is not accepted."""

    def covers(self, test: str, reason: str) -> bool:
        """Return whether the skip of that test for that reason is accepted on this machine."""
        if any(map(shutil.which, self.without)):
            return False
        return fnmatchcase(reason, self.reason) and fnmatchcase(test, self.tests)


def read_accepted(path: Path) -> list[Accepted]:
    """Read the entries of the file; raise TypeError for an unknown or missing key."""
    entries = tomllib.loads(path.read_text())["skip"]
    return [Accepted(**{**entry, "without": tuple(entry.get("without", ()))}) for entry in entries]


def skipped(reports: list[Path]) -> dict[str, str]:
    """Return the reason by test, for tests that no report has as executed."""
    reasons, executed = dict[str, str](), set[str]()
    for report in reports:
        for case in ET.parse(report).iter("testcase"):  # noqa: S314 (a file of our pytest)
            name = "::".join(filter(None, (case.get("classname"), case.get("name"))))
            skip = case.find("skipped")
            if skip is None or skip.get("type") == "pytest.xfail":
                executed.add(name)
            else:
                reasons[name] = " ".join(_reason(skip).split())
    return {name: reason for name, reason in reasons.items() if name not in executed}


def _reason(skip: ET.Element) -> str:
    """Return the reason of a skip. For a module, pytest has it as the last element of a tuple."""
    if skip.get("message") != "collection skipped":
        return skip.get("message", "")
    return (skip.text or "").rpartition("Skipped: ")[2].rstrip("')\"")


def main(reports: list[Path], accepted: list[Accepted]) -> int:
    """Print one line for each reason; return the exit status."""
    counts, rejected = defaultdict[str, int](int), dict[str, str]()
    for test, reason in skipped(reports).items():
        accepted_entry = next((entry for entry in accepted if entry.covers(test, reason)), None)
        if accepted_entry is None:
            rejected[test] = reason
        else:
            counts[f"{accepted_entry.tests}: {reason} ({accepted_entry.why})"] += 1
    for line, count in sorted(counts.items()):
        print(f"skipped {count:4} of {line}")
    for test, reason in rejected.items():
        print(f"skipped and not accepted: {test}: {reason}; run it, or add it to {ACCEPTED.name} with a reason")
    return 1 if rejected else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("reports", nargs="+", type=Path, help="files of pytest's option --junitxml")
    parser.add_argument("--accepted", type=Path, default=ACCEPTED, help="the table of accepted skips")
    return parser.parse_args()


if __name__ == "__main__":
    arguments = _arguments()
    for path in arguments.reports:
        if not path.exists():
            sys.exit(f"skips: {path}: no such file; expected a report of pytest")
    sys.exit(main(arguments.reports, read_accepted(arguments.accepted)))
