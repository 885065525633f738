"""Pseudo-labels that show the person: the style's portraits with the person's face laid in."""

from __future__ import annotations

import dataclasses
from itertools import product

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from ..errors import InputError
from ..faces.align import similarity, warp
from .masks import fit
from .references import ReferenceSet

SEAM = 0.01
"""Softness of the laid-in face's edge, as a share of the portrait's short side."""

_YCC = torch.tensor([[0.299, 0.587, 0.114], [-0.169, -0.331, 0.5], [0.5, -0.419, -0.081]])
"""Luma and two chroma differences of R, G, B (Rec. 601)."""


def with_faces_of(portraits: ReferenceSet, source: ReferenceSet) -> ReferenceSet:
    """Every portrait with every face of the source in the place of its own, portrait by portrait.

    A face is moved by its landmarks, cut out where both its own mask and the portrait's are, and
    keeps its light and shade; its colours get the mean and spread that a face has in the style,
    so that it is grey in a grey portrait. What is left around it of the portrait's face takes its
    tone. Raises InputError where masks or landmarks are missing.
    """
    for references in (portraits, source):
        if any(known is None for known in (*references.masks, *references.landmarks)):
            raise InputError(
                "Laying the person's face into the portraits needs the faces' masks in every "
                "photo and portrait; make them, or set pseudo_label to portrait."
            )
    own_faces = [_face(portraits, i) for i in range(len(portraits))]
    faces = [_face(source, j) for j in range(len(source))]
    style = torch.stack([_spread(_chroma(*face)) for face in own_faces]).mean(0)
    images = []
    pairs = list(product(range(len(portraits)), range(len(source))))
    for i, j in pairs:
        (image, place), (picture, mask) = own_faces[i], faces[j]
        points = source.landmarks[j]
        matrix = similarity(points[None], portraits.landmarks[i])  # type: ignore[index,arg-type]
        both = torch.cat([picture, mask])[None]
        moved = warp(both, matrix, (image.shape[-2], image.shape[-1]), antialias=True)[0]
        face, inside = _coloured(moved[:3], moved[3:], style), moved[3:] * place
        own = torch.lerp(image, _toned(image, place, face, inside), _softened(place))
        images.append(torch.lerp(own, face, _softened(inside)))
    return dataclasses.replace(portraits.only([i for i, _ in pairs]), images=tuple(images))


def _face(references: ReferenceSet, index: int) -> tuple[Tensor, Tensor]:
    """A photo (3,H,W) and its face's mask (1,H,W) at the photo's size."""
    image, mask = references.images[index].float(), references.face(index)
    assert mask is not None
    return image, fit(mask, (image.shape[-2], image.shape[-1]))


def _chroma(image: Tensor, mask: Tensor) -> Tensor:
    """The two chroma differences of the pixels in the mask: (2,N)."""
    return (_YCC[1:] @ image.flatten(1))[:, mask.flatten() > 0.5]


def _spread(chroma: Tensor) -> Tensor:
    """Mean and standard deviation of two chroma differences (2,N): (2,2,1)."""
    return torch.stack([chroma.mean(1, keepdim=True), chroma.std(1, keepdim=True)])


def _coloured(image: Tensor, mask: Tensor, style: Tensor) -> Tensor:
    """The image with its luma, its chroma brought to the style's mean and spread in the mask."""
    own = _spread(_chroma(image, mask))
    luma, chroma = (_YCC @ image.flatten(1)).split([1, 2])
    chroma = (chroma - own[0]) * (style[1] / own[1].clamp_min(1e-4)) + style[0]
    pixels = torch.linalg.inv(_YCC) @ torch.cat([luma, chroma])
    return pixels.view_as(image).clamp(0, 1)


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
