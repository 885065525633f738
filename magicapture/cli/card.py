"""`magicapture card`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..adapters import load_adapter, model_card


def card(arguments: argparse.Namespace) -> None:
    """Print an adapter's model card, a page in Markdown to share it with."""
    file: Path = arguments.adapter
    adapter = load_adapter(file, [file.parent / "embeddings", file.parent])
    sys.stdout.write(model_card(adapter, file.stem))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `card`."""
    parser.add_argument("adapter", type=Path, metavar="FILE", help="The LoRA that train wrote.")
