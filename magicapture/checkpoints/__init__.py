"""The right checkpoint: adapters of several steps are kept and scored, and the best is marked.

settings -> scoring (eyes, attending) -> record -> shelf -> keeping; `magicapture train --keep` and
the nodes *Keep Checkpoints* and *Take Checkpoint* use them.
"""

from .keeping import Checkpoints
from .record import COLUMNS, Record, best_of
from .scoring import Keep
from .settings import Choice, KeepSettings

__all__ = [
    "COLUMNS",
    "Checkpoints",
    "Choice",
    "Keep",
    "KeepSettings",
    "Record",
    "best_of",
]
