"""Face restoration in a picture: each face cut out, restored, and blended back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import Checked, setting
from ..faces.align import transform
from ..faces.protocols import Face, Parser
from .models import Restorer
from .paste import FEATHER, cut_out, drawn_mask, parsed_mask, put_back

_FACELESS = 0.01  # a mask of less than this share of the head means that the parser saw no face


@dataclass(frozen=True)
class RestoreSettings(Checked):
    """How restored faces are put back."""

    strength: float = setting(
        1.0, "How much of the restored face is taken: 0 leaves the picture.", low=0, high=1
    )
    feather: float = setting(
        FEATHER,
        "How soft the paste's edge is: the standard deviation in pixels of the aligned 512x512 "
        "head.",
        low=0,
        high=64,
    )


@dataclass(frozen=True, eq=False)
class RestoredFace:
    """One face as it was and as it became: aligned heads (3,512,512) in 0..1."""

    face: Face
    before: Tensor
    after: Tensor


@dataclass(frozen=True, eq=False)
class Restoration:
    """A picture with its faces restored.

    image: (3,H,W). mask: (1,H,W), how much of each pixel was replaced at full strength; where it
    is 0 the picture is bit-equal to the one that came in. parsed: whether a parser drew the whole
    mask; without one, or where it sees no face, an oval is laid over the landmarks.
    """

    image: Tensor
    mask: Tensor
    faces: tuple[RestoredFace, ...]
    parsed: bool


@torch.no_grad()
def restore_faces(
    image: Tensor,
    faces: Sequence[Face],
    restorer: Restorer,
    parser: Parser | None = None,
    settings: RestoreSettings | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Restoration:
    """Restore the faces of an image (3,H,W) in 0..1; without a face it comes back as it is.

    Every head is cut from the picture as it came in. progress(done, total) is called after each
    face and may raise to stop.
    """
    settings = settings or RestoreSettings()
    result, covered = image, torch.zeros_like(image[:1])
    restored, parsed = [], parser is not None
    for done, face in enumerate(faces, start=1):
        points = face.landmarks.to(image.device)
        before, matrix = cut_out(image, points)
        after = restorer(before)
        seen = None if parser is None else parsed_mask(parser, after, feather=settings.feather)
        if seen is None or float(seen.mean()) < _FACELESS:
            parsed, points = False, transform(matrix, points[None])
            seen = drawn_mask(before, points, settings.feather)
        patch = put_back(after, seen, matrix, image.shape[-2:])
        result = patch.onto(result, settings.strength)
        rows, columns = patch.place
        covered[:, rows, columns] = torch.maximum(covered[:, rows, columns], patch.mask)
        restored.append(RestoredFace(face, before[0], after[0]))
        progress(done, len(faces))
    return Restoration(result, covered, tuple(restored), parsed)
