"""Scores of pictures of a real person in a style, by a network that no training has seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..clip import Clip
from ..data import central
from ..errors import InputError
from ..faces.analyzer import FaceAnalyzer, embed_faces
from ..faces.masks import face_mask
from ..metrics import among, both, floor, likeness
from ..metrics.shown import copy_distance, nearest, small
from ..person import Person
from ..style import Space, StyleReader
from .sets import Shots

_ALIKE = 0.05  # below it portraits share no style that could be measured

Values = dict[str, list[float]]
"""By a column's name, one value a picture."""


@dataclass(frozen=True, eq=False)
class Seen:
    """What is known of pictures that were not drawn: rows of one set, those trained on first.

    faces (N,D) by the judge; styles (N,E) raw statistics; small (N,3,s,s); clip (N,F) or None;
    used: how many were trained on.
    """

    faces: Tensor
    styles: Tensor
    small: Tensor
    clip: Tensor | None
    used: int


@dataclass(frozen=True, eq=False)
class Case:
    """A person and a style as scores need them; `Judge.case` makes it.

    portraits (n,D): their people's faces. style (n,E), in `space`: of the portraits.
    identity_floor, style_floor: likeness at or below which the concept is missing. training
    (N,3,s,s): all pictures trained on, small; apart: what is nearer to one of them is a copy.
    """

    person: Person
    portraits: Tensor
    style: Tensor
    identity_floor: float
    style_floor: float
    training: Tensor
    apart: float
    clip: Tensor | None

    def identity(self, faces: Tensor) -> Tensor:
        """Likeness to the person (N,) as a share of their photos' own."""
        return self.person.likeness(faces) / self.person.own

    def like_style(self, styles: Tensor) -> Tensor:
        """Likeness to the style (N,) as a share of the portraits' own."""
        return likeness(styles, self.style) / among(self.style).mean()


