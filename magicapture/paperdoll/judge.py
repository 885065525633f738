"""The judge: pictures of a person in a style against the truth, by networks no training saw.

Every score is a mean over the pictures. Networks read references, true dolls and results alike,
so their own errors are in both sides of each comparison.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..metrics import Case, Shown, Sight, floor, likeness, score
from ..metrics.shown import distances, small
from .align import crops
from .captions import tone_word
from .edits import Edit
from .pairs import Pair, masks, pictures
from .readers import faces_in
from .weights import WEIGHTS, load_reader

_BATCH = 32


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
        source = self.see(pictures(pair.ordinary)).identities
        reference = self.see(pictures(pair.reference)).styles
        strangers = self.see(pictures(pair.others_in_style)).identities
        elsewhere = self.see(pictures(pair.otherwise)).styles
        truth, training = small(pictures(pair.truth)), small(pictures(pair.training))
        return Case(
            source,
            reference,
            truth,
            small(masks(pair.truth)),
            training,
            distances(truth, training).amin(0),
            floor(likeness(strangers, source)),
            floor(likeness(elsewhere, reference)),
            tone_word(pair.identity),
        )

    @torch.no_grad()
    def scores(self, images: Tensor, case: Case) -> dict[str, float]:
        """What pictures (B,3,H,W) in 0..1 are worth as pictures of this pair, by `METRICS`' names.

        Those of `pair.unseen` give the ceiling, those of `pair.reference` show a lost person.
        """
        return score(Shown(images, self.see(images), case))

    @torch.no_grad()
    def see(self, images: Tensor) -> Sight:
        """What the readers see in pictures (B,3,H,W), some at a time."""
        parts = [self._see(part) for part in images.float().split(_BATCH)]
        return Sight(*(torch.cat(values) for values in zip(*parts, strict=True)))

    def _see(self, images: Tensor) -> Sight:
        points, certainty = self.readers.finder(images)
        aligned = crops(images, points.numpy())
        face = faces_in(self.readers.parser(images).argmax(1))
        return Sight(
            self.readers.identity(aligned), self.readers.style(images, face), certainty > 0
        )

    @torch.no_grad()
    def obedience(self, images: Tensor, edit: Edit) -> float:
        """The share of pictures (B,3,H,W) in which the probe reads what the edit asked for."""
        logits = [self.readers.probe(part)[edit.attribute] for part in images.split(_BATCH)]
        return float((torch.cat(logits).argmax(1) == edit.index).float().mean())

    def edited(
        self, shown: Mapping[str, Tensor], asked: Mapping[str, Edit], case: Case
    ) -> dict[str, float]:
        """What pictures (B,3,H,W) with the edits asked for are worth, both by `edits`' kinds.

        How often each edit shows, the identity that the edit of the scene leaves, and the style
        that the edit of the face leaves; by `METRICS`' names.
        """
        scene, face = (
            Shown(images, self.see(images), case) for images in (shown["scene"], shown["face"])
        )
        return {
            **{f"obeys_{kind}": self.obedience(shown[kind], asked[kind]) for kind in asked},
            "identity_edited": float(scene.identity.mean()),
            "style_edited": float(face.style.mean()),
        }
