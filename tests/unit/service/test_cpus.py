"""Processors: what affinity and cgroup leave, whichever is less."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.cpus import cpus


@pytest.fixture
def four_affine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that may run on four of the machine's processors."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 4, 6})


@pytest.mark.usefixtures("four_affine")
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("max 100000", 4),
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("10000 100000", 1),
        ("800000 100000", 4),
    ],
)
def test_version_2(tmp_path: Path, content: str, expected: int) -> None:
    """cpu.max holds quota and period."""
    (tmp_path / "cpu.max").write_text(content + "\n")

    assert cpus(tmp_path) == expected


@pytest.mark.usefixtures("four_affine")
@pytest.mark.parametrize(("quota", "expected"), [("-1", 4), ("250000", 3)])
def test_version_1(tmp_path: Path, quota: str, expected: int) -> None:
    """Quota and period have files of their own."""
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota + "\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")

    assert cpus(tmp_path) == expected


@pytest.mark.usefixtures("four_affine")
def test_no_cgroup(tmp_path: Path) -> None:
    """Without a cgroup to be seen, affinity decides."""
    assert cpus(tmp_path) == 4


def test_here() -> None:
    """Whatever this machine is, it has a processor for us."""
    assert 1 <= cpus() <= len(os.sched_getaffinity(0))
