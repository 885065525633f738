"""What MagicFace is worth on the paperdoll model, against the same prompt without it.

    python benchmarks/magicface_paperdoll.py --pairs 8 --seeds 4 --out docs/benchmarks

Held-out pairs of a person and a style. The prompt says the style in words and of the person only
"person". One concept is the person's face, from one photo; two add the clothes and three the
background as well, both from one portrait in the style. The judge's networks saw no training;
identity and style are shares of what the references reach among themselves. Intervals are over
pairs.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from magicapture.backbones import load_backbone
from magicapture.backbones.diffusers import DiffusersBackbone
from magicapture.magicface import MagicFaceSettings, Reference, ReferenceGuide
from magicapture.metrics import bootstrap
from magicapture.paperdoll.canvas import Label
from magicapture.paperdoll.captions import caption
from magicapture.paperdoll.judge import Judge, Scores
from magicapture.paperdoll.pairs import Pair, make_pair
from magicapture.paperdoll.render import Doll
from magicapture.paperdoll.traits import Pose
from magicapture.paperdoll.weights import WEIGHTS
from magicapture.sampling import SamplingSettings, sample

FIRST = 1_000_000  # the first held-out seed
ROWS = ("no reference", "one concept", "two concepts", "three concepts")


@dataclass(frozen=True)
class Setup:
    """What is drawn: how many pairs, pictures of each, and how."""

    pairs: int
    seeds: int
    weight: float
    sampling: SamplingSettings
    magicface: MagicFaceSettings


def prompt_of(pair: Pair) -> str:
    """The style in words, and nothing about the person."""
    opening, *clauses = caption(pair.identity, pair.style, Pose()).split(", ")
    words = ("hair", "wearing", "background", "bald")
    return ", ".join([opening, *(c for c in clauses if any(word in c for word in words))])


def references(pair: Pair, count: int, weight: float) -> list[Reference]:
    """The first `count` of face, clothes and background."""
    photo, portrait = pair.source[0], pair.reference[0]
    face = Reference(
        torch.from_numpy(photo.image),
        torch.from_numpy(photo.mask),
        ("person",),
        "a photo of a person",
        weight,
    )
    described = caption(pair.identity, pair.style, Pose()).split(", ")[0]
    around = [
        Reference(
            torch.from_numpy(portrait.image), _part(portrait, label), (word,), described, weight
        )
        for label, word in ((Label.CLOTHES, pair.style.clothes), (Label.BACKGROUND, "background"))
    ]
    return [face, *around][:count]


def _part(doll: Doll, label: Label) -> Tensor:
    return torch.from_numpy((doll.labels == label).astype(np.float32))[None]


def draw(backbone: DiffusersBackbone, pair: Pair, count: int, setup: Setup) -> Tensor:
    """Pictures (seeds,3,128,128) with `count` concepts."""
    prompt = prompt_of(pair)
    guide = None
    if count:
        given = references(pair, count, setup.weight)
        guide = ReferenceGuide(backbone, given, prompt, None, setup.magicface, side=128)
    return sample(backbone, [prompt] * setup.seeds, None, setup.sampling, seed=1, guide=guide)


def measure(setup: Setup) -> tuple[list[list[Scores]], list[list[Tensor]]]:
    """Scores and pictures, row by row and pair by pair."""
    backbone, judge = load_backbone(WEIGHTS), Judge.load()
    scores: list[list[Scores]] = [[] for _ in ROWS]
    images: list[list[Tensor]] = [[] for _ in ROWS]
    for number in range(setup.pairs):
        pair = make_pair(FIRST + 2 * number + 1, FIRST + 2 * number)
        case = judge.case(pair)
        for count in range(len(ROWS)):
            drawn = draw(backbone, pair, count, setup)
            scores[count].append(judge.scores(drawn, case))
            images[count].append(drawn)
    return scores, images


def table(scores: list[list[Scores]], setup: Setup) -> str:
    """The rows' means with 95 % intervals over pairs, in Markdown."""
    names = ("identity", "style", "both", "distance")
    lines = [f"| row | {' | '.join(names)} | faces |", "|---" * (len(names) + 2) + "|"]
    for row, of in zip(ROWS, scores, strict=True):
        cells = []
        for name in names:
            mean, low, high = bootstrap([getattr(one, name) for one in of])
            cells.append(f"{mean:.2f} ({low:.2f} to {high:.2f})")
        faces = sum(one.faces for one in of) / len(of)
        lines.append(f"| {row} | {' | '.join(cells)} | {faces:.2f} |")
    drawn = setup.sampling
    lines += [
        "",
        f"{setup.pairs} pairs, {setup.seeds} pictures each, {drawn.steps} steps of "
        f"{drawn.sampler}, CFG {drawn.guidance:g}, weight {setup.weight:g}; 95 % intervals over "
        "pairs.",
    ]
    return "\n".join(lines) + "\n"


def sheet(images: list[list[Tensor]], pairs: int, path: Path) -> None:
    """The photo, the portrait, and one picture of each row, for some pairs."""
    lines = []
    for number in range(pairs):
        pair = make_pair(FIRST + 2 * number + 1, FIRST + 2 * number, poses=1)
        given = [torch.from_numpy(d.image) for d in (pair.source[0], pair.reference[0])]
        lines.append(torch.cat([*given, *(row[number][0] for row in images)], dim=-1))
    pixels = (torch.cat(lines, dim=-2).clamp(0, 1) * 255).byte().movedim(0, -1).numpy()
    Image.fromarray(pixels).save(path, quality=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=8, help="held-out pairs (default: 8)")
    parser.add_argument("--seeds", type=int, default=4, help="pictures of each (default: 4)")
    parser.add_argument("--steps", type=int, default=20, help="sampling steps (default: 20)")
    parser.add_argument("--guidance", type=float, default=4.0, help="default: 4")
    parser.add_argument("--weight", type=float, default=2.0, help="of references (default: 2)")
    parser.add_argument("--switch", type=float, default=0.4, help="default: 0.4")
    parser.add_argument("--no-region-guidance", action="store_true", help="guidance as it is")
    parser.add_argument("--out", type=Path, help="folder for the table and the pictures")
    given = parser.parse_args()
    setup = Setup(
        given.pairs,
        given.seeds,
        given.weight,
        SamplingSettings("ddim", given.steps, given.guidance, "", 128, 128),
        MagicFaceSettings(given.switch, region_guidance=not given.no_region_guidance),
    )
    scores, images = measure(setup)
    text = table(scores, setup)
    print(text)  # noqa: T201
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "magicface.md").write_text(text, encoding="utf-8")
        sheet(images, min(given.pairs, 6), given.out / "magicface.jpg")


if __name__ == "__main__":
    main()
