"""The paper's measures of pictures of a person in a style, on what the user has drawn.

models -> seen -> scoring -> report -> page; `magicapture evaluate` and *Evaluate Pictures* put
them together.
"""

from .aesthetic import AestheticHead, load_aesthetic_head
from .models import Models, missing
from .page import write_page
from .references import References
from .report import COMMAND, CSV, JSON, PAGE, Evaluation, Group, write_csv
from .scoring import Given, evaluate

__all__ = [
    "COMMAND",
    "CSV",
    "JSON",
    "PAGE",
    "AestheticHead",
    "Evaluation",
    "Given",
    "Group",
    "Models",
    "References",
    "evaluate",
    "load_aesthetic_head",
    "missing",
    "write_csv",
    "write_page",
]
