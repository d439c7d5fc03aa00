"""What each artifact of a run says of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ARTIFACT_FILE = "artifact.json"


def artifact_document(artifact: Path) -> dict[str, Any]:
    """What an artifact was made from: step, version, parameters, parts, inputs; and its summary."""
    document: dict[str, Any] = json.loads((artifact / ARTIFACT_FILE).read_text())
    return document
