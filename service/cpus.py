"""The CPUs that this process may use: its affinity, and the quota of its container."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def available_cpus() -> float:
    """Return the number of CPUs, or the quota if that is less, such as 1.5."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, cgroup_quota())


def cgroup_quota(root: Path = CGROUPS, membership: Path = _MEMBERSHIP) -> float:
    """Return the CPU quota of the process's cgroup and its ancestors, in CPUs; infinite without one.

    `membership` has lines of ID:CONTROLLERS:PATH, cgroups(7): version 2 names no controllers. In a container the path
    may be that of the host, of which only the root is mounted.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:  # no Linux
        return float("inf")
    quotas = [float("inf")]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            quotas += [_quota_of_version_2(root / folder) for folder in _ancestors(path)]
        elif "cpu" in controllers.split(","):
            quotas += [_quota_of_version_1(root / "cpu" / folder) for folder in _ancestors(path)]
    return min(quotas)


def _ancestors(path: str) -> list[PurePosixPath]:
    relative = PurePosixPath(path.lstrip("/"))
    return [relative, *relative.parents]


def _quota_of_version_2(folder: Path) -> float:
    """Read cpu.max: QUOTA or max, and the period, in microseconds."""
    quota, _, period = _read(folder / "cpu.max").partition(" ")
    return _ratio(quota, period)


def _quota_of_version_1(folder: Path) -> float:
    """Read the quota, -1 for none, and the period, in microseconds."""
    return _ratio(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:  # not mounted, or not a group with a quota
        return ""


def _ratio(quota: str, period: str) -> float:
    is_limited = quota.isdecimal() and period.isdecimal() and int(quota) > 0 and int(period) > 0
    return int(quota) / int(period) if is_limited else float("inf")
