"""What masks tell of a face, and what they do not where they are but ovals."""

from __future__ import annotations

from ..data import Photo, ReferenceSet
from ..faces.masks import oval
from .choosing import landmarks_of, mask_of

_AS_AN_OVAL = 0.95
"""The overlap (intersection over union) from which on a mask is the oval of its landmarks."""


def is_oval(photo: Photo) -> bool:
    """Whether a photo's mask is but the oval over its landmarks, as without a face parser."""
    mask, own = mask_of(photo) > 0.5, oval(landmarks_of(photo), photo.size) > 0.5
    either = float((mask | own).sum())
    return either > 0 and float((mask & own).sum()) / either >= _AS_AN_OVAL


def oval_warnings(*sets: ReferenceSet) -> tuple[str, ...]:
    """What to say where masks are ovals: one sentence, or none."""
    names = [photo.name for photos in sets for photo in photos if is_oval(photo)]
    if not names:
        return ()
    few = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return (
        f"{few}: the mask is an oval, so hair and background may be laid in with the face. Load a "
        "face parser, and look at the labels before training.",
    )
