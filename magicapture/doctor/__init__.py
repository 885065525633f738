"""The reference doctor: a verdict for each photo before it is learned from."""

from .check import judge_photos
from .sheet import contact_sheet, overlay
from .verdicts import VERDICTS, Limits, PhotoCheck, SetCheck, Verdict

__all__ = [
    "VERDICTS",
    "Limits",
    "PhotoCheck",
    "SetCheck",
    "Verdict",
    "contact_sheet",
    "judge_photos",
    "overlay",
]
