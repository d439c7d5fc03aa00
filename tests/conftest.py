"""Fixtures that more than one folder of tests uses."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests import toy

# How long an example takes is the machine's affair: times are measured in benchmarks.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def toy_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound bundle, not to be changed."""
    return toy.write(tmp_path_factory.mktemp("bundles") / "toy")


@pytest.fixture
def own_bundle(tmp_path: Path) -> Path:
    """A sound bundle that a test may spoil."""
    return toy.write(tmp_path / "toy")
