"""Which form of Attention Refocusing lowers spill, and what does it cost the picture?

Trains each variant on held-out paperdoll pairs, where the true composition can be drawn, and
writes one CSV row a run; runs already in the file are skipped, so that it can be stopped, and
several processes can share the work (`--share 0/2`, `--share 1/2`). `--table` prints the means.

    python benchmarks/refocusing.py --model PAPERDOLL_FOLDER --out refocusing.csv --pairs 3
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from magicapture import (
    Adapter,
    Backbone,
    Concept,
    Recipe,
    ReferenceSet,
    SamplingSettings,
    Trainer,
    TrainingJob,
    load_backbone,
    prompt_for,
    sample,
)
from magicapture.attention import captured, select
from magicapture.config import LoraSettings, Phase, Rates, RefocusSettings, Weights
from magicapture.lora import applied
from magicapture.losses import spill
from magicapture.paperdoll import (
    Doll,
    Split,
    identity_from_seed,
    pose_from_seed,
    render,
    style_from_seed,
)
from magicapture.tokens import Prompt

FIRST = Split.DEVELOPMENT.value[0]
PHOTOS, POSES, PICTURES = 5, 32, 12
SUBJECT, STYLE = Concept("dolls-face", "subject"), Concept("dolls-look", "style")

VARIANTS = {
    "no refocusing": (0.0, RefocusSettings(factors=(1, 2))),
    "minmax 2.5": (2.5, RefocusSettings("minmax", (1, 2))),
    "minmax 0.1": (0.1, RefocusSettings("minmax", (1, 2))),
    "max 2.5": (2.5, RefocusSettings("max", (1, 2))),
    "max 0.5": (0.5, RefocusSettings("max", (1, 2))),
    "max 0.1": (0.1, RefocusSettings("max", (1, 2))),
    "none 2.5": (2.5, RefocusSettings("none", (1, 2))),
    "none 25": (25.0, RefocusSettings("none", (1, 2))),
    "none 10": (10.0, RefocusSettings("none", (1, 2))),
    "none 10, 16x16 maps": (10.0, RefocusSettings("none", (1,))),
    "none 10, 8x8 maps": (10.0, RefocusSettings("none", (2,))),
    "max 0.1, 16x16 maps": (0.1, RefocusSettings("max", (1,))),
    "max 0.1, 8x8 maps": (0.1, RefocusSettings("max", (2,))),
}
COLUMNS = (
    "variant",
    "pair",
    "subject_spill",
    "style_spill",
    "face_error",
    "style_error",
    "seconds",
)


def dolls(pair: int) -> tuple[list[Doll], list[Doll], list[Doll]]:
    """A pair's photos of the person, portraits in the style, and true compositions by pose."""
    seed = FIRST + 100 * pair
    person, look = identity_from_seed(seed), style_from_seed(seed + 1)
    poses = [pose_from_seed(seed + 2 + i) for i in range(POSES)]
    source = [render(person, style_from_seed(seed + 40 + i), poses[i]) for i in range(PHOTOS)]
    others = [render(identity_from_seed(seed + 60 + i), look, poses[-1 - i]) for i in range(PHOTOS)]
    return source, others, [render(person, look, pose) for pose in poses]


def references(shown: list[Doll]) -> ReferenceSet:
    """Dolls as a reference set with their exact masks."""
    return ReferenceSet(
        tuple(torch.from_numpy(doll.image) for doll in shown),
        tuple(torch.from_numpy(doll.mask) for doll in shown),
    )


def recipe(weight: float, refocus: RefocusSettings, steps: tuple[int, int]) -> Recipe:
    """Two phases without the identity loss, which has a benchmark of its own."""
    weights = Weights(composed=1, attention=weight)
    return Recipe(
        name="refocusing",
        phases=(
            Phase("tokens", steps[0], Rates(tokens=5e-3)),
            Phase("both", steps[1], Rates(tokens=1e-3, unet=1e-3), weights, schedule="cosine"),
        ),
        lora=LoraSettings(rank=8),
        refocus=refocus,
        resolution=128,
        draws=8,
    )


@torch.no_grad()
def spills(backbone: Backbone, adapter: Adapter, recipe: Recipe, truth: list[Doll]) -> list[float]:
    """Share of each token's attention (divided by its peak) outside its region.

    Measured on noised true compositions, which no run has seen.
    """
    images = torch.stack([torch.from_numpy(doll.image) for doll in truth[:8]])
    faces = torch.stack([torch.from_numpy(doll.mask) for doll in truth[:8]])
    latents = backbone.encode(images)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    prompt = Prompt(prompt_for(adapter.concepts, recipe.prompts))
    conditioning = backbone.encode_prompts([prompt] * len(latents), adapter.vectors())
    found: dict[str, list[Tensor]] = {SUBJECT.name: [], STYLE.name: []}
    with captured(backbone.unet, select(backbone.unet), factors=(1, 2)) as capture:
        for t in (200, 500, 800):
            timesteps = torch.full((len(latents),), t)
            with capture.recording():
                noisy = backbone.schedule.add_noise(latents, noise, timesteps)
                backbone.predict(noisy, timesteps, conditioning)
            for layer in capture.maps(conditioning.positions, tuple(latents.shape[-2:])):
                for (row, name), values in zip(layer.keys, layer.values, strict=True):
                    face = faces[row : row + 1]
                    inside = face if name == SUBJECT.name else 1 - face
                    found[name].append(spill(values[None], inside))
    return [float(torch.cat(found[name]).mean()) for name in (SUBJECT.name, STYLE.name)]


