"""The reference doctor: a verdict for each photo before it is learned from."""

from .check import check
from .sheet import contact_sheet, overlay
from .verdicts import VERDICTS, Limits, PhotoCheck, SetCheck, Verdict

__all__ = [
    "VERDICTS",
    "Limits",
    "PhotoCheck",
    "SetCheck",
    "Verdict",
    "check",
    "contact_sheet",
    "overlay",
]
