"""Face parsers from the user's files: BiSeNet and ParseNet, whose labels differ in order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError, MagiCaptureError
from .align import HEAD_SIZE
from .embed import NORMALISATIONS, Normalisation
from .protocols import Part
from .weights import filled, read_weights

BISENET_LABELS = (
    *(Part.BACKGROUND, Part.SKIN, Part.BROW, Part.BROW, Part.EYE, Part.EYE, Part.GLASSES),
    *(Part.EAR, Part.EAR, Part.EARRING, Part.NOSE, Part.MOUTH, Part.LIP, Part.LIP, Part.NECK),
    *(Part.NECKLACE, Part.CLOTHES, Part.HAIR, Part.HAT),
)
"""The part that each of BiSeNet's labels 0-18 means."""

PARSENET_LABELS = (
    *(Part.BACKGROUND, Part.SKIN, Part.NOSE, Part.GLASSES, Part.EYE, Part.EYE, Part.BROW),
    *(Part.BROW, Part.EAR, Part.EAR, Part.MOUTH, Part.LIP, Part.LIP, Part.HAIR, Part.HAT),
    *(Part.EARRING, Part.NECKLACE, Part.NECK, Part.CLOTHES),
)
"""The part that each of ParseNet's labels 0-18 means."""

PAPERDOLL_LABELS = (*BISENET_LABELS, Part.BEARD)
"""The part that each label of paperdoll's parser means."""


class FaceParser(nn.Module):
    """A network that labels pixels, with the meaning of its labels; fits `Parser`.

    network: images (B,3,S,S), normalised, to scores (B,N,S,S), or to a tuple that starts with
        them. labels: what each of the N means. side: S, or None for any multiple of 8.
    """

    mean: Tensor
    std: Tensor
    parts: Tensor

    def __init__(
        self,
        network: nn.Module,
        labels: Sequence[Part],
        normalisation: Normalisation,
        side: int | None = HEAD_SIZE,
    ) -> None:
        super().__init__()
        self.network, self.side = network, side
        self.register_buffer("mean", torch.tensor(normalisation.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(normalisation.std).view(3, 1, 1))
        self.register_buffer("parts", torch.tensor([int(part) for part in labels]))
        self.float().eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Upright heads (B,3,H,W) in 0..1 to (B,H,W) values of `Part`."""
        height, width = images.shape[-2:]
        size = (self.side or height, self.side or width)
        pixels = images.to(self.mean.device, torch.float32)
        if size != (height, width):
            pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True)
        scores = self.network((pixels - self.mean) / self.std)
        if isinstance(scores, tuple):
            scores = scores[0]
        if size != (height, width):
            scores = F.interpolate(scores, (height, width), mode="bilinear")
        return self.parts[scores.argmax(dim=1)]


def load_parser(path: str | Path) -> FaceParser:
    """A face parser from a file of facexlib's BiSeNet or ParseNet (.pth or .safetensors).

    Raises StorageError for a file that is missing or damaged, InputError for another network.
    """
    path = Path(path)
    with torch.inference_mode(False):
        weights = read_weights(path)
        if any(key.startswith("cp.resnet.") for key in weights):
            network, labels, kind = _bisenet(), BISENET_LABELS, "imagenet"
        elif "out_mask_conv.conv2d.weight" in weights:
            network, labels, kind = _parsenet(), PARSENET_LABELS, "arcface"
        else:
            raise InputError(
                f"{path.name} is neither BiSeNet nor ParseNet; expected parsing_bisenet.pth or "
                "parsing_parsenet.pth."
            )
        return FaceParser(filled(network, weights, path.name), labels, NORMALISATIONS[kind])


def _bisenet() -> nn.Module:
    try:
        from facexlib.parsing.bisenet import BiSeNet
    except ImportError as error:
        raise _needs_facexlib() from error
    return BiSeNet(num_class=len(BISENET_LABELS))


def _parsenet() -> nn.Module:
    try:
        from facexlib.parsing.parsenet import ParseNet
    except ImportError as error:
        raise _needs_facexlib() from error
    return ParseNet(in_size=HEAD_SIZE, out_size=HEAD_SIZE, parsing_ch=len(PARSENET_LABELS))


def _needs_facexlib() -> MagiCaptureError:
    return MagiCaptureError(
        "Face parsing needs the package facexlib; install it with 'pip install facexlib' in the "
        "environment of ComfyUI."
    )
