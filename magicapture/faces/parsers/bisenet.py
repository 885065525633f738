"""BiSeNet, run by facexlib."""

from __future__ import annotations

from ..content import Content
from ..embed import NORMALISATIONS
from ..labelling import FaceParser
from ..models import CELEBA, FACEXLIB, WEIGHTS, ModelFile, ModelKind
from ..protocols import Part
from ..weights import filled

BISENET_LABELS = (
    *(Part.BACKGROUND, Part.SKIN, Part.BROW, Part.BROW, Part.EYE, Part.EYE, Part.GLASSES),
    *(Part.EAR, Part.EAR, Part.EARRING, Part.NOSE, Part.MOUTH, Part.LIP, Part.LIP, Part.NECK),
    *(Part.NECKLACE, Part.CLOTHES, Part.HAIR, Part.HAT),
)
"""The part that each of BiSeNet's labels 0-18 means."""


def _recognises(content: Content) -> bool:
    return any(name.startswith("cp.resnet.") for name in content.names)


def _load(content: Content) -> FaceParser:
    from facexlib.parsing.bisenet import BiSeNet

    network = BiSeNet(num_class=len(BISENET_LABELS))
    filled(network, content.weights, content.path.name)
    return FaceParser(network, BISENET_LABELS, NORMALISATIONS["imagenet"])


BISENET = ModelKind(
    "parser",
    "BiSeNet (facexlib)",
    files=(
        ModelFile("parsing_bisenet.pth", "facexlib", FACEXLIB.format("v0.2.0"), CELEBA, rank=10),
    ),
    endings=WEIGHTS,
    packages={"facexlib": "facexlib"},
    recognises=_recognises,
    load=_load,
)
