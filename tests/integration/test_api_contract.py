from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import npm

pytestmark = pytest.mark.foreign

PROTO = Path(__file__).parents[2] / "proto"
RELEASED = PROTO / "released.binpb"


@pytest.fixture(scope="module")
def buf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The buf command."""
    return npm.install(tmp_path_factory.mktemp("buf"), "@bufbuild/buf@1.75.0") / ".bin" / "buf"


def run(buf: Path, *arguments: str | Path, proto: Path = PROTO) -> subprocess.CompletedProcess[str]:
    return subprocess.run([buf, *arguments], cwd=proto, capture_output=True, text=True, timeout=60, check=False)


def test_the_api_keeps_the_standard_lint_rules(buf: Path) -> None:
    """Names, packages and comments as every buf user expects them."""
    done = run(buf, "lint")

    assert (done.returncode, done.stdout) == (0, "")


def test_the_api_is_formatted(buf: Path) -> None:
    """One way to write it."""
    done = run(buf, "format", "--diff", "--exit-code")

    assert (done.returncode, done.stdout) == (0, "")


def test_callers_of_the_released_api_still_understand_it(buf: Path) -> None:
    """On the wire and in JSON, against the image that was frozen at the last release."""
    done = run(buf, "breaking", "--against", RELEASED)

    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        ("int64 viewer_id = 2;", "int64 viewer_id = 20;", "viewer_id"),
        ("int64 viewer_id = 2;", "int64 viewer = 2;", "viewerId"),
        ("int64 viewer_id = 2;", "string viewer_id = 2;", "viewer_id"),
        ("ICYMI_DECISION_TOO_RECENT = 4;", "ICYMI_DECISION_RECENT = 4;", "ICYMI_DECISION_TOO_RECENT"),
    ],
)
def test_a_break_would_be_seen(buf: Path, tmp_path: Path, before: str, after: str, complaint: str) -> None:
    """A field renumbered, renamed or retyped, and a renamed enum value, are each refused by name."""
    changed = tmp_path / "proto"
    shutil.copytree(PROTO, changed)
    ranking = changed / "timelines" / "ranking" / "v1" / "ranking.proto"
    text, count = re.subn(re.escape(before), after, ranking.read_text(), count=1)
    assert count == 1
    ranking.write_text(text)

    done = run(buf, "breaking", "--against", RELEASED, proto=changed)

    assert done.returncode == 100
    assert complaint in done.stdout
