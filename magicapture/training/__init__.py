"""Training: a job goes in, events come out, an adapter is returned."""

from .events import Event, Listener, Prepared, Previewed, Resumed, Stepped, Warned
from .job import TrainingJob
from .state import EVERY_STEPS
from .trainer import Trainer

__all__ = [
    "EVERY_STEPS",
    "Event",
    "Listener",
    "Prepared",
    "Previewed",
    "Resumed",
    "Stepped",
    "Trainer",
    "TrainingJob",
    "Warned",
]
