"""Labels of the composed task: what the person in the style is taught by."""

from .choosing import Match, matches
from .making import with_faces_of

__all__ = ["Match", "matches", "with_faces_of"]
