"""The command `timeline-ranker`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from service.commands import run_command

# As `run_command` takes them.
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
    "replay": ("service.replay", "send what a served log holds once more, say what came out differently"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    return run_command(
        "timeline-ranker", "Ranks timelines over gRPC.", COMMANDS, sys.argv[1:] if argv is None else argv
    )


if __name__ == "__main__":
    sys.exit(main())
