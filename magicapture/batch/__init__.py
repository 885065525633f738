"""Batches: many trainings on many machines, by Ray; it is imported where it is used."""

from .jobs import Job, Settings, read_jobs
from .page import PAGE, counts, head, rows
from .pool import Need
from .protocols import Loader, Training
from .record import MADE_BY, Record
from .run import BatchSettings, Show, carry_out
from .store import Store
from .worker import At, Tell, Worker

__all__ = [
    "MADE_BY",
    "PAGE",
    "At",
    "BatchSettings",
    "Job",
    "Loader",
    "Need",
    "Record",
    "Settings",
    "Show",
    "Store",
    "Tell",
    "Training",
    "Worker",
    "carry_out",
    "counts",
    "head",
    "read_jobs",
    "rows",
]
