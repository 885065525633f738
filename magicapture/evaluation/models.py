"""The networks that pictures are measured with, all the user's, and the columns each bears."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..clip import PictureEncoder, TextEncoder
from ..errors import InputError
from ..faces.analyzer import FaceAnalyzer
from .aesthetic import AestheticHead


@dataclass(frozen=True, eq=False)
class Models:
    """What is at hand. The analyzer's face embedder should be another than the identity loss's.

    pictures, texts: of one CLIP model. Raises InputError for an aesthetic head or texts without
    the pictures.
    """

    analyzer: FaceAnalyzer
    pictures: PictureEncoder | None = None
    texts: TextEncoder | None = None
    aesthetic: AestheticHead | None = None

    def __post_init__(self) -> None:
        if self.pictures is None and (self.aesthetic is not None or self.texts is not None):
            what = "text encoder" if self.aesthetic is None else "aesthetic head"
            raise InputError(
                f"The {what} is given without the CLIP model that sees the pictures; give both."
            )


def missing(models: Models, *, style: bool, prompts: bool) -> Iterator[str]:
    """A sentence on each thing that is missing, with the columns that are left out for it.

    style: whether there are portraits of the style. prompts: whether there is a prompt.
    """
    if models.analyzer.embedder is None:
        yield "identity, CSIM: there is no face recognition model."
    if models.pictures is None:
        yield "style, diversity, aesthetic, obedience: there is no CLIP model."
        return
    if not style:
        yield "style: there are no portraits of the style."
    if models.aesthetic is None:
        yield "aesthetic: there is no aesthetic head, such as LAION's for ViT-L/14."
    if models.texts is None:
        yield "obedience: the CLIP model has no text encoder."
    elif not prompts:
        yield "obedience: there is no prompt."
