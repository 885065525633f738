"""How alike a thing in pictures is to its photos: by DINO, since a thing has no face."""

from __future__ import annotations

import torch
from torch import Tensor

from ..data import ReferenceSet
from ..dino import Dino
from ..faces.analyzer import FaceAnalyzer
from ..person import Person

NO_FACES = FaceAnalyzer(lambda image: ())
"""Looks for no face, where a thing is learned."""


class Thing:
    """A thing, by DINO's [CLS] of its photos, which are whole pictures.

    Raises InputError for photos that do not look like one thing.
    """

    def __init__(self, dino: Dino, photos: ReferenceSet) -> None:
        self.dino = dino
        self.photos = Person(torch.cat([self._look(photo.image) for photo in photos]))

    def share(self, image: Tensor) -> float:
        """The likeness of a picture (3,H,W) to the photos, as a share of their own."""
        return float(self.photos.likeness(self._look(image))) / self.photos.own

    @torch.no_grad()
    def _look(self, image: Tensor) -> Tensor:
        """[CLS] (1,D) of a square picture."""
        return self.dino(image[None].to(self.dino.mean.device)).look.cpu()
