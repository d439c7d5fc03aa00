"""Packages from npm, for tests that want to see the service with other eyes than Python's."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def install(directory: Path, *packages: str) -> Path:
    """Installs packages below `directory` and returns its node_modules; skips where npm or its index is missing."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    # No scripts: what these packages need is in their tarballs.
    command = [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-save", "--prefix", str(directory)]
    try:
        done = subprocess.run([*command, *packages], capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("npm install took more than two minutes")
    if done.returncode:
        pytest.skip(f"npm install failed: {done.stderr.strip().splitlines()[-1]}")
    return directory / "node_modules"
