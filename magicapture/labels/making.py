"""Pseudo-labels that show the person: the style's portraits with the person's face laid in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..config import LabelSettings, Recipe
from ..data import Photo, ReferenceSet
from ..data.given import with_estimated_landmarks
from ..faces.align import similarity, transform, warp
from ..images import gaussian_blur
from .choosing import Match, compared, landmarks_of, mask_of, near, used
from .colours import Palette
from .region import oval_warnings
from .seams import opacity, steepness, taught

CELLS = 64
"""Cells along a side of the latent of a picture of 512 pixels."""

DOWNSCALE = 8
"""Pixels along a side of a latent's cell, in Stable Diffusion."""

_FEWEST = 30  # pixels of a face that are worth laying in
_SOFT = 0.01  # of the edge of what is toned, as a share of the portrait's short side


@dataclass(frozen=True, eq=False)
class Label:
    """What the composed prompt is taught by in the place of a portrait.

    shown: as it is taught. photo: the one whose face is laid in, or, where the portrait keeps its
    own, the nearest one; match: how near it is.
    """

    portrait: Photo
    photo: Photo
    match: Match
    shown: Photo

    @property
    def laid_in(self) -> bool:
        """Whether it shows the person's face, not the portrait's own, which is not taught."""
        return self.shown.image is not self.portrait.image

    @cached_property
    def steepness(self) -> float:
        """The gradient along the seam, as a share of the portrait's (`seams.steepness`)."""
        return steepness(self.shown.image, self.portrait.image, mask_of(self.shown))

    @property
    def share_taught(self) -> float:
        """How much of its face is taught, 0..1."""
        face = mask_of(self.shown)
        where = torch.ones_like(face) if self.shown.taught is None else self.shown.taught
        return float((face * where).sum() / face.sum().clamp_min(1))


@dataclass(frozen=True, eq=False)
class LabelSet:
    """The labels of a style's portraits, how they were chosen, and what is to know of them all."""

    labels: tuple[Label, ...]
    settings: LabelSettings
    warnings: tuple[str, ...] = ()

    @property
    def references(self) -> ReferenceSet:
        """The labels as training takes them."""
        return ReferenceSet(tuple(label.shown for label in self.labels), self.warnings)


def labelled(
    portraits: ReferenceSet,
    source: ReferenceSet,
    settings: LabelSettings | None = None,
    *,
    cells: int = CELLS,
) -> LabelSet:
    """The portraits with the person's face in the place of their own, portrait by portrait.

    Each is made of a photo that suits it (`choosing.matches`), moved by its landmarks, in the
    colours that the style's medium gives it (`colours.Palette`), where both faces' masks are; what
    is left around it of the portrait's face takes its tone. `taught` leaves that and the seam out.
    A portrait without a near photo stays as it is, and is taught outside its face. cells: the
    latent's, along a picture's short side. Missing landmarks are estimated from the masks.

    Raises InputError where masks are missing.
    """
    settings = settings or LabelSettings()
    portraits, source = map(with_estimated_landmarks, (portraits, source))
    matches = compared(portraits, source)
    chosen = [near(of_portrait, settings) for of_portrait in matches]
    palette = Palette.of(portraits.photos, source.photos)
    coloured = {
        number: palette.coloured(source.photos[number].image, number) for number in used(chosen)
    }
    labels: list[Label] = []
    for portrait, of_portrait, fit in zip(portraits, matches, chosen, strict=True):
        band = settings.seam * min(portrait.size) / cells
        made = []
        for match in fit:
            photo = source.photos[match.photo]
            shown = _label(portrait, photo, coloured[match.photo], band)
            if shown is not None:
                made.append(Label(portrait, photo, match, shown))
        nearest = min(of_portrait, key=lambda match: match.pose)
        plain = Label(portrait, source.photos[nearest.photo], nearest, _plain(portrait))
        labels += made or [plain]
    return LabelSet(tuple(labels), settings, oval_warnings(portraits, source))


def with_faces_of(
    portraits: ReferenceSet,
    source: ReferenceSet,
    settings: LabelSettings | None = None,
    *,
    cells: int = CELLS,
) -> ReferenceSet:
    """The labels of `labelled` as training takes them; raises InputError as it does."""
    return labelled(portraits, source, settings, cells=cells).references


def of_recipe(
    portraits: ReferenceSet, source: ReferenceSet, recipe: Recipe, downscale: int = DOWNSCALE
) -> LabelSet:
    """The labels that a recipe makes, or would make if it had any, of which a warning tells.

    downscale: pixels along a side of a latent's cell. Raises InputError where masks are missing.
    """
    made = labelled(portraits, source, recipe.labels, cells=recipe.side // downscale)
    if has_labels(recipe):
        return made
    why = (
        f"The recipe {recipe.name} has the pseudo_label {recipe.pseudo_label}: it has no such "
        "labels."
        if recipe.pseudo_label != "face_laid_in"
        else f"The recipe {recipe.name} has no composed task: it has no labels."
    )
    return replace(made, warnings=(*made.warnings, why))


def has_labels(recipe: Recipe) -> bool:
    """Whether a recipe teaches the composed prompt by portraits with the face laid in."""
    return recipe.pseudo_label == "face_laid_in" and recipe.uses("composed")


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
