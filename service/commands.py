"""Commands of commands: `PROG COMMAND ...`, each command a module that is imported only when it runs."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Mapping, Sequence

from service import __version__

_OURS = ("service", "model_export", "loadtest")


def run_command(prog: str, description: str, commands: Mapping[str, tuple[str, str]], argv: Sequence[str]) -> int:
    """Runs one command; returns the exit status.

    Args:
        prog: What it is called.
        description: What it is.
        commands: Command -> module with add_arguments(parser) and run(arguments) -> exit status, and what it does.
        argv: The command and its arguments.
    """
    parser = argparse.ArgumentParser(prog=prog, description=description)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, text) in commands.items():
        command = subparsers.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False
        )
        if argv and argv[0] == name:  # the runtime of the model takes half a second to import, torch takes several
            try:
                importlib.import_module(module).add_arguments(command)
            except ModuleNotFoundError as error:
                if (error.name or "").partition(".")[0] in _OURS:
                    raise
                parser.exit(2, f"{prog} {name} needs {error.name}, of the extra `train`: pip install -e '.[train]'\n")
    parser.add_argument("--version", action="version", version=f"{prog} {__version__}")
    arguments = parser.parse_args(argv)
    status: int = importlib.import_module(commands[arguments.command][0]).run(arguments)
    return status


def write_out(text: str) -> None:
    """Writes to standard output, whose reader may have seen enough and gone away, as `head` does."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        # What Python would still flush on its way out goes nowhere, and does not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
