"""Pseudo-labels that show the person: the style's portraits with the person's face laid in."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..config import LabelSettings
from ..data import Photo, ReferenceSet
from ..faces.align import similarity, transform, warp
from ..images import gaussian_blur
from .choosing import landmarks_of, mask_of, matches, used
from .colours import Palette
from .region import oval_warnings
from .seams import opacity, taught

CELLS = 64
"""Cells along a side of the latent of a picture of 512 pixels."""

_FEWEST = 30  # pixels of a face that are worth laying in
_SOFT = 0.01  # of the edge of what is toned, as a share of the portrait's short side


def with_faces_of(
    portraits: ReferenceSet,
    source: ReferenceSet,
    settings: LabelSettings | None = None,
    *,
    cells: int = CELLS,
) -> ReferenceSet:
    """The portraits with the person's face in the place of their own, portrait by portrait.

    Each is made of a photo that suits it (`choosing.matches`), moved by its landmarks, in the
    colours that the style's medium gives it (`colours.Palette`), where both faces' masks are; what
    is left around it of the portrait's face takes its tone. `taught` leaves that and the seam out.
    A portrait without a near photo stays as it is, and is taught outside its face. cells: the
    latent's, along a picture's short side.

    Raises InputError where masks or landmarks are missing.
    """
    settings = settings or LabelSettings()
    chosen = matches(portraits, source, settings)
    palette = Palette.of(portraits.photos, source.photos)
    coloured = {
        number: palette.coloured(source.photos[number].image, number) for number in used(chosen)
    }
    labels: list[Photo] = []
    for portrait, of_portrait in zip(portraits, chosen, strict=True):
        band = settings.seam * min(portrait.size) / cells
        made = [
            _label(portrait, source.photos[match.photo], coloured[match.photo], band)
            for match in of_portrait
        ]
        labels += [label for label in made if label is not None] or [_plain(portrait)]
    return ReferenceSet(tuple(labels), oval_warnings(portraits, source))


def _plain(portrait: Photo) -> Photo:
    """A portrait as a label: its own face is not taught."""
    return replace(portrait, taught=1 - mask_of(portrait))


def _label(portrait: Photo, photo: Photo, shown: Tensor, band: float) -> Photo | None:
    """A portrait with one photo's face laid in; None where their masks do not meet.

    shown: the photo in the colours of the medium. band: of the seam, in pixels.
    """
    image, place = portrait.image.float(), mask_of(portrait)
    matrix = similarity(landmarks_of(photo)[None], landmarks_of(portrait))
    moved = warp(torch.cat([shown, mask_of(photo)])[None], matrix, portrait.size, antialias=True)[0]
    face, region = moved[:3], moved[3:] * place
    if float((region > 0.5).sum()) < _FEWEST:
        return None
    own = torch.lerp(image, _toned(image, place, face, region), _softened(place))
    return replace(
        portrait,
        image=torch.lerp(own, face, opacity(region)),
        face_mask=region,
        landmarks=transform(matrix, landmarks_of(photo)[None])[0],
        name=f"{portrait.name} with {photo.name}",
        taught=taught(region, place, band),
    )


def _toned(image: Tensor, mask: Tensor, face: Tensor, inside: Tensor) -> Tensor:
    """The image, shifted so that its median colour in the mask is that of the face inside.

    It is not taught, but the cells beside it see it.
    """
    own, wanted = image[:, mask[0] > 0.5], face[:, inside[0] > 0.5]
    shift = wanted.median(dim=1).values - own.median(dim=1).values
    return (image + shift[:, None, None]).clamp(0, 1)


def _softened(mask: Tensor) -> Tensor:
    """The mask (1,H,W) with a soft edge, 0 wherever it was."""
    sigma = max(_SOFT * min(mask.shape[-2:]), 0.5)
    return gaussian_blur(mask[None], sigma, edge="reflect")[0] * (mask > 0)
