"""Where a picture of a measurement goes."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path


def picture(text: str) -> Path:
    """The path of a PNG from the command line; refused before anything is measured if it can not be drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        raise argparse.ArgumentTypeError("matplotlib draws it, which is not installed: pip install '.[loadtest]'")
    path = Path(text)
    if path.suffix != ".png" or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not the path of a .png in a folder that is there")
    return path
