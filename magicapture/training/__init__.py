"""Training: a job goes in, events come out, an adapter is returned."""

from .events import Event, Listener, Prepared, Previewed, Resumed, Stepped, Warned
from .job import TrainingJob
from .trainer import Trainer

__all__ = [
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
