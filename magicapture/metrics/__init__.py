"""Metrics for pictures of a person in a style: likeness, leakage of attention, intervals.

A new metric is one `METRICS.add(Metric(...))`, here or anywhere; scores, the demo, and the
benchmarks' files, tables and notes follow from it.
"""

from .intervals import Interval, bootstrap, bootstrap_pairs
from .likeness import among, both, floor, leave_one_out, likeness, share
from .metric import METRICS, Metric, score
from .shown import Case, Shown, Sight

from . import pictures  # isort: skip  (files have them in this order)
from .leakage import leakages  # isort: skip

__all__ = [
    "METRICS",
    "Case",
    "Interval",
    "Metric",
    "Shown",
    "Sight",
    "among",
    "bootstrap",
    "bootstrap_pairs",
    "both",
    "floor",
    "leakages",
    "leave_one_out",
    "likeness",
    "pictures",
    "score",
    "share",
]
