"""What a training needs and how long it takes, known before its first step."""

from .choices import Choice, choices, fits, fitting, quantised
from .footprint import GB, Footprint, StepCost, duration, gigabytes
from .plan import Plan, attempted, planned
from .records import Record, Records
from .room import Room, room
from .trial import noise_job, tried
from .watch import AFTER, Watch

__all__ = [
    "AFTER",
    "GB",
    "Choice",
    "Footprint",
    "Plan",
    "Record",
    "Records",
    "Room",
    "StepCost",
    "Watch",
    "attempted",
    "choices",
    "duration",
    "fits",
    "fitting",
    "gigabytes",
    "noise_job",
    "planned",
    "quantised",
    "room",
    "tried",
]
