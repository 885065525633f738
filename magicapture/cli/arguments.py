"""What may be asked for on the command line."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from ..version import __version__
from . import (
    batch,
    bench,
    card,
    demo,
    doctor,
    evaluate,
    identity,
    labels,
    masks,
    models,
    plan,
    recipe,
    sample,
    train,
)
from .options import Parser

COMMANDS: Mapping[str, Any] = {
    "demo": demo,
    "train": train,
    "plan": plan,
    "batch": batch,
    "sample": sample,
    "card": card,
    "masks": masks,
    "doctor": doctor,
    "labels": labels,
    "identity": identity,
    "evaluate": evaluate,
    "bench": bench,
    "models": models,
    "recipes": recipe,
}
"""The modules of the commands; each has a function of the command's name, and `add_options`."""


def parser() -> argparse.ArgumentParser:
    """The parser; what it returns holds the command to run as `run`."""
    root = Parser(
        prog="magicapture",
        description="A person's face in a portrait's style, learned from a few photos of each.",
    )
    root.add_argument("--version", action="version", version=f"magicapture {__version__}")
    commands = root.add_subparsers(required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        command = getattr(module, name)
        help = command.__doc__ or ""
        one = commands.add_parser(name, help=help, description=help)
        module.add_options(one)
        one.add_argument("--verbose", action="store_true", help="Show where an error arose.")
        one.set_defaults(run=command)
    return root
