"""Fixtures that more than one folder of tests uses."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import toy


@pytest.fixture(scope="session")
def toy_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound bundle, not to be changed."""
    return toy.write(tmp_path_factory.mktemp("bundles") / "toy")


@pytest.fixture
def own_bundle(tmp_path: Path) -> Path:
    """A sound bundle that a test may spoil."""
    return toy.write(tmp_path / "toy")
