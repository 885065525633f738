"""`magicapture models`."""

from __future__ import annotations

import argparse
import sys

from ..environment import versions
from ..faces.find import inventory, places


def models(arguments: argparse.Namespace) -> None:
    """List the models of faces found and missing, and all versions, for bug reports."""
    report = inventory(places(arguments.models))
    sys.stdout.write(f"{report}\n\n{versions()}\n")
