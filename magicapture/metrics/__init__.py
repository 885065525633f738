"""Figures for pictures of a person in a style: likeness, spill of attention, intervals."""

from .intervals import Interval, bootstrap
from .likeness import among, both, leave_one_out, likeness, share
from .spill import spills
from .style import without_faces

__all__ = [
    "Interval",
    "among",
    "bootstrap",
    "both",
    "leave_one_out",
    "likeness",
    "share",
    "spills",
    "without_faces",
]
