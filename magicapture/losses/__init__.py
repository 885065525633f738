"""The losses: equations as pure functions, and one object a loss that applies them to a batch.

A new loss is a class in a file of its own here (or anywhere), and one `LOSSES.add`; weights in
recipes, curves, Tune Recipe, the command line and the tables follow from it.
"""

from ..loss import LOSSES, Loss, Need, Weights

from . import reconstruction  # isort: skip  (a step adds the losses up in this order)
from . import attention, identity, token_norm  # isort: skip
from . import dino  # isort: skip
from .batch import Answer, Batch, DinoTerm, IdentityTerm, Resemblance, Row, Step
from .needs import needs, tasks_of

__all__ = [
    "LOSSES",
    "Answer",
    "Batch",
    "DinoTerm",
    "IdentityTerm",
    "Loss",
    "Need",
    "Resemblance",
    "Row",
    "Step",
    "Weights",
    "attention",
    "dino",
    "identity",
    "needs",
    "reconstruction",
    "tasks_of",
    "token_norm",
]
