"""The command `timeline-ranker`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

# Command -> module with add_arguments(parser) and run(arguments) -> exit status, and what it does.
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("service.demo", "rank a sample timeline on a server of its own"),
    "serve": ("service.serve", "serve a model over gRPC"),
    "rank": ("service.rank", "send a request from JSON, print the timeline"),
    "health": ("service.health_check", "ask a server whether it serves"),
    "verify": ("service.verify", "say whether a bundle may be served"),
    "publish": ("service.publish", "put a bundle into a model repository"),
    "promote": ("service.promote", "let a published version serve under a label"),
    "rollback": ("service.rollback", "have a label point to the version that served before"),
    "status": ("service.status", "tell what a model repository holds, and what serves"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="timeline-ranker", description="Ranks timelines over gRPC.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, text) in COMMANDS.items():
        description = text[0].upper() + text[1:] + "."
        command = commands.add_parser(name, help=text, description=description, allow_abbrev=False)
        if argv and argv[0] == name:  # only what runs is imported: the runtime of the model takes half a second
            importlib.import_module(module).add_arguments(command)
    arguments = parser.parse_args(argv)
    status: int = importlib.import_module(COMMANDS[arguments.command][0]).run(arguments)
    return status


if __name__ == "__main__":
    sys.exit(main())
