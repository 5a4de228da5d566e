"""The workflows of CI and release, and the systemd unit: they parse, and call existing programs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from conftest import ROOT
from packaging.requirements import Requirement

from service import __version__
from service.config import Settings, load

if TYPE_CHECKING:
    from collections.abc import Iterator

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
UNIT = ROOT / "deploy" / "systemd" / "digitserve.service"


def workflow(name: str) -> dict[Any, Any]:
    return dict(yaml.safe_load((ROOT / ".github/workflows" / name).read_text()))


def triggers(of: dict[Any, Any]) -> dict[str, Any]:
    return dict(of[True])  # YAML 1.1 reads the key `on` as true


def steps() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in WORKFLOWS:
        for job in workflow(path.name)["jobs"].values():
            for step in job.get("steps", [job]):
                yield path.name, step


def test_every_command_of_a_workflow_is_a_target_or_a_file_of_the_project() -> None:
    targets = [
        (name, found) for name, step in steps() for found in re.findall(r"\bmake ([a-z0-9-]+)", step.get("run", ""))
    ]
    assert targets
    assert [(name, target) for name, target in targets if target not in TARGETS] == []
    for name, step in steps():
        if step.get("run", "").startswith(".ci/"):
            assert os.access(ROOT / step["run"], os.X_OK), (name, step)
        if (called := step.get("uses", "")).startswith("./"):
            assert "workflow_call" in triggers(workflow(called.rpartition("/")[2])), called
        elif called:
            assert re.search(r"@v\d", called), f"{called} names no version"


def test_pushes_are_tested_and_tags_released_with_no_more_rights_than_they_need() -> None:
    assert {"push", "pull_request"} <= set(triggers(workflow("ci.yml")))
    assert triggers(workflow("release.yml")) == {"push": {"tags": ["v*"]}}
    for path in WORKFLOWS:
        assert workflow(path.name)["permissions"] == {"contents": "read"}
    jobs = workflow("release.yml")["jobs"]
    assert set(jobs["release"]["needs"]) == {"ci", "native", "wheels", "install", "manifest"}


def test_a_release_builds_both_images_for_both_architectures_from_stages_that_exist() -> None:
    matrix = workflow("release.yml")["jobs"]["image"]["strategy"]["matrix"]["include"]
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", (ROOT / "service/Dockerfile").read_text(), re.MULTILINE))
    built = {(row["name"], row["target"], row["platform"]) for row in matrix}
    images = (("digitserve", "published"), ("digitserve-tools", "tools"))
    assert built == {(*image, platform) for image in images for platform in ("linux/amd64", "linux/arm64")}
    assert {target for _, target, _ in built} <= stages
    (build,) = [step for _, step in steps() if "build-push-action" in step.get("uses", "")]
    assert (build["with"]["provenance"], build["with"]["sbom"]) == ("mode=max", True)


PLATFORMS = {
    "x86_64": ("linux", "x86_64"),
    "aarch64": ("linux", "aarch64"),
    "x86_64-unknown-linux-musl": ("linux", "x86_64"),
    "aarch64-apple-darwin": ("darwin", "arm64"),
    "x86_64-apple-darwin": ("darwin", "x86_64"),
}
"""Python's names of the platforms, by those of Rust."""


def test_the_extra_native_names_the_wheel_of_this_version_for_platforms_with_one() -> None:
    (named,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["native"]
    requirement = Requirement(named)
    assert (requirement.name, str(requirement.specifier)) == ("digitserve-native", f"=={__version__}")
    built = {PLATFORMS[row["target"]] for row in native_wheels()}
    assert {platform for platform in built if installs(requirement, platform)} == built
    assert not [other for other in (("linux", "s390x"), ("win32", "AMD64")) if installs(requirement, other)]


def installs(requirement: Requirement, platform: tuple[str, str]) -> bool:
    assert requirement.marker is not None
    return requirement.marker.evaluate({"sys_platform": platform[0], "platform_machine": platform[1]})


def native_wheels() -> list[dict[str, Any]]:
    return list(workflow("native-wheels.yml")["jobs"]["wheel"]["strategy"]["matrix"]["include"])


@pytest.mark.skipif(
    not shutil.which("actionlint"),
    reason="needs actionlint: go install github.com/rhysd/actionlint/cmd/actionlint@latest",
)
def test_actionlint_accepts_the_workflows() -> None:
    done = subprocess.run(["actionlint", *WORKFLOWS], capture_output=True, text=True, check=False)  # noqa: S607
    assert (done.returncode, done.stdout) == (0, "")


def unit() -> list[tuple[str, str]]:
    return [tuple(line.split("=", 1)) for line in UNIT.read_text().splitlines() if re.match(r"[A-Za-z]+=", line)]  # type: ignore[misc]


def test_the_unit_starts_the_service_with_valid_options_and_lets_it_drain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = dict(unit())
    assert settings["ExecStart"].endswith("/python -m service")
    for name, value in re.findall(r"(DIGITS_\w+)=(\S+)", settings["Environment"]):
        assert name.removeprefix("DIGITS_").lower() in Settings.model_fields
        monkeypatch.setenv(name, value)
    chosen = load([])
    assert float(settings["TimeoutStopSec"]) > chosen.drain_wait + chosen.shutdown_grace + 5
    assert int(settings["LimitNOFILE"]) > 2 * chosen.max_connections
    assert settings["DynamicUser"] == settings["NoNewPrivileges"] == "yes"
    programs = {settings[name].split()[0] for name in ("ExecStartPre", "ExecStart", "ExecReload")}
    assert programs == {"/bin/sh", "/opt/digitserve/bin/python"}, "minimal systems have no /bin/kill"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze: install systemd")
def test_systemd_accepts_the_unit() -> None:
    done = subprocess.run(["systemd-analyze", "verify", UNIT], capture_output=True, text=True, check=False)  # noqa: S607
    said = [line for line in done.stderr.splitlines() if "is not executable" not in line]  # it is not installed here
    assert said == []
