"""What MagicFace costs, as a ratio to plain sampling in the same run.

    python benchmarks/magicface.py                 tiny models: a look, in a minute or two
    python benchmarks/magicface.py --full          Stable Diffusion 1.5's sizes, random weights

Every row draws the same prompt with the same sampler, in turn with all others and several times
over; its figure is the median, its ratio the median over the rounds of the time by the plain
row's. Memory is the GPU's peak during sampling, where there is one.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from random_models import FULL, TINY, build, pictures

from magicapture.backbone import Backbone
from magicapture.magicface import MagicFaceSettings, Reference, ReferenceGuide
from magicapture.sampling import SamplingSettings, sample_latents

PROMPT = "a photo of a man with a hat and a coat"
WORDS = ("man", "hat", "coat")
ROWS = {
    "plain": (0, False),
    "one concept, guidance as it is": (1, False),
    "one concept": (1, True),
    "two concepts": (2, True),
    "three concepts": (3, True),
}


def references(count: int, side: int) -> list[Reference]:
    """Concepts of a picture each, whose masks are the middle half."""
    mask = torch.zeros(1, side, side)
    mask[:, side // 4 : -side // 4, side // 8 : -side // 8] = 1
    images = pictures(count, side, seed=0) if count else ()
    return [
        Reference(image, mask, (word,), f"a photo of a {word}", 2.5)
        for image, word in zip(images, WORDS, strict=False)
    ]


def seconds(backbone: Backbone, row: tuple[int, bool], sampling: SamplingSettings) -> float:
    """The time of one drawing with the row's number of concepts; encoding is left out."""
    count, scaled = row
    settings = MagicFaceSettings(region_guidance=scaled)
    side = sampling.width
    given = references(count, side)
    guide = ReferenceGuide(backbone, given, PROMPT, None, settings, side=side) if given else None
    _wait()
    start = time.perf_counter()
    sample_latents(backbone, PROMPT, None, sampling, seed=0, guide=guide)
    _wait()
    return time.perf_counter() - start


def measure(backbone: Backbone, sampling: SamplingSettings, rounds: int) -> list[Sequence[str]]:
    """A table of the rows: name, seconds, ratio, peak memory."""
    times: dict[str, list[float]] = {name: [] for name in ROWS}
    peaks = dict.fromkeys(ROWS, 0.0)
    for turn in range(rounds + 1):  # the first warms up
        for name, row in ROWS.items():
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            taken = seconds(backbone, row, sampling)
            if turn:
                times[name].append(taken)
            if torch.cuda.is_available():
                peaks[name] = torch.cuda.max_memory_allocated() / 2**30
    table: list[Sequence[str]] = []
    for name, taken in times.items():
        ratios = [own / plain for own, plain in zip(taken, times["plain"], strict=True)]
        memory = f"{peaks[name]:.2f} GiB" if peaks[name] else "not measured"
        figures = f"{statistics.median(taken):.2f} s", f"{statistics.median(ratios):.2f}"
        table.append((name, *figures, memory))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--full", action="store_true", help="Stable Diffusion 1.5's sizes")
    parser.add_argument("--steps", type=int, default=10, help="sampling steps (default: 10)")
    parser.add_argument("--rounds", type=int, default=3, help="of all rows (default: 3)")
    parser.add_argument("--side", type=int, help="of the pictures, in pixels")
    parser.add_argument("--out", type=Path, help="write the table here as well")
    arguments = parser.parse_args()
    size = FULL if arguments.full else TINY
    gpu = torch.cuda.is_available()
    backbone = build(
        size, torch.device("cuda" if gpu else "cpu"), torch.float16 if gpu else torch.float32
    )
    side = arguments.side or size.resolution
    sampling = SamplingSettings("ddim", arguments.steps, 7.5, "", side, side)
    lines = ["| row | time | ratio | peak memory |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in measure(backbone, sampling, arguments.rounds)]
    kind = "Stable Diffusion 1.5's sizes" if arguments.full else "tiny"
    where = torch.cuda.get_device_name() if gpu else "CPU, one thread"
    lines += ["", f"{kind}, {side} px, {arguments.steps} steps of DDIM, CFG 7.5, {where}"]
    text = "\n".join(lines) + "\n"
    print(text)  # noqa: T201
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
