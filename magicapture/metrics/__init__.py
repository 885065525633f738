"""Figures for pictures of a person in a style: likeness, leakage of attention, intervals."""

from .intervals import Interval, bootstrap
from .leakage import leakages
from .likeness import among, both, leave_one_out, likeness, share
from .style import without_faces

__all__ = [
    "Interval",
    "among",
    "bootstrap",
    "both",
    "leakages",
    "leave_one_out",
    "likeness",
    "share",
    "without_faces",
]
