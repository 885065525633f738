"""What the doctor says of each photo and of the set, and where the thresholds are from.

They were set on 20 photos of one person (widths of the face 36 to 306 px at 512) and 9 portraits
of others, with YuNet and MobileFaceNet; docs/faces.md has the figures.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["use", "care", "leave out"]

VERDICTS: dict[Verdict, str] = {
    "use": "use",
    "care": "use with care",
    "leave out": "leave out",
}


@dataclass(frozen=True)
class Limits:
    """Below (or above) which a photo is used with care, or left out."""

    face_small: float = 64  # px at training size: 8 cells of the latent
    face_tiny: float = 32  # 4 cells: eyes and mouth share one
    soft: float = 0.22  # sharpness: real photos 0.27 to 0.63
    blurred: float = 0.12  # a Gaussian of 2 % of the face's width brings a 130 px face here
    turned: float = 40  # degrees of yaw; two detectors differ by up to 9
    profile: float = 65
    tilted: float = 50  # degrees of pitch; two detectors differ by up to 34, so it is care only
    dark: float = 0.15  # mean brightness of the face: real photos 0.26 to 0.74
    bright: float = 0.85
    side_light: float = 0.55  # difference of the halves over their sum: real photos up to 0.43
    hidden: float = 0.2  # share of the inner face that a parser calls something else
    covered: float = 0.5
    narrow: float = 0.5  # share of the face's oval outside the user's mask: exact ones 0.05 to 0.21
    cut: float = 0.1  # share of the face's oval beyond the picture: a fifth of the face is cut off
    cut_off: float = 0.25  # with 40 % of it cut off on one side, the landmarks are guesses
    twin: float = 0.9  # correlation of pictures, or of faces: other photos at most 0.75
    unlike: float = 0.65  # share of the set's own figure: the person's photos 0.79 and more
    stranger: float = 0.45  # other people at most 0.2


@dataclass(frozen=True)
class PhotoCheck:
    """One photo's figures; None where they could not be told.

    width: of the face in pixels at training size. sharpness, brightness: 0 to 1. yaw, pitch, roll:
    degrees. side_light: -1 to 1. hidden, cut: shares of the face. likeness: median cosine to the
    other photos. mask: what is wrong with the user's own; narrow: the share of the face outside it.
    twin: the earlier photo that is nearly the same. box: of the face, in pixels.
    """

    name: str
    verdict: Verdict
    reasons: tuple[str, ...]
    faces: int
    box: tuple[float, ...] | None = None
    width: float | None = None
    sharpness: float | None = None
    yaw: float | None = None
    pitch: float | None = None
    roll: float | None = None
    brightness: float | None = None
    side_light: float | None = None
    hidden: float | None = None
    cut: float | None = None
    likeness: float | None = None
    mask: str | None = None
    narrow: float | None = None
    twin: str | None = None

    @property
    def text(self) -> str:
        """The verdict with its reasons."""
        return ": ".join(filter(None, (VERDICTS[self.verdict], "; ".join(self.reasons))))


@dataclass(frozen=True)
class SetCheck:
    """All photos, and the set's figures.

    identity: leave-one-out cosine of the photos that are not left out, and its spread over them.
    yaw_spread: degrees between the outermost. light_spread: standard deviation of brightness.
    advice: what the set lacks.
    """

    photos: tuple[PhotoCheck, ...]
    role: str
    resolution: int
    identity: float | None = None
    identity_spread: float | None = None
    yaw_spread: float | None = None
    light_spread: float | None = None
    advice: tuple[str, ...] = ()

    def count(self, verdict: Verdict) -> int:
        """How many photos got a verdict."""
        return sum(photo.verdict == verdict for photo in self.photos)

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON-ready data."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """The same as JSON."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    @property
    def summary(self) -> list[str]:
        """Lines on the set as a whole, with the advice."""
        counts = ", ".join(f"{self.count(v)} {VERDICTS[v]}" for v in VERDICTS)
        lines = [f"{len(self.photos)} photo{'s' * (len(self.photos) != 1)}: {counts}."]
        if self.identity is not None:
            lines.append(
                f"Leave-one-out identity {self.identity:.2f} (spread {self.identity_spread:.2f})."
            )
        if self.yaw_spread is not None and len(self.photos) > 1:
            lines.append(
                f"The head turns over {self.yaw_spread:.0f} degrees; the light varies by "
                f"{self.light_spread:.2f}."
            )
        return [*lines, *self.advice]

    def __str__(self) -> str:
        return "\n".join([*(f"{p.name}: {p.text}" for p in self.photos), *self.summary])
