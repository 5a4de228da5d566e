"""Every package of the serving image is listed with its version and licence."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, distribution

from conftest import ROOT
from environments import requirements
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LISTED = re.compile(r"^\| ([\w.-]+) +\| ([\w.]+) +\| (.+?) +\|$", re.MULTILINE)
PERMISSIVE = ("Apache", "MIT", "BSD", "0BSD", "PSF", "Zlib", "CC0", "Zope", "AND", "OR")


def listed() -> dict[str, tuple[str, str]]:
    """Return version and licence by name, from docs/licences.md."""
    rows = LISTED.findall((ROOT / "docs" / "licences.md").read_text())
    return {canonicalize_name(name): (version, licence) for name, version, licence in rows if name != "Name"}


def needed() -> set[str]:
    """Return the installed requirements of serving, including transitive ones."""
    found, line = set[str](), requirements()
    while line:
        asked = Requirement(line.pop())
        name = canonicalize_name(asked.name)
        if name in found or (asked.marker and not asked.marker.evaluate({"extra": ""})):
            continue
        try:
            line += distribution(name).requires or []
        except PackageNotFoundError:
            continue  # for another platform
        found.add(name)
    return found


def test_every_package_that_serving_installs_is_listed_at_its_version() -> None:
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
    )
    pinned = {canonicalize_name(name): version for name, version in pins.items()}
    assert listed().keys() == needed()
    assert {name: version for name, (version, _) in listed().items()} == {name: pinned[name] for name in listed()}


def test_every_licence_allows_use_and_redistribution() -> None:
    for name, (_, licence) in listed().items():
        for word in re.split(r"[;\s]+(?:AND|OR)?\s*", licence):
            known = any(word.startswith(start) for start in PERMISSIVE)
            assert known or word in ("Public", "License", "Software", "3-Clause", ""), (name, licence)


def test_every_reason_of_a_rejection_is_documented() -> None:
    """Check each label value of the counters of rejections, drops, reloads and rotations, and each such counter."""
    from prometheus_client import CollectorRegistry  # noqa: PLC0415

    from service.observability.metrics import Metrics  # noqa: PLC0415

    text = (ROOT / "docs" / "operating.md").read_text()
    registry = CollectorRegistry()
    Metrics(registry)
    told = {"digits_requests_dropped", "digits_model_reloads", "digits_credentials_rotations", "digits_trace_spans"}
    seen = set[str]()
    for family in registry.collect():
        if family.name not in told:
            continue
        seen.add(family.name)
        for sample in family.samples:
            assert family.name in text
            for value in sample.labels.values():
                assert f"`{value}`" in text or f'"{value}"' in text, (family.name, sample.labels)
    assert seen == told


def test_each_counter_of_the_service_is_in_the_reference_of_metrics() -> None:
    from prometheus_client import CollectorRegistry  # noqa: PLC0415

    from service.observability.metrics import Metrics  # noqa: PLC0415

    text = (ROOT / "docs" / "metrics.md").read_text()
    registry = CollectorRegistry()
    Metrics(registry)
    assert not [f.name for f in registry.collect() if f.name.startswith("digits_") and f"`{f.name}" not in text]
