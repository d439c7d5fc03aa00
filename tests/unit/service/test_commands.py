"""Commands of commands: what is missing is named, and output may end where its reader does."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from service import __version__
from service.commands import run_command


def test_a_library_that_is_not_installed_is_named_with_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Serving's environment lacks what training needs: no traceback for that."""
    (tmp_path / "needing.py").write_text("import no_such_library")
    monkeypatch.syspath_prepend(tmp_path)
    commands = {"run": ("needing", "do something")}
    with pytest.raises(SystemExit) as caught:
        run_command("prog", "A program.", commands, ["run"])

    assert caught.value.code == 2
    expected = "prog run needs no_such_library, of the extra `train`: pip install -e '.[train]'\n"
    assert capsys.readouterr().err == expected


def test_a_module_of_ours_that_is_missing_is_our_fault() -> None:
    """And not to be installed by anybody."""
    with pytest.raises(ModuleNotFoundError):
        run_command("prog", "A program.", {"run": ("service.no_such_module", "do something")}, ["run"])


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """Of the program, whatever its commands."""
    with pytest.raises(SystemExit) as caught:
        run_command("prog", "A program.", {"run": ("never_imported", "do something")}, ["--version"])

    assert caught.value.code == 0
    assert capsys.readouterr().out == f"prog {__version__}\n"


def test_output_may_end_early() -> None:
    """As before `head`: no traceback, and the exit status is the command's."""
    program = textwrap.dedent("""
        import sys
        from service.commands import write_out
        sys.stdin.readline()  # until nobody reads any more
        write_out("x" * 1_000_000)
        sys.exit(7)
    """)
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stdin.write(b"go\n")
        process.stdin.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 7
