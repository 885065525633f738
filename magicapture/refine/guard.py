"""The identity guard: finishing may cost the person only so much of their likeness."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..faces.analyzer import device_of
from ..faces.embed import FaceEmbedder, alignment_of
from ..person import Person

TOLERANCE = 0.03
"""How much likeness finishing may cost, as a share of how alike the person's photos are."""

_GRID = 17  # strengths tried at first: likeness need not fall evenly with strength
_HALVINGS = 6  # of the last interval, down to 0.001 of strength


@dataclass(frozen=True)
class GuardReport:
    """What finishing did to the likeness, and how much of it was kept.

    before, after, kept: mean cosine to the person's photos of the picture as it came in, finished
        whole, and as it leaves. own: the person's photos among themselves, each against the
        others; 1 where there is one photo, so that shares are plain cosines.
    strength: the share of the finishing that was kept, 0 to 1. tolerance: the share of `own` that
        it may cost.
    """

    before: float
    after: float
    kept: float
    own: float
    strength: float
    tolerance: float

    def as_dict(self) -> dict[str, float]:
        """The report as JSON-ready data."""
        return asdict(self)

    def __str__(self) -> str:
        shares = [f"{100 * value / self.own:.1f} %" for value in (self.before, self.after)]
        cost = 100 * (self.before - self.after) / self.own
        said = (
            f"Likeness before {shares[0]}, finished {shares[1]} of the person's own "
            f"({self.own:.3f}): cost {cost:.1f} points, allowed {100 * self.tolerance:.1f}."
        )
        if self.strength >= 1:
            return f"{said} Kept whole."
        return (
            f"{said} Strength lowered to {self.strength:.2f}: likeness "
            f"{100 * self.kept / self.own:.1f} %, cost "
            f"{100 * (self.before - self.kept) / self.own:.1f} points."
        )


@torch.no_grad()
def guard_identity(
    before: Tensor,
    after: Tensor,
    landmarks: Tensor,
    embedder: FaceEmbedder,
    person: Person,
    tolerance: float = TOLERANCE,
) -> tuple[Tensor, GuardReport]:
    """The strongest blend of a picture with its finished self that keeps the person.

    before, after: (3,H,W) in 0..1, of one size. landmarks: (5,2) of the person's face in them.
    With likeness l(s) = mean over n of cos(R((1 - s) before + s after), person_n) the strength s
    is the largest with l(0) - l(s) <= tolerance * own, found on a grid and then by bisection; own
    is the photos' leave-one-out similarity. Returns the blend (3,H,W) and the report. Raises
    InputError for pictures of two sizes or a tolerance below 0.
    """
    if before.shape != after.shape:
        raise InputError(
            f"The picture is {tuple(before.shape)} before and {tuple(after.shape)} after; expected "
            "one size. Resize the first."
        )
    if not tolerance >= 0:
        raise InputError(f"The tolerance is {tolerance:g}; expected 0 or more.")
    device, alignment = device_of(embedder), alignment_of(embedder)
    # Warping is linear, so a blend of the faces is the face of the blend.
    first, last = (alignment.faces(i[None].to(device), landmarks[None]) for i in (before, after))

    def likenesses(strengths: Tensor) -> Tensor:
        share = strengths.to(first).view(-1, 1, 1, 1)
        return person.likeness(embedder(torch.lerp(first, last, share))).cpu()

    strength, kept, ends = _strongest(likenesses, tolerance * person.own)
    blend = after if strength >= 1 else torch.lerp(before, after, strength)
    return blend, GuardReport(*ends, kept, person.own, strength, tolerance)


def _strongest(
    likenesses: Callable[[Tensor], Tensor], allowed: float
) -> tuple[float, float, tuple[float, float]]:
    """The largest strength whose cost is allowed, its likeness, and the likenesses at 0 and 1."""
    strengths = torch.linspace(0, 1, _GRID)
    found = likenesses(strengths)
    ends = float(found[0]), float(found[-1])
    floor = ends[0] - allowed
    index = int((found >= floor).nonzero().max())  # 0 always passes: it costs nothing
    strength, kept = float(strengths[index]), float(found[index])
    step = 1 / (_GRID - 1)
    for _ in range(_HALVINGS if index < _GRID - 1 else 0):
        step /= 2
        tried = float(likenesses(torch.tensor([strength + step])))
        if tried >= floor:
            strength, kept = strength + step, tried
    return strength, kept, ends
