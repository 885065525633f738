"""What Attention Refocusing costs while sampling, as a ratio to a plain step of the same run.

    python benchmarks/refocus_cost.py              a small UNet of SD 1.5's shape: a minute or two
    python benchmarks/refocus_cost.py --full       Stable Diffusion 1.5's sizes

Weights are random: the cost does not depend on them. Every row draws a few steps of a picture
with guidance, in turn with all others and several times over; a row's figure is the median of its
steps. The gradient's window spans all of its row's steps, and each step makes its move.
"""

from __future__ import annotations

import argparse
import csv
import logging
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from random_models import FULL, Size, build

from magicapture.backbones import DiffusersBackbone
from magicapture.refocusing import PromptRefocuser, RefocusGuidance, foci
from magicapture.sampling import SamplingSettings, sample_latents
from magicapture.tokens import Concept, Prompt, TokenVectors

logger = logging.getLogger("refocus_cost")

SMALL = replace(
    FULL,
    resolution=256,
    unet={**FULL.unet, "block_out_channels": (96, 192, 384, 384)},
)
CONCEPTS = (Concept("ada", "subject", "woman"), Concept("ink", "style"))
TEXT = "a photo of a <ada> woman in the <ink> style"

PLAIN = "plain"
ALWAYS = {"end": 1.0, "threshold": 0.0}
ROWS: dict[str, RefocusGuidance | None] = {
    PLAIN: None,
    "zero strength": RefocusGuidance(bias=0.0),
    "bias, region given": RefocusGuidance(bias=4.0),
    "bias, region found": RefocusGuidance(bias=4.0),
    "gradient, region given": RefocusGuidance(bias=0.0, gradient=0.05, **ALWAYS),
    "gradient, region found": RefocusGuidance(bias=0.0, gradient=0.05, **ALWAYS),
    "gradient, save memory": RefocusGuidance(bias=0.0, gradient=0.05, save_memory=True, **ALWAYS),
}


def seconds(backbone: DiffusersBackbone, size: Size, name: str, steps: int) -> Iterator[float]:
    """The time of each step but the first, which warms up, of one drawing."""
    token = torch.randn(1, size.text["hidden_size"], device=backbone.device)
    vectors = TokenVectors({c.name: {"clip_l": token} for c in CONCEPTS}).to(backbone.device)
    settings = SamplingSettings("ddim", steps=steps, width=size.resolution, height=size.resolution)
    guide = None
    if (guidance := ROWS[name]) is not None:
        prompts = [Prompt(TEXT)]
        with torch.no_grad():
            conditioning = backbone.encode_prompts(prompts, vectors)
        rows = foci(backbone, prompts, conditioning, vectors, CONCEPTS)
        region = torch.zeros(1, 1, 64, 64)
        region[..., 16:48, 16:48] = 1
        guide = PromptRefocuser(backbone, rows, guidance, None if "found" in name else region)
    times = []

    def tick(*_: object) -> None:
        if backbone.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter())

    sample_latents(backbone, TEXT, vectors, settings, callback=tick, guide=guide)
    yield from (b - a for a, b in pairwise(times))


def main() -> None:
    """Measure and print, and write a CSV where one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="Stable Diffusion 1.5's sizes.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="Steps of a drawing.")
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    size = FULL if arguments.full else SMALL
    device = torch.device(arguments.device)
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    backbone = build(size, device, dtype)
    found: dict[str, list[float]] = {name: [] for name in ROWS}
    for _ in range(arguments.rounds):
        for name in ROWS:
            found[name] += seconds(backbone, size, name, arguments.steps)
    plain = statistics.median(found[PLAIN])
    rows = [(n, statistics.median(t), statistics.median(t) / plain) for n, t in found.items()]
    for name, median, ratio in rows:
        logger.info("%-24s %8.3f s a step  x%.2f", name, median, ratio)
    if arguments.csv:
        with arguments.csv.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["row", "seconds", "ratio"])
            writer.writerows((n, f"{s:.4f}", f"{r:.3f}") for n, s, r in rows)


if __name__ == "__main__":
    main()