def errors(pictures: Tensor, truth: list[Doll]) -> tuple[float, float]:
    """Mean absolute error on the face and off it, at 32x32, against the best-fitting pose."""
    small = F.interpolate(pictures, (32, 32), mode="area")
    true = torch.stack([torch.from_numpy(doll.image) for doll in truth])
    true = F.interpolate(true, (32, 32), mode="area")
    masks = torch.stack([torch.from_numpy(doll.mask) for doll in truth])
    masks = F.interpolate(masks, (32, 32), mode="area")
    difference = (small[:, None] - true[None]).abs().mean(2, keepdim=True)  # (pictures,poses,1,h,w)
    best = difference.mean((2, 3, 4)).argmin(1)
    chosen = difference[torch.arange(len(best)), best]
    weight = masks[best]
    face = (chosen * weight).sum() / weight.sum()
    rest = (chosen * (1 - weight)).sum() / (1 - weight).sum()
    return float(face), float(rest)


def run(backbone: Backbone, variant: str, pair: int, steps: tuple[int, int]) -> dict[str, object]:
    """Train one variant on one pair and measure it."""
    started = time.perf_counter()
    source, others, truth = dolls(pair)
    weight, refocus = VARIANTS[variant]
    settings = recipe(weight, refocus, steps)
    job = TrainingJob(
        SUBJECT, references(source), STYLE, references(others).with_role("style"), settings, pair
    )
    with Trainer(job, backbone) as trainer:
        adapter = trainer.run()
    names = backbone.canonical_names(backbone.unet)
    with applied(backbone.unet, adapter.state_for("unet", names)):
        subject_spill, style_spill = spills(backbone, adapter, settings, truth)
        drawn = sample(
            backbone,
            [prompt_for(adapter.concepts, settings.prompts)] * PICTURES,
            adapter.vectors(),
            SamplingSettings("ddim", steps=20, guidance=3.0, width=128, height=128),
        )
    face_error, style_error = errors(drawn, truth)
    return {
        "variant": variant,
        "pair": pair,
        "subject_spill": round(subject_spill, 4),
        "style_spill": round(style_spill, 4),
        "face_error": round(face_error, 4),
        "style_error": round(style_error, 4),
        "seconds": round(time.perf_counter() - started, 1),
    }


def table(rows: list[dict[str, str]]) -> str:
    """Means over pairs, each with its difference from the row without refocusing, paired."""
    by = {(row["variant"], row["pair"]): row for row in rows}
    base = next(iter(VARIANTS))
    lines = [f"| variant | pairs | {' | '.join(COLUMNS[2:6])} |", "|---" * 6 + "|"]
    for variant in VARIANTS:
        pairs = [pair for name, pair in by if name == variant and (base, pair) in by]
        if not pairs:
            continue
        cells = []
        for column in COLUMNS[2:6]:
            own = torch.tensor([float(by[variant, pair][column]) for pair in pairs])
            plain = torch.tensor([float(by[base, pair][column]) for pair in pairs])
            change = f" ({(own - plain).mean():+.3f})" if variant != base else ""
            cells.append(f"{own.mean():.3f}{change}")
        lines.append(f"| {variant} | {len(pairs)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a paperdoll model as a diffusers folder")
    parser.add_argument("--out", type=Path, required=True, help="the CSV file")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--steps", type=int, nargs=2, default=(120, 260))
    parser.add_argument("--share", default="0/1", help="which part of the work, of how many")
    parser.add_argument("--table", action="store_true", help="print the means and stop")
    options = parser.parse_args()
    done = list(csv.DictReader(options.out.open())) if options.out.exists() else []
    if options.table:
        print(table(done))  # noqa: T201
        return
    part, parts = map(int, options.share.split("/"))
    work = [(v, pair) for pair in range(options.pairs) for v in options.variants]
    known = {(row["variant"], int(row["pair"])) for row in done}
    backbone = load_backbone(options.model)
    for variant, pair in [item for item in work[part::parts] if item not in known]:
        row = run(backbone, variant, pair, tuple(options.steps))
        new = not options.out.exists()
        with options.out.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if new:
                writer.writeheader()
            writer.writerow(row)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
