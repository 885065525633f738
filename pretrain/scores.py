"""How good the trained networks are, on development dolls that no training has seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from magicapture.paperdoll import (
    Doll,
    Split,
    identity_from_seed,
    pose_from_seed,
    render,
    style_from_seed,
)
from magicapture.paperdoll.align import crops
from magicapture.paperdoll.attributes import ATTRIBUTES, UNSEEN
from magicapture.paperdoll.readers import PARTS

_FIRST = Split.DEVELOPMENT.seeds.start


def dolls(count: int, identities: int | None = None, styles: int | None = None) -> list[Doll]:
    """Development dolls; with `identities` or `styles` those repeat, in ever new poses."""
    return [
        render(
            identity_from_seed(_FIRST + i % (identities or count)),
            style_from_seed(_FIRST + i % (styles or count)),
            pose_from_seed(_FIRST + i),
        )
        for i in range(count)
    ]


def pictures(some: list[Doll]) -> Tensor:
    """Their pictures (N, 3, H, W)."""
    return torch.from_numpy(np.stack([doll.image for doll in some]))


@torch.no_grad()
def psnr(vae: nn.Module, some: list[Doll]) -> float:
    """Reconstruction in dB, the mean over pictures."""
    x = pictures(some)
    parts = [vae.decoder(vae.encoder(p * 2 - 1)) for p in x.split(16)]  # type: ignore[operator]
    error = ((torch.cat(parts).clamp(-1, 1) + 1) / 2 - x).pow(2).mean((1, 2, 3))
    return float((-10 * torch.log10(error)).mean())


@torch.no_grad()
def verification(embedder: nn.Module, identities: int = 100, each: int = 5) -> float:
    """Area under the curve of telling same from different faces, with true landmarks."""
    some = dolls(identities * each, identities=identities)
    faces = crops(pictures(some), np.stack([doll.landmarks for doll in some]))
    vectors = F.normalize(torch.cat([embedder(part) for part in faces.split(50)]))
    return _same_or_not(vectors, np.arange(len(some)) % identities)


@torch.no_grad()
def style_verification(embedder: nn.Module, styles: int = 100, each: int = 4) -> float:
    """Area under the curve of telling same from different styles."""
    some = dolls(styles * each, styles=styles)
    masks = torch.from_numpy(np.stack([doll.mask for doll in some]))
    parts = zip(pictures(some).split(50), masks.split(50), strict=True)
    vectors = F.normalize(torch.cat([embedder(x, m) for x, m in parts]))
    return _same_or_not(vectors, np.arange(len(some)) % styles)


@torch.no_grad()
def landmark_error(finder: nn.Module, some: list[Doll]) -> float:
    """Mean distance of found from true landmarks, in pixels."""
    true = torch.from_numpy(np.stack([doll.landmarks for doll in some]))
    found = torch.cat([finder(part)[0] for part in pictures(some).split(50)])
    return float((found - true).norm(dim=-1).mean())


@torch.no_grad()
def overlap(parser: nn.Module, some: list[Doll]) -> float:
    """Mean over parts of intersection over union."""
    true = np.stack([doll.labels for doll in some])
    guess = torch.cat([parser(part).argmax(1) for part in pictures(some).split(16)]).numpy()
    ious = []
    for part in range(PARTS):
        a, b = true == part, guess == part
        if a.any():
            ious.append((a & b).sum() / (a | b).sum())
    return float(np.mean(ious))


@torch.no_grad()
def obedience(probe: nn.Module, some: Tensor, truth: Sequence[dict[str, int]]) -> dict[str, float]:
    """By attribute, how often the probe reads the true class off pictures (N, 3, H, W).

    On dolls this is the probe's own ceiling; on samples from their captions, what a prompt gets.
    """
    parts = [probe(part) for part in some.split(50)]
    shares = {}
    for name in ATTRIBUTES:
        guess = torch.cat([part[name].argmax(1) for part in parts])
        true = torch.tensor([one[name] for one in truth])
        shares[name] = float((guess == true)[true != UNSEEN].float().mean())
    return shares


def auc(same: NDArray[np.floating], different: NDArray[np.floating]) -> float:
    """How often a same pair scores above a different one; ties count half."""
    ordered = np.sort(different)
    below = np.searchsorted(ordered, same, "left") + np.searchsorted(ordered, same, "right")
    return float(below.mean() / (2 * len(ordered)))


def _same_or_not(vectors: Tensor, classes: NDArray[np.int64]) -> float:
    likeness = cast(NDArray[np.float32], (vectors @ vectors.T).numpy())
    a, b = np.triu_indices(len(classes), 1)
    same = classes[a] == classes[b]
    return auc(likeness[a, b][same], likeness[a, b][~same])
