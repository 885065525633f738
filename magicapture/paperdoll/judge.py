"""The judge: pictures of a person in a style against the truth, by networks no training saw.

Every score is a mean over the pictures. Networks read references, true dolls and results alike,
so their own errors are in both sides of each comparison.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..metrics import both, likeness, share
from .align import crops
from .captions import tone_word
from .edits import Edit
from .pairs import Pair, masks, pictures
from .readers import faces_in
from .weights import WEIGHTS, load_reader

SIDE = 32
"""Side at which pictures are compared: a cell of 4 x 4 pixels forgives a shift that no viewer
would see, and the soft edges of an autoencoder."""

LACKING = 0.95
"""A concept is missing where its likeness is no more than this share of dolls without it reach."""

_BATCH = 32


@dataclass(frozen=True)
class Scores:
    """What pictures are worth; see `Judge.scores`. `dataclasses.asdict` makes it fit for JSON.

    identity, style: likeness divided by the references' leave-one-out similarity; 1 is another of
        their pictures, 0 a stranger. both: the harmonic mean of the two, picture by picture.
    distance: mean absolute difference of R, G, B (0..1) to the true composition of the nearest
        pose, at 32 x 32. face_distance, scene_distance: the same on the face and off it.
    identity_missing, style_missing: shares of pictures that show no more of the person (of the
        style) than pictures of others do. collapse: share of pictures where either is missing.
    copies: share of pictures nearer to a training picture than to any true composition, and
        nearer to it than any true composition comes; mirror images count as well.
    faces: share of pictures in which a face is found. tone: the person's band of skin tone.
    """

    identity: float
    style: float
    both: float
    distance: float
    face_distance: float
    scene_distance: float
    identity_missing: float
    style_missing: float
    collapse: float
    copies: float
    faces: float
    tone: str


@dataclass(frozen=True, eq=False)
class Readers:
    """The networks that a judge reads with; never the face embedder of the identity loss."""

    identity: nn.Module
    finder: nn.Module
    parser: nn.Module
    style: nn.Module
    probe: nn.Module

    @classmethod
    def load(cls, folder: Path = WEIGHTS) -> Readers:
        """The shipped ones; raises StorageError where one is missing."""
        names = ("identity_score", "finder", "parser", "style", "probe")
        return cls(*(load_reader(name, folder) for name in names))


class Sight(NamedTuple):
    """What the readers see in pictures: identities (N,D), styles (N,E), and whether a face."""

    identities: Tensor
    styles: Tensor
    faces: Tensor


@dataclass(frozen=True, eq=False)
class Case:
    """A pair as the judge knows it; made once by `Judge.case`.

    truth, training: pictures at SIDE, (N,3,s,s). face: masks of the truth (N,1,s,s).
    warranted: how near any true composition comes to each training picture.
    identity_floor, style_floor: likeness at or below which the concept is missing.
    """

    source: Tensor
    reference: Tensor
    truth: Tensor
    face: Tensor
    training: Tensor
    warranted: Tensor
    identity_floor: float
    style_floor: float
    tone: str


class Judge:
    """Scores pictures (B,3,128,128) in 0..1 of a pair's person in its style."""

    def __init__(self, readers: Readers) -> None:
        self.readers = readers

    @classmethod
    def load(cls, folder: Path = WEIGHTS) -> Judge:
        """The judge of the shipped networks; raises StorageError where one is missing."""
        return cls(Readers.load(folder))

    def case(self, pair: Pair) -> Case:
        """Everything about a pair that scores are measured against."""
        source = self.see(pictures(pair.source)).identities
        reference = self.see(pictures(pair.reference)).styles
        strangers = self.see(pictures(pair.others_in_style)).identities
        elsewhere = self.see(pictures(pair.otherwise)).styles
        truth, training = _small(pictures(pair.truth)), _small(pictures(pair.training))
        return Case(
            source,
            reference,
            truth,
            _small(masks(pair.truth)),
            training,
            _distances(truth, training).amin(0),
            float(likeness(strangers, source).quantile(LACKING)),
            float(likeness(elsewhere, reference).quantile(LACKING)),
            tone_word(pair.identity),
        )

    @torch.no_grad()
    def scores(self, images: Tensor, case: Case) -> Scores:
        """What pictures (B,3,H,W) in 0..1 are worth as pictures of this pair.

        Those of `pair.unseen` give the ceiling, those of `pair.reference` show a lost person.
        """
        seen = self.see(images)
        identity = share(seen.identities, case.source) * seen.faces
        style = share(seen.styles, case.reference)
        no_identity = likeness(seen.identities, case.source) <= case.identity_floor
        no_identity |= ~seen.faces
        no_style = likeness(seen.styles, case.reference) <= case.style_floor
        whole, face, scene = _to_truth(_small(images), case)
        found = {
            "identity": identity,
            "style": style,
            "both": both(identity, style),
            "distance": whole,
            "face_distance": face,
            "scene_distance": scene,
            "identity_missing": no_identity,
            "style_missing": no_style,
            "collapse": no_identity | no_style,
            "copies": _copied(_small(images), case),
            "faces": seen.faces,
        }
        means = {name: float(values.float().mean()) for name, values in found.items()}
        return Scores(**means, tone=case.tone)

    @torch.no_grad()
    def see(self, images: Tensor) -> Sight:
        """What the readers see in pictures (B,3,H,W), some at a time."""
        parts = [self._see(part) for part in images.float().split(_BATCH)]
        return Sight(*(torch.cat(values) for values in zip(*parts, strict=True)))

    def _see(self, images: Tensor) -> Sight:
        points, score = self.readers.finder(images)
        aligned = crops(images, points.numpy())
        face = faces_in(self.readers.parser(images).argmax(1))
        return Sight(self.readers.identity(aligned), self.readers.style(images, face), score > 0)

    @torch.no_grad()
    def obedience(self, images: Tensor, edit: Edit) -> float:
        """The share of pictures (B,3,H,W) in which the probe reads what the edit asked for."""
        logits = [self.readers.probe(part)[edit.attribute] for part in images.split(_BATCH)]
        return float((torch.cat(logits).argmax(1) == edit.index).float().mean())


def _small(images: Tensor) -> Tensor:
    return F.interpolate(images.float(), (SIDE, SIDE), mode="area")


def _distances(some: Tensor, others: Tensor) -> Tensor:
    """Mean absolute difference of small pictures (N,3,s,s) and (M,3,s,s): (N,M)."""
    return torch.cdist(some.flatten(1), others.flatten(1), p=1) / some[0].numel()


def _to_truth(small: Tensor, case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Distance to the nearest true composition, whole, on its face and off it: each (B,)."""
    whole, nearest = _distances(small, case.truth).min(1)
    difference = (small - case.truth[nearest]).abs().mean(1, keepdim=True)
    face = case.face[nearest]

    def over(weight: Tensor) -> Tensor:
        return (difference * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3)).clamp_min(1e-6)

    return whole, over(face), over(1 - face)


def _copied(small: Tensor, case: Case) -> Tensor:
    """Whether each picture or its mirror image is a training picture rather than a composition."""
    to_truth = _distances(small, case.truth).amin(1, keepdim=True)
    copies = torch.zeros(len(small), dtype=torch.bool)
    for seen in (small, small.flip(-1)):
        distance = _distances(seen, case.training)
        copies |= ((distance < to_truth) & (distance < case.warranted)).any(1)
    return copies
