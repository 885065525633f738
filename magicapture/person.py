"""How much pictures look like a person: face embeddings compared with those of their photos.

Measure with another face model than the identity loss used; otherwise the score shows how well
training fooled it.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import InputError
from .faces.analyzer import FaceAnalyzer, device_of
from .faces.embed import FaceEmbedder, alignment_of, name_of
from .faces.protocols import Face
from .metrics import among, likeness

_UNLIKE = 0.05  # below it photos show no one person, and nothing can be measured against them


@dataclass(frozen=True, eq=False)
class Person:
    """A person: the embeddings (N,D) of their photos, all by one face embedder.

    Raises InputError for another shape, or photos that do not look like one person.
    """

    embeddings: Tensor

    def __post_init__(self) -> None:
        if self.embeddings.ndim != 2 or len(self.embeddings) < 1:
            raise InputError(
                f"The person is {tuple(self.embeddings.shape)}; expected embeddings (N, D)."
            )
        if self.own <= _UNLIKE:
            raise InputError(
                f"The person's photos have a mean cosine of only {self.own:.2f} to each other, too "
                "little to measure against. Check that all show one person."
            )

    @classmethod
    def in_photos(cls, photos: Sequence[Tensor], analyzer: FaceAnalyzer) -> Person:
        """The person of photos (3,H,W), from those in which a face is found.

        Of several faces in a photo that of the person whom the set shows is taken; the analyzer
        needs its face embedder. Raises InputError where no photo has a face.
        """
        faces = [analyzer.detector(photo) for photo in photos]
        chosen = analyzer.people(photos, faces)
        found = [
            analyzer.embeddings(photo, [of_photo[index]])
            for photo, of_photo, index in zip(photos, faces, chosen, strict=True)
            if index is not None
        ]
        if not found:
            raise InputError(
                f"No face is found in the person's {len(photos)} photos; give photos that show it."
            )
        return cls(torch.cat(found))

    @cached_property
    def own(self) -> float:
        """Leave-one-out similarity of the photos: the ceiling for a generated picture.

        1 for a single photo, so that shares of it are plain cosines.
        """
        return float(among(self.embeddings).mean()) if len(self.embeddings) > 1 else 1.0

    @cached_property
    def spread(self) -> float:
        """The standard deviation of that likeness over the photos; 0 for one photo."""
        return float(among(self.embeddings).std()) if len(self.embeddings) > 1 else 0.0

    def likeness(self, embeddings: Tensor) -> Tensor:
        """The mean cosine of each of the embeddings (M,D) to all photos: (M,)."""
        return likeness(embeddings, self.embeddings.to(embeddings.device))

    def find(self, image: Tensor, analyzer: FaceAnalyzer) -> Face | None:
        """The face of an image (3,H,W) that is most like the person; None without a face."""
        faces = analyzer.detector(image)
        if len(faces) < 2:
            return faces[0] if faces else None
        return faces[self.among(image, faces, analyzer)[0]]

    def among(
        self, image: Tensor, faces: Sequence[Face], analyzer: FaceAnalyzer
    ) -> tuple[int, Tensor]:
        """Which of an image's faces is most like the person, and its unit embedding (D,)."""
        vectors = analyzer.embeddings(image, faces)
        chosen = int(self.likeness(vectors).argmax())
        return chosen, vectors[chosen]


@dataclass(frozen=True)
class IdentityReport:
    """How much pictures look like a person, by one face embedder.

    pictures: the mean cosine of each picture's face to the person's photos; None where no face is
        found, which counts as 0 in `share`.
    own, own_spread, photos: the photos' leave-one-out similarity, its standard deviation, how many.
    embedder: its name. of_the_loss: whether the identity loss used the same one; None: unknown.
    """

    pictures: tuple[float | None, ...]
    own: float
    own_spread: float
    photos: int
    embedder: str
    of_the_loss: bool | None = None

    @property
    def shares(self) -> tuple[float, ...]:
        """Each picture's likeness divided by the photos' own."""
        return tuple((value or 0.0) / self.own for value in self.pictures)

    @property
    def share(self) -> float:
        """Their mean: 1 is as alike as another photo of the person, 0 is a stranger."""
        return statistics.fmean(self.shares)

    @property
    def spread(self) -> float:
        """Their standard deviation; 0 for one picture."""
        return statistics.stdev(self.shares) if len(self.pictures) > 1 else 0.0

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return {**asdict(self), "shares": self.shares, "share": self.share, "spread": self.spread}

    def __str__(self) -> str:
        shares = ", ".join(f"{share:.2f}" for share in self.shares)
        lacking = sum(value is None for value in self.pictures)
        several = len(self.pictures) > 1
        spread = f" ± {self.spread:.2f}" if several else ""
        each = f" ({len(self.pictures)} pictures: {shares})" if several else ""
        lines = [
            f"Identity {self.share:.2f}{spread} of the person's own{each}.",
            f"The person's own: cosine {self.own:.2f} ± {self.own_spread:.2f}, each of "
            f"{_some(self.photos, 'photo')} against the others."
            if self.photos > 1
            else "There is one photo of the person, so this is the plain cosine to it.",
        ]
        if lacking:
            lines.append(f"No face was found in {_some(lacking, 'picture')}; that counts as 0.")
        lines.append(f"Face recognition model: {self.embedder}{OF_THE_LOSS[self.of_the_loss]}")
        return "\n".join(lines)


OF_THE_LOSS = {
    False: ", another than the identity loss used.",
    None: ". Unknown whether the identity loss used it.",
    True: ". WARNING: the identity loss used it too, so the score is inflated; measure with "
    "another face recognition model.",
}


def measure_identity(
    images: Sequence[Tensor],
    person: Person,
    analyzer: FaceAnalyzer,
    loss: FaceEmbedder | str | None = None,
) -> IdentityReport:
    """How much images (3,H,W) look like a person; give the analyzer that the person was made with.

    loss: the face embedder of the identity loss, or its name from the adapter, so that the report
    can warn where it is the analyzer's own.
    Raises InputError without images or without the analyzer's face embedder.
    """
    if not len(images):
        raise InputError("There are no pictures to measure; give one or more.")
    found: list[float | None] = []
    for image in images:
        face = person.find(image, analyzer)
        vector = None if face is None else analyzer.embeddings(image, [face])
        found.append(None if vector is None else float(person.likeness(vector)))
    return IdentityReport(
        tuple(found),
        person.own,
        person.spread,
        len(person.embeddings),
        name_of(analyzer.embedder) or type(analyzer.embedder).__name__,
        is_that_of(loss, analyzer.embedder),
    )


def is_that_of(loss: FaceEmbedder | str | None, embedder: FaceEmbedder | None) -> bool | None:
    """Whether a face embedder is the identity loss's, or of its name; None: unknown."""
    if not loss:
        return None
    if isinstance(loss, str):
        return loss == name_of(embedder)
    return same(embedder, loss)


def same(one: FaceEmbedder | None, other: FaceEmbedder | None) -> bool:
    """Whether two face embedders give the same embeddings, however each was loaded."""
    if one is None or other is None or one is other:
        return one is other
    side = alignment_of(one).size
    if alignment_of(other).size != side:
        return False
    noise = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first, second = (F.normalize(r(noise.to(device_of(r))).float()).cpu() for r in (one, other))
    return first.shape == second.shape and torch.allclose(first, second, atol=1e-2)


def _some(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
