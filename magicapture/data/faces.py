"""Reference sets whose masks and landmarks are found, not drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from ..faces.analyzer import FaceAnalyzer, head
from ..faces.masks import FaceMask, MaskSettings, face_mask, parts_from
from ..faces.protocols import Face
from .masks import is_empty, is_full
from .photos import ReferenceSet

Origin = Literal["yours", "empty", "full", "parsed", "oval", "none"]
Progress = Callable[[int, int], None]

_ORIGINS: dict[Origin, str] = {
    "yours": "your own mask",
    "empty": "your own mask is empty: paint the face white in it, or take it away",
    "full": "your own mask is full: paint the face alone white, or take it away",
    "parsed": "mask by the parser",
    "oval": "mask from landmarks (an oval; load a face parser for the true outline)",
    "none": "no mask: give one, or leave the photo out",
}


@dataclass(frozen=True, eq=False)
class FoundFace:
    """What was found in one photo: its faces, which of them counts, and where the mask is from.

    origin: of the mask; empty and full ones are the user's own, and mark no face.
    parts: (512,512) values of `Part` in the aligned head, where a parser saw it.
    """

    faces: tuple[Face, ...]
    chosen: int | None
    origin: Origin
    parts: Tensor | None = None

    @property
    def face(self) -> Face | None:
        """The face that counts."""
        return None if self.chosen is None else self.faces[self.chosen]

    def __str__(self) -> str:
        if self.face is None:
            if self.faces:
                return f"{self.mask_origin}, and none of the faces found lies in it"
            return f"no face was found; {self.mask_origin}"
        return f"{self.seen}, {self.mask_origin}"

    @property
    def seen(self) -> str:
        """How wide the face is, and which it is of several."""
        if self.face is None:
            return "no face was found" + (" in your own mask" if self.faces else "")
        width = f"face {self.face.width:.0f} px wide"
        if len(self.faces) > 1:
            place = "the largest" if self.chosen == 0 else f"number {self.chosen + 1} by size"  # type: ignore[operator]
            width = f"{len(self.faces)} faces, {place} is taken; {width}"
        return width

    @property
    def mask_origin(self) -> str:
        """Where the mask is from, and what to do about one that marks no face."""
        return _ORIGINS[self.origin]


def with_faces(
    references: ReferenceSet,
    analyzer: FaceAnalyzer,
    settings: MaskSettings | None = None,
    on_progress: Progress | None = None,
) -> tuple[ReferenceSet, tuple[FoundFace, ...]]:
    """Fill in the masks and landmarks that a set lacks; the user's own are kept.

    Of several faces the one inside the user's mask counts; else, with a face embedder, that of the
    person all photos share; else the largest. A photo without a face keeps what it has, and the
    set's warnings name it. `on_progress(done, total)` may raise to cancel.
    """
    settings = settings or MaskSettings()
    parts_from(settings.parts)  # a wrong name stops here
    total = len(references)
    report = on_progress or (lambda done, total: None)
    faces = []
    for i, image in enumerate(references.images):
        faces.append(analyzer.detector(image))
        report(i + 1, 2 * total)
    people = analyzer.people(references.images, faces)
    found, filled = [], []
    for i, photo in enumerate(references):
        origin: Origin = "none" if photo.face_mask is None else _own(photo.face_mask)
        own = photo.face_mask if origin == "yours" else None
        chosen = people[i] if own is None else face_in(own, faces[i])
        parts = None
        if chosen is not None:
            face = faces[i][chosen]
            if photo.landmarks is None:
                photo = replace(photo, landmarks=face.landmarks)
            if photo.face_mask is None:
                made = face_mask(photo.image, face, analyzer.parser, settings, faces[i])
                photo, origin, parts = (
                    replace(photo, face_mask=made.mask),
                    _origin(made),
                    made.parts,
                )
            elif analyzer.parser is not None:
                parts = analyzer.parser(head(photo.image, face)[0])[0].cpu()
        found.append(FoundFace(faces[i], chosen, origin, parts))
        filled.append(photo)
        report(total + i + 1, 2 * total)
    lacking = tuple(
        f"{photo.name}: no face was found; give a mask, or leave the photo out."
        for photo, one in zip(filled, found, strict=True)
        if one.face is None and photo.face_mask is None
    )
    return ReferenceSet(tuple(filled), (*references.warnings, *lacking)), tuple(found)


def _own(mask: Tensor) -> Origin:
    return "empty" if is_empty(mask) else "full" if is_full(mask) else "yours"


def _origin(made: FaceMask) -> Origin:
    return "parsed" if made.parsed else "oval"


def face_in(mask: Tensor, faces: tuple[Face, ...]) -> int | None:
    """The face most of whose landmarks lie in a mask (1,H,W); None where none lies in it."""
    inside = mask[0] >= 0.5
    height, width = inside.shape
    counts = []
    for face in faces:
        x = face.landmarks[:, 0].round().long().clamp(0, width - 1)
        y = face.landmarks[:, 1].round().long().clamp(0, height - 1)
        counts.append(int(inside[y, x].sum()))
    best = max(counts, default=0)
    return counts.index(best) if best >= 3 else None