class Judge:
    """Scores pictures (B,3,S,S) against real people and styles.

    analyzer: with a face embedder that the identity loss does not use. Raises InputError for a set
    that shows no one person, or no one style.
    """

    def __init__(
        self,
        analyzer: FaceAnalyzer,
        reader: StyleReader,
        people: Sequence[Shots],
        styles: Sequence[Shots],
        side: int,
        clip: Clip | None = None,
    ) -> None:
        self.analyzer, self.reader, self.side, self.clip = analyzer, reader, side, clip
        self.names = [one.name for one in people], [one.name for one in styles]
        self.people = [self._seen(one) for one in people]
        self.styles = [self._seen(one) for one in styles]
        pool = torch.cat([one.styles[: one.used] for one in (*self.people, *self.styles)])
        self.space = Space.of(pool)
        self.weights = reader.weights(torch.zeros(3, side, side))
        self.clip_space = None
        if clip is not None:
            known = [one.clip[: one.used] for one in (*self.people, *self.styles)]  # type: ignore[index]
            self.clip_space = Space.of(torch.cat(known), spread=False)

    def case(self, person: int, style: int) -> Case:
        """What scores of a person in a style are measured against; raises InputError (above)."""
        who, look = self.people[person], self.styles[style]
        try:
            own = Person(who.faces[: who.used])
        except InputError as error:
            raise InputError(f"{self.names[0][person]}: {error}") from error
        style_vectors = self._in_space(look.styles[: look.used])
        alike = float(among(style_vectors).mean())
        if alike <= _ALIKE:
            raise InputError(
                f"{self.names[1][style]}: the portraits are alike by {alike:.2f} only, so likeness "
                "to them means nothing. Check that all are of one style, and that --styles holds "
                "a folder for each."
            )
        strangers, elsewhere = self._without(person, style)
        training = torch.cat([who.small[: who.used], look.small[: look.used]])
        return Case(
            own,
            look.faces,
            style_vectors,
            floor(own.likeness(strangers)),
            floor(likeness(elsewhere, style_vectors)),
            training,
            copy_distance(training),
            None if look.clip is None else self._clip(look.clip[: look.used]),
        )

    def references(self, person: int, style: int, case: Case) -> dict[str, dict[str, float | None]]:
        """What pictures held out score, the ceiling, and pictures of others, the floor.

        case: of this person and style.
        """
        who, look = self.people[person], self.styles[style]
        strangers, elsewhere = self._without(person, style)
        held = (
            case.identity(who.faces[who.used :]),
            case.like_style(self._in_space(look.styles[look.used :])),
        )
        lacking = case.identity(strangers), case.like_style(elsewhere)
        return {
            name: {
                "identity": float(faces.mean()) if len(faces) else None,
                "style": float(looks.mean()) if len(looks) else None,
            }
            for name, (faces, looks) in (("held out", held), ("without it", lacking))
        }

    def _without(self, person: int, style: int) -> tuple[Tensor, Tensor]:
        """Faces (N,D) of other people, and pictures (M,E), in `space`, of other styles."""
        others = [one.faces for i, one in enumerate(self.people) if i != person]
        elsewhere = [one for i, one in enumerate(self.styles) if i != style] + self.people
        return (
            torch.cat([self.styles[style].faces, *others]),
            self._in_space(torch.cat([one.styles for one in elsewhere])),
        )

    def scores(self, images: Tensor, case: Case) -> Values:
        """The columns of pictures (B,3,S,S) in 0..1, one value for each picture."""
        faces, styles = zip(*(self._look(image, case.person) for image in images), strict=True)
        found = torch.tensor([face is not None for face in faces])
        width = case.portraits.shape[1]
        vectors = torch.stack([torch.zeros(width) if f is None else f for f in faces])
        identity = case.identity(vectors)
        looks = self._in_space(torch.stack(styles))
        style = case.like_style(looks)
        lost = case.person.likeness(vectors) <= case.identity_floor
        plain = likeness(looks, case.style) <= case.style_floor
        near = nearest(small(images), case.training)
        values = {
            "identity": identity,
            "style": style,
            "both": both(identity, style),
            "portraits": (vectors @ case.portraits.T).amax(1) / case.person.own,
            "collapse": lost | ~found | plain,
            "copies": near < case.apart,
            "nearest": near,
            "faces": found,
        }
        if self.clip is not None and case.clip is not None:
            seen = self._clip(self.clip.of_images(images))
            values["style_clip"] = likeness(seen, case.clip) / among(case.clip).mean()
        return {name: [round(float(v), 4) for v in column] for name, column in values.items()}

    def _look(self, image: Tensor, person: Person) -> tuple[Tensor | None, Tensor]:
        """The embedding (D,) of a picture's face, if there is one, and its style (E,)."""
        faces = self.analyzer.detector(image)
        if not faces:
            return None, self.reader(image, None)
        chosen, vector = person.among(image, faces, self.analyzer)
        mask = face_mask(image, faces[chosen], self.analyzer.parser, others=faces).mask
        return vector, self.reader(image, mask)

    def _seen(self, shots: Shots) -> Seen:
        """What is known of a set's pictures; faces at their own size, the rest as it is drawn."""
        assert self.analyzer.embedder is not None
        photos = [*shots.used, *shots.held]
        marks = [photo.landmarks for photo in photos if photo.landmarks is not None]
        faces = embed_faces(self.analyzer.embedder, [p.image for p in photos], marks).cpu()
        squares = [central(photo, self.side) for photo in photos]
        styles = [
            self.reader(self.reader.painted(square.image), square.face_mask) for square in squares
        ]
        images = torch.stack([square.image for square in squares])
        clip = None if self.clip is None else self.clip.of_images(images)
        return Seen(faces, torch.stack(styles), small(images), clip, len(shots.used))

    def _in_space(self, styles: Tensor) -> Tensor:
        return self.space(styles) * self.weights

    def _clip(self, vectors: Tensor) -> Tensor:
        assert self.clip_space is not None
        return self.clip_space(vectors)
