"""What Attention Refocusing and MagicFace cost while sampling, as ratios to a plain drawing.

    python benchmarks/sampling_cost.py             a small UNet of SD 1.5's shape: a few minutes
    python benchmarks/sampling_cost.py --full      Stable Diffusion 1.5's sizes

Weights are random: the cost does not depend on them. Every row draws one picture with guidance,
each time right behind a plain drawing, in turn with all others and several times over. A drawing's
first step, which warms up, is left out, and so is encoding. Time is the GPU's, or the process's own
CPU time; a ratio is the median over the rounds, memory the GPU's peak, or the process's. The
gradient's window spans all steps, and each makes its move; MagicFace goes through both its stages.
"""

from __future__ import annotations

import argparse
import csv
import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import memory
import torch
from random_models import FULL, Size, build, pictures

from magicapture.backbones import DiffusersBackbone
from magicapture.magicface import MagicFaceSettings, Reference, ReferenceGuide
from magicapture.refocusing import PromptRefocuser, RefocusGuidance, foci
from magicapture.sampling import Guide, SamplingSettings, sample_latents
from magicapture.tokens import Concept, Prompt, TokenVectors

logger = logging.getLogger("sampling_cost")

SMALL = replace(
    FULL,
    resolution=256,
    unet={**FULL.unet, "block_out_channels": (96, 192, 384, 384)},
)
CONCEPTS = (Concept("ada", "subject", "man"), Concept("ink", "style"))
TEXT = "a photo of a <ada> man with a hat and a coat in the <ink> style"
WORDS = ("man", "hat", "coat")

PLAIN = "plain"
ALWAYS = {"bias": 0.0, "gradient": 0.05, "end": 1.0, "threshold": 0.0}


class Drawing:
    """Draws one picture on random models, with a guide or without."""

    def __init__(self, size: Size, device: torch.device, steps: int) -> None:
        dtype = torch.float16 if device.type == "cuda" else torch.float32
        self.backbone: DiffusersBackbone = build(size, device, dtype)
        token = torch.randn(1, size.text["hidden_size"], device=device)
        vectors = {concept.name: {"clip_l": token} for concept in CONCEPTS}
        self.vectors = TokenVectors(vectors).to(device)
        side = self.side = size.resolution
        self.settings = SamplingSettings("ddim", steps=steps, width=side, height=side)
        self.middle = torch.zeros(1, side, side)
        self.middle[:, side // 4 : -side // 4, side // 4 : -side // 4] = 1

    def plain(self) -> None:
        """No guide."""

    def refocused(self, guidance: RefocusGuidance, *, given: bool = True) -> Guide:
        """The tokens held to the middle of the picture, or to where they are found."""
        prompts = [Prompt(TEXT)]
        with torch.no_grad():
            conditioning = self.backbone.encode_prompts(prompts, self.vectors)
        rows = foci(self.backbone, prompts, conditioning, self.vectors, CONCEPTS)
        return PromptRefocuser(self.backbone, rows, guidance, self.middle[None] if given else None)

    def referenced(self, count: int, *, scaled: bool = True) -> Guide:
        """References of as many concepts, each the middle of its picture."""
        images = pictures(count, self.side, seed=0)
        references = [
            Reference(image, self.middle, (word,), f"a photo of a {word}", 2.5)
            for image, word in zip(images, WORDS, strict=False)
        ]
        settings = MagicFaceSettings(region_guidance=scaled)
        return ReferenceGuide(
            self.backbone, references, TEXT, self.vectors, settings, side=self.side
        )

    def seconds(self, make: Callable[[], Guide | None]) -> float:
        """The time of all steps of a drawing but the first."""
        guide, times = make(), list[float]()
        sample_latents(
            self.backbone,
            TEXT,
            self.vectors,
            self.settings,
            callback=lambda *_: times.append(self._now()),
            guide=guide,
        )
        return times[-1] - times[0]

    def _now(self) -> float:
        if self.backbone.device.type != "cuda":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def rows(self) -> dict[str, Callable[[], Guide | None]]:
        """What is measured."""
        bias, gradient = RefocusGuidance(bias=4.0), RefocusGuidance(**ALWAYS)
        return {
            PLAIN: self.plain,
            "zero strength": lambda: self.refocused(RefocusGuidance(bias=0.0)),
            "bias, region given": lambda: self.refocused(bias),
            "bias, region found": lambda: self.refocused(bias, given=False),
            "gradient, region given": lambda: self.refocused(gradient),
            "gradient, region found": lambda: self.refocused(gradient, given=False),
            "gradient, save memory": lambda: self.refocused(replace(gradient, save_memory=True)),
            "one concept, guidance as it is": lambda: self.referenced(1, scaled=False),
            "one concept": lambda: self.referenced(1),
            "two concepts": lambda: self.referenced(2),
            "three concepts": lambda: self.referenced(3),
        }


def main() -> None:
    """Measure and print, and write a CSV where one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="Stable Diffusion 1.5's sizes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=11, help="of a drawing (default: 11)")
    parser.add_argument("--rows", nargs="*", help="default: all of them")
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    device = torch.device(arguments.device)
    drawing = Drawing(FULL if arguments.full else SMALL, device, arguments.steps)
    rows = {n: make for n, make in drawing.rows().items() if n in (arguments.rows or (n,))}
    ratios: dict[str, list[float]] = {name: [] for name in rows}
    peaks = dict.fromkeys(rows, 0.0)
    drawing.seconds(drawing.plain)
    for _ in range(arguments.rounds):
        for name, make in rows.items():
            plain = drawing.seconds(drawing.plain)
            memory.forget_peak(device)
            ratios[name].append(drawing.seconds(make) / plain)
            peaks[name] = max(peaks[name], memory.peak(device))
    table = [(name, statistics.median(of), min(of), max(of)) for name, of in ratios.items()]
    for name, median, low, high in table:
        logger.info("%-32s x%.2f (%.2f to %.2f)  %.0f MiB", name, median, low, high, peaks[name])
    if arguments.csv:
        with arguments.csv.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["row", "ratio", "lowest", "highest", "peak_mib"])
            writer.writerows(
                (name, *(f"{f:.3f}" for f in figures), f"{peaks[name]:.0f}")
                for name, *figures in table
            )


if __name__ == "__main__":
    main()
