"""The right checkpoint: adapters of several steps are kept and scored, and the best is marked.

settings -> scoring (eyes, attending, things) -> record -> shelf -> keeping; `magicapture train
--keep` and the nodes *Keep Checkpoints* and *Take Checkpoint* use them.
"""

from .keeping import Checkpoints
from .record import COLUMNS, Record, best_of
from .scoring import Keep
from .settings import Choice, KeepSettings
from .things import NO_FACES

__all__ = [
    "COLUMNS",
    "NO_FACES",
    "Checkpoints",
    "Choice",
    "Keep",
    "KeepSettings",
    "Record",
    "best_of",
]
