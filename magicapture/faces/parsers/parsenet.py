"""ParseNet, run by facexlib."""

from __future__ import annotations

from ..align import HEAD_SIZE
from ..content import Content
from ..embed import NORMALISATIONS
from ..labelling import FaceParser
from ..models import CELEBA, FACEXLIB, WEIGHTS, ModelFile, ModelKind
from ..protocols import Part
from ..weights import filled

PARSENET_LABELS = (
    *(Part.BACKGROUND, Part.SKIN, Part.NOSE, Part.GLASSES, Part.EYE, Part.EYE, Part.BROW),
    *(Part.BROW, Part.EAR, Part.EAR, Part.MOUTH, Part.LIP, Part.LIP, Part.HAIR, Part.HAT),
    *(Part.EARRING, Part.NECKLACE, Part.NECK, Part.CLOTHES),
)
"""The part that each of ParseNet's labels 0-18 means."""


def _recognises(content: Content) -> bool:
    return "out_mask_conv.conv2d.weight" in content.names


def _load(content: Content) -> FaceParser:
    from facexlib.parsing.parsenet import ParseNet

    network = ParseNet(in_size=HEAD_SIZE, out_size=HEAD_SIZE, parsing_ch=len(PARSENET_LABELS))
    filled(network, content.weights, content.path.name)
    return FaceParser(network, PARSENET_LABELS, NORMALISATIONS["arcface"])


PARSENET = ModelKind(
    "parser",
    "ParseNet (facexlib)",
    files=(
        ModelFile("parsing_parsenet.pth", "facexlib", FACEXLIB.format("v0.2.2"), CELEBA, rank=20),
    ),
    endings=WEIGHTS,
    packages={"facexlib": "facexlib"},
    recognises=_recognises,
    load=_load,
)
