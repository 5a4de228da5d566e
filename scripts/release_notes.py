"""Print the notes of a release: the section of its version in CHANGELOG.md.

    python scripts/release_notes.py v0.1.0

Status 1 if the changelog has no dated section for the version, or if a part of the project has another version.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
VERSIONS = {
    "service/__init__.py": r'^__version__ = "(.+)"$',
    "client/digitserve_client/__init__.py": r'^__version__ = "(.+)"$',
    "native/Cargo.toml": r'^version = "(.+)"$',
    "deploy/helm/digitserve/Chart.yaml": r"^(?:appV|v)ersion: (.+)$",
    "deploy/kubernetes/overlays/production/kustomization.yaml": r"newTag: ([^\s}]+)",
    "deploy/kubernetes/overlays/gpu/kustomization.yaml": r"newTag: ([^\s}]+)-gpu",
    "deploy/kubernetes/kserve/kustomization.yaml": r"newTag: ([^\s}]+)",
}
"""The parts that are released together, each with its version as a regular expression."""


def versions(root: Path = ROOT) -> dict[str, str]:
    """Return the version of each part; several, joined, if its places differ."""
    matches = {path: re.findall(pattern, (root / path).read_text(), re.MULTILINE) for path, pattern in VERSIONS.items()}
    return {path: " and ".join(dict.fromkeys(each)) for path, each in matches.items()}


def notes(changelog: str, version: str) -> str:
    """Return the text below the heading of a version. Raises KeyError if there is no such heading with a date."""
    heading = rf"^## {re.escape(version)} - \d{{4}}-\d\d-\d\d\n(.*?)(?=^## |\Z)"
    section = re.search(heading, changelog, re.MULTILINE | re.DOTALL)
    if section is None:
        raise KeyError(version)
    return section[1].strip()


def main(tag: str) -> int:
    """Print the notes; return the exit status."""
    version = tag.removeprefix("v")
    wrong = {path: other for path, other in versions().items() if other != version}
    for path, other in wrong.items():
        print(f"{path}: version is {other}; expected {version}, as in the tag", file=sys.stderr)
    try:
        text = notes((ROOT / "CHANGELOG.md").read_text(), version)
    except KeyError:
        print(f"CHANGELOG.md: no section; expected `## {version} - DATE`", file=sys.stderr)
        return 1
    print(text)
    return 1 if wrong else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python scripts/release_notes.py TAG")
    sys.exit(main(sys.argv[1]))
