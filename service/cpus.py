"""How many processors this process may use: what its container and its affinity leave of the machine's."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")


def cpus(root: Path = CGROUP_ROOT) -> int:
    """Whole processors, at least 1: the affinity mask, or the cgroup's quota rounded up where that is less."""
    affine = len(os.sched_getaffinity(0))
    quota = _quota(root)
    return affine if quota is None else max(1, min(affine, math.ceil(quota)))


def _quota(root: Path) -> float | None:
    """Processors' worth of time that the cgroup grants; None: no limit, or none to be seen.

    Inside a container its own cgroup is mounted at the root.
    """
    try:
        quota, period = (root / "cpu.max").read_text().split()  # version 2: "max 100000"
    except (OSError, ValueError):
        try:
            quota = (root / "cpu" / "cpu.cfs_quota_us").read_text().strip()  # version 1: -1 is no limit
            period = (root / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if quota in ("max", "-1"):
        return None
    return int(quota) / int(period)
