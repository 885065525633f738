"""Pseudo-labels that show the person: the style's portraits with the person's face laid in."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import product

import numpy
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from ..errors import InputError
from ..faces.align import similarity, warp
from .masks import fit
from .references import ReferenceSet

SEAM = 0.01
"""Softness of the laid-in face's edge, as a share of the portrait's short side."""

LEVELS = (0.005, 0.995)
"""Quantiles of the faces' luma taken for black and white."""

_YCC = torch.tensor([[0.299, 0.587, 0.114], [-0.169, -0.331, 0.5], [0.5, -0.419, -0.081]])
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
    for references in (portraits, source):
        if any(known is None for known in (*references.masks, *references.landmarks)):
            raise InputError(
                "Laying the person's face into the portraits needs the faces' masks in every "
                "photo and portrait; make them, or set pseudo_label to portrait."
            )
    own_faces = [_face(portraits, i) for i in range(len(portraits))]
    faces = _in_colours_of(own_faces, [_face(source, j) for j in range(len(source))])
    images = []
    pairs = list(product(range(len(portraits)), range(len(source))))
    for i, j in pairs:
        (image, place), points = own_faces[i], source.landmarks[j]
        matrix = similarity(points[None], portraits.landmarks[i])  # type: ignore[index,arg-type]
        size = (image.shape[-2], image.shape[-1])
        moved = warp(torch.cat(faces[j])[None], matrix, size, antialias=True)[0]
        face, inside = moved[:3], moved[3:] * place
        own = torch.lerp(image, _toned(image, place, face, inside), _softened(place))
        images.append(torch.lerp(own, face, _softened(inside)))
    return dataclasses.replace(portraits.only([i for i, _ in pairs]), images=tuple(images))


def _face(references: ReferenceSet, index: int) -> _Face:
    """A photo (3,H,W) and its face's mask (1,H,W) at the photo's size."""
    image, mask = references.images[index].float(), references.face(index)
    assert mask is not None
    return image, fit(mask, (image.shape[-2], image.shape[-1]))


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
    return F.gaussian_blur(mask, [2 * round(3 * sigma) + 1] * 2, [sigma, sigma]) * (mask > 0)
