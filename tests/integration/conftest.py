"""Fixtures around a real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server_process import Addresses, serving


@pytest.fixture(scope="session")
def toy_server(toy_bundle: Path) -> Iterator[Addresses]:
    """A server of the toy model."""
    with serving(toy_bundle) as addresses:
        yield addresses
