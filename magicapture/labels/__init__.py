"""Labels of the composed task: what the person in the style is taught by."""

from .choosing import Match, matches
from .making import CELLS, with_faces_of
from .preview import label_sheet, report

__all__ = ["CELLS", "Match", "label_sheet", "matches", "report", "with_faces_of"]
