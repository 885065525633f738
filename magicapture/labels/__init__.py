"""Labels of the composed task: what the person in the style is taught by."""

from .choosing import Match, matches
from .making import CELLS, Label, LabelSet, has_labels, labelled, of_recipe, with_faces_of
from .preview import label_sheet, report

__all__ = [
    "CELLS",
    "Label",
    "LabelSet",
    "Match",
    "has_labels",
    "label_sheet",
    "labelled",
    "matches",
    "of_recipe",
    "report",
    "with_faces_of",
]
