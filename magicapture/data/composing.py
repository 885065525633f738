"""Pseudo-labels that show the person: the style's portraits with the person's face laid in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy
import torch
from torch import Tensor

from ..errors import InputError
from ..faces.align import similarity, warp
from ..images import LUMA, gaussian_blur
from .photos import Photo, ReferenceSet

SEAM = 0.01
"""Softness of the laid-in face's edge, as a share of the portrait's short side."""

LEVELS = (0.005, 0.995)
"""Quantiles of the faces' luma taken for black and white."""

_YCC = torch.tensor([[*LUMA], [-0.169, -0.331, 0.5], [0.5, -0.419, -0.081]])
"""Luma and two chroma differences of R, G, B (Rec. 601)."""


_Face = tuple[Tensor, Tensor]
"""A picture (3,H,W) in 0..1 and its face's mask (1,H,W)."""


def with_faces_of(portraits: ReferenceSet, source: ReferenceSet) -> ReferenceSet:
    """Every portrait with every face of the source in the place of its own, portrait by portrait.

    A face takes the colours that the style's medium gives it (`_in_colours_of`), is moved by its
    landmarks, and is cut out where both its own mask and the portrait's are. What is left around
    it of the portrait's face takes its tone.

    Raises InputError where masks or landmarks are missing.
    """
    own_faces = [_face(portrait) for portrait in portraits]
    faces = _in_colours_of(own_faces, [_face(photo) for photo in source])
    labels = []
    for (portrait, own_face), (photo, face) in product(
        zip(portraits, own_faces, strict=True), zip(source, faces, strict=True)
    ):
        assert portrait.landmarks is not None and photo.landmarks is not None
        image, place = own_face
        matrix = similarity(photo.landmarks[None], portrait.landmarks)
        moved = warp(torch.cat(face)[None], matrix, portrait.size, antialias=True)[0]
        laid_in, inside = moved[:3], moved[3:] * place
        own = torch.lerp(image, _toned(image, place, laid_in, inside), _softened(place))
        labels.append(replace(portrait, image=torch.lerp(own, laid_in, _softened(inside))))
    return ReferenceSet(tuple(labels))


def _face(photo: Photo) -> _Face:
    """A photo (3,H,W) and its face's mask (1,H,W); raises InputError where its face is unknown."""
    if photo.face_mask is None or photo.landmarks is None:
        raise InputError(
            f"{photo.name}: the face is not known. Laying the person's face into the portraits "
            "needs a face mask for every photo and portrait; make them, or set pseudo_label to "
            "portrait."
        )
    return photo.image.float(), photo.face_mask


def _in_colours_of(style: Sequence[_Face], faces: Sequence[_Face]) -> list[_Face]:
    """The faces as the style's medium would show them, judged by the faces in the style.

    Luma goes from black and white to the style's: about the pupils and the whites of eyes, which
    tell how light a pastel is, whatever the skin. Chroma c is multiplied by k, the style's spread
    over the person's, at most 1; its mean becomes k^2 m + (1 - k^2) m_style. A medium that keeps
    colours keeps those of the skin, and a grey or sepia one gives its own. All statistics are of
    all faces together, so that each keeps its own light.
    """
    black, white, style_mean, style_spread = _statistics(style)
    own_black, own_white, mean, spread = _statistics(faces)
    gain = (white - black) / max(own_white - own_black, 0.1)
    k = (style_spread.norm() / spread.norm().clamp_min(1e-4)).clamp(max=1)
    wanted = torch.lerp(style_mean, mean, k**2)
    coloured = []
    for image, mask in faces:
        luma, chroma = (_YCC @ image.flatten(1)).split([1, 2])
        as_shown = torch.cat([(luma - own_black) * gain + black, (chroma - mean) * k + wanted])
        pixels = torch.linalg.inv(_YCC) @ as_shown
        coloured.append((pixels.view_as(image).clamp(0, 1), mask))
    return coloured


def _statistics(faces: Sequence[_Face]) -> tuple[float, float, Tensor, Tensor]:
    """Luma of black and of white in the faces; mean and deviation of their chroma, (2,1) each."""
    pixels = torch.cat([image[:, mask[0] > 0.5] for image, mask in faces], dim=1)
    luma, chroma = (_YCC @ pixels).split([1, 2])
    black, white = numpy.quantile(luma.numpy(), LEVELS)
    return float(black), float(white), chroma.mean(1, keepdim=True), chroma.std(1, keepdim=True)


def _toned(image: Tensor, mask: Tensor, face: Tensor, inside: Tensor) -> Tensor:
    """The image, shifted so that its median colour in the mask is that of the face inside.

    A pale rim would be left around a dark face otherwise, and be learned.
    """
    own, wanted = image[:, mask[0] > 0.5], face[:, inside[0] > 0.5]
    if not own.numel() or not wanted.numel():
        return image
    shift = wanted.median(dim=1).values - own.median(dim=1).values
    return (image + shift[:, None, None]).clamp(0, 1)


def _softened(mask: Tensor) -> Tensor:
    """The mask (1,H,W) with a soft edge, 0 wherever it was."""
    sigma = max(SEAM * min(mask.shape[-2:]), 0.5)
    return gaussian_blur(mask[None], sigma, edge="reflect")[0] * (mask > 0)
