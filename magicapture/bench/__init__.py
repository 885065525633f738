"""Evidence from users' machines: recipes trained on real faces, drawn, scored and timed.

sets -> plan -> runner -> report -> page; `magicapture bench` puts them together.
"""

from ..clip import Clip, load_clip
from .plan import BenchSettings, Plan, Trial
from .report import Report
from .runner import Models, Runner
from .sets import Shots, read_people, read_styles
from .work import JSON, PAGE, Output, carry_out, setup_of

__all__ = [
    "JSON",
    "PAGE",
    "BenchSettings",
    "Clip",
    "Models",
    "Output",
    "Plan",
    "Report",
    "Runner",
    "Shots",
    "Trial",
    "carry_out",
    "load_clip",
    "read_people",
    "read_styles",
    "setup_of",
]
