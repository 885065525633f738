"""Pictures measured one at a time against a person's photos and a style's portraits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..faces.embed import FaceEmbedder, name_of
from ..metrics import among, both, likeness
from ..metrics.shown import nearest
from ..person import is_that_of
from .models import Models, missing
from .references import References
from .report import Evaluation, Group, Line
from .seen import Seen, see

PHOTOS, PORTRAITS = "the person's photos", "the style's portraits"
"""Rows of real pictures, each measured by the others."""

Values = dict[str, list[float | None]]
"""By a column's name, one value a picture; None where it has none."""


@dataclass(frozen=True)
class Given:
    """A picture to measure.

    read: gives it, (3,H,W) in 0..1; what it raises as InputError is told of the picture, which is
    then left out. prompt: what was asked for, in words, or None.
    """

    name: str
    read: Callable[[], Tensor]
    prompt: str | None = None


def evaluate(
    groups: Mapping[str, Sequence[Given]],
    against: References,
    models: Models,
    *,
    loss: FaceEmbedder | str | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Measure groups of pictures, one picture in memory at a time.

    groups: by name, the pictures of one adapter or folder each. loss: the face embedder of the
    identity loss or its name, so that the report can warn where it measures as well.
    `on_progress(done, total)` may raise to cancel. Raises InputError where no picture can be read.
    """
    total = sum(len(given) for given in groups.values())
    texts = _texts(groups, models, against.photos[0].whole)
    measured, done = [], 0
    for name, given in groups.items():
        seen, asked, lost = [], [], []
        for one in given:
            try:
                seen.append(see_picture(one.name, one.read(), against, models))
                asked.append(None if one.prompt is None else texts.get(one.prompt))
            except InputError as error:
                lost.append(f"{one.name}: {error}")
            done += 1
            on_progress(done, total)
        measured.append(Group(name, _lines(seen, values(seen, against, models, asked)), (*lost,)))
    if not any(group.lines for group in measured):
        reasons = [text for group in measured for text in group.lost]
        raise InputError("\n".join(["There is no picture to measure.", *reasons[:5]]))
    real = [Group(PHOTOS, _lines(against.photos, values(against.photos, against, models)))]
    if against.portraits:
        looks = values(against.portraits, against, models)
        real.append(Group(PORTRAITS, _lines(against.portraits, looks)))
    embedder = models.analyzer.embedder
    lacking = [*missing(models, style=bool(against.portraits), prompts=bool(texts))]
    if against.apart is None:
        lacking.append("copies: there is one training picture, and no distance to compare with.")
    return Evaluation(
        tuple(measured),
        tuple(real),
        tuple(lacking),
        against.warnings,
        None if embedder is None else name_of(embedder) or type(embedder).__name__,
        is_that_of(loss, embedder),
        None if against.person is None else (against.person.own, against.person.spread),
        None if against.style is None else against.style_own,
        against.tone,
    )


def values(
    seen: Sequence[Seen],
    against: References,
    models: Models,
    texts: Sequence[Tensor | None] = (),
) -> Values:
    """The columns of pictures; those of the references themselves are each by the others.

    texts: the embedding (1,E) of each one's prompt.
    """
    found: Values = {}
    shares = []
    if against.person is not None:
        own = seen is against.photos
        found["csim"] = _alike([one.face for one in seen], against.person.embeddings, own)
        found["identity"] = [(value or 0.0) / against.person.own for value in found["csim"]]
        shares.append(found["identity"])
    if against.style is not None:
        own = seen is against.portraits
        found["style"] = _alike([one.faceless for one in seen], against.style, own)
        shares.append([v and v / against.style_own for v in found["style"]])
    if shares:
        found["score"] = [_score(*each) for each in zip(*shares, strict=True)]
    found |= _of_the_whole(seen, models, texts)
    real = seen is against.photos or seen is against.portraits
    if against.apart is not None and not real:
        near = _nearest(seen, against.training)
        found["copies"] = [float(one < against.apart) for one in near]
    found["faces"] = [float(one.faces > 0) for one in seen]
    if against.tones:
        found["tone"] = [one.tone for one in seen]
        usual = against.tone
        found["tone_shift"] = [
            None if one.tone is None or usual is None else one.tone - usual for one in seen
        ]
    return found


def _of_the_whole(seen: Sequence[Seen], models: Models, texts: Sequence[Tensor | None]) -> Values:
    """The columns of CLIP's embeddings of whole pictures."""
    if models.pictures is None or not seen:
        return {}
    whole = torch.stack([one.whole for one in seen if one.whole is not None])
    found: Values = {}
    if len(seen) > 1:
        found["diversity"] = (1 - among(whole)).tolist()
    if models.aesthetic is not None:
        found["aesthetic"] = models.aesthetic(whole).tolist()
    if any(text is not None for text in texts):
        found["obedience"] = [
            None if text is None else float(one @ text[0])
            for one, text in zip(whole, texts, strict=True)
        ]
    return found


def _alike(vectors: Sequence[Tensor | None], references: Tensor, own: bool) -> list[float | None]:
    """Mean cosines to the references, or of each reference to the others; None where no vector."""
    known = [vector for vector in vectors if vector is not None]
    if not known or (own and len(known) < 2):
        return [None] * len(vectors)
    found = iter((among(references) if own else likeness(torch.stack(known), references)).tolist())
    return [None if vector is None else next(found) for vector in vectors]


def _score(*shares: float | None) -> float | None:
    """The harmonic mean of identity and style, or the one there is."""
    known = [torch.tensor(share) for share in shares if share is not None]
    if len(known) < len(shares) or not known:
        return None
    return float(both(known[0], known[-1]))


def _nearest(seen: Sequence[Seen], training: Tensor) -> list[float]:
    if not seen:
        return []
    return nearest(torch.stack([one.small for one in seen]), training).tolist()


def _texts(
    groups: Mapping[str, Sequence[Given]], models: Models, picture: Tensor | None
) -> dict[str, Tensor]:
    """The embedding (1,E) of every prompt; InputError where pictures' (E,) has another width."""
    if models.texts is None or picture is None:
        return {}
    prompts = dict.fromkeys(one.prompt for given in groups.values() for one in given if one.prompt)
    found = {prompt: models.texts.of_text(prompt).cpu() for prompt in prompts}
    widths = {text.shape[-1] for text in found.values()} - {len(picture)}
    if widths:
        raise InputError(
            f"CLIP's embeddings of texts have {min(widths)} numbers, those of pictures "
            f"{len(picture)}; give both halves of one CLIP model."
        )
    return found


def see_picture(name: str, image: Tensor, against: References, models: Models) -> Seen:
    """Look at a picture (3,H,W): of several faces the one most like the person counts, else the
    largest."""
    analyzer = models.analyzer
    faces = analyzer.detector(image)
    face: tuple[int, Tensor | None] | None = (0, None) if faces else None
    if faces and against.person is not None:
        face = against.person.among(image, faces, analyzer)
    return see(image, name, faces, face, models, tones=against.tones)


def _lines(seen: Sequence[Seen], found: Values) -> tuple[Line, ...]:
    return tuple(
        Line(
            one.name,
            {name: column[i] for name, column in found.items()},
            one.faces,
            one.thumbnail,
        )
        for i, one in enumerate(seen)
    )
