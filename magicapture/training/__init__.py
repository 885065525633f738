"""Training: a job goes in, events come out, an adapter is returned."""

from .events import Event, Listener, Prepared, Previewed, Resumed, Scored, Stepped, Warned
from .job import TrainingJob
from .keeping import Keeping, Learned
from .state import EVERY_STEPS
from .trainer import Trainer

__all__ = [
    "EVERY_STEPS",
    "Event",
    "Keeping",
    "Learned",
    "Listener",
    "Prepared",
    "Previewed",
    "Resumed",
    "Scored",
    "Stepped",
    "Trainer",
    "TrainingJob",
    "Warned",
]
