"""Serving runs without the training half: neither its packages nor its libraries are ever imported."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import service

FOREIGN = {"torch", "onnx", "pyarrow", "sklearn", "tqdm", "lightgbm", "model_export", "loadtest", "tests"}
ROOT = Path(service.__file__).parent
FILES = sorted(path for path in ROOT.rglob("*.py") if "generated" not in path.parts)


def imports(path: Path) -> Iterator[str]:
    """The packages that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield (node.module or "").split(".")[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_names_the_training_half(path: Path) -> None:
    """Not even inside a function."""
    assert not FOREIGN.intersection(imports(path))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nothing_that_is_read_becomes_code(path: Path) -> None:
    """No pickle in any of its forms, and no evaluation of text."""
    assert not re.search(r"\b(pickle|marshal|shelve|joblib|np\.load|eval|exec)\b", path.read_text())


def test_nothing_pulls_it_in() -> None:
    """All of `service` imported in a fresh interpreter, through whatever its libraries import."""
    modules = [".".join(path.relative_to(ROOT.parent).with_suffix("").parts) for path in FILES]
    script = "import importlib, sys\n"
    script += "".join(f"importlib.import_module({name!r})\n" for name in modules if not name.endswith("__main__"))
    script += "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT.parent, check=True)

    loaded = set(done.stdout.split())
    assert "onnxruntime" in loaded
    assert not FOREIGN.intersection(loaded)
