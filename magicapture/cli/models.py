"""`magicapture models`."""

from __future__ import annotations

import argparse
import sys

from ..environment import versions
from ..faces.find import inventory, places
from .groups import add_folder_of_models


def models(arguments: argparse.Namespace) -> None:
    """List the models of faces found and missing, and all versions, for bug reports."""
    report = inventory(places(arguments.models))
    sys.stdout.write(f"{report}\n\n{versions()}\n")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `models`."""
    add_folder_of_models(parser)
