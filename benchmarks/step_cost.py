"""What one optimiser step costs, in time and memory, with each loss on and off.

    python benchmarks/step_cost.py                      tiny models: a look, in a minute
    python benchmarks/step_cost.py --size full          Stable Diffusion 1.5's, random weights
    python benchmarks/step_cost.py --size narrow-xl     XL's shape, three tenths as wide

Every row runs for a few steps, in turn with all others, round after round; the first round warms up
and does not count, nor does the first step of a turn. A row's ratio is that of the medians of its
turn and of the plain LoRA's in the same round, so that a machine which slows down slows both; given
is the mean over rounds with its 95 % bootstrap interval. Rounds go on until no interval is wider
than --until. Floating-point operations, which no noise touches, are counted in a step of each row.
Memory is measured in a process of its own for each row: on a GPU the most that was allocated
during a step, on a CPU the most that was resident.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import math
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import memory
import torch
from random_models import SIZES, FaceEmbedder, Size, build, pictures
from torch import nn
from torch.nn import functional as F

from magicapture.backbones import DiffusersBackbone
from magicapture.config import IdentitySettings, LoraSettings, Phase, Rates, Recipe, Weights
from magicapture.data import Learnable, ReferenceSet
from magicapture.losses import LOSSES
from magicapture.metrics import Interval, bootstrap
from magicapture.planning.ledger import Ledger
from magicapture.tokens import Concept
from magicapture.training import Event, Stepped, Trainer, TrainingJob

logger = logging.getLogger("step_cost")

RECONSTRUCTION = {"source": 1.0, "style": 1.0, "composed": 1.0}
EXTRA = tuple(
    name
    for name, loss in LOSSES.items()
    if loss.needs and not loss.needs & {"class images", "dino"}
)
"""Losses of persons that cost more than the reconstruction: each has a row, a new one too."""
BATCH = len(RECONSTRUCTION)


def job_of(recipe: Recipe, side: int) -> TrainingJob:
    """Two photos of each, so many pixels a side, with a face of a sixth of the picture."""
    axis = torch.linspace(-1, 1, side)
    face = ((axis[None] / 0.4) ** 2 + (axis[:, None] / 0.52) ** 2 <= 1).float()[None]

    def photos(seed: int) -> ReferenceSet:
        return ReferenceSet.of(pictures(2, side, seed), face_masks=(face,) * 2)

    return TrainingJob(
        Learnable(Concept("person-1", "subject"), photos(1)),
        Learnable(Concept("style-1", "style"), photos(2)),
        recipe,
    )


def recipe(
    *, tokens: bool = True, masked: bool = True, losses: tuple[str, ...] = (), **changes: Any
) -> Recipe:
    """One phase of three tasks; the identity loss, if on, acts in every step."""
    weights = Weights(**RECONSTRUCTION, **dict.fromkeys(losses, 1.0))
    rates = Rates(unet=1e-4, tokens=1e-4 if tokens else 0.0)
    phase = Phase("both", 1, rates, weights, share=0.5)
    lora = LoraSettings(rank=16, targets=changes.pop("targets", "cross"))
    always = IdentitySettings(min_snr=0)
    return Recipe("row", (phase,), lora, identity=always, masked=masked, variants=1, **changes)


PLAIN = "plain LoRA"
WHOLE = "whole: masks, tokens, AR, L_id"
ROWS: dict[str, Recipe] = {
    PLAIN: recipe(tokens=False, masked=False),
    "+ token vectors": recipe(masked=False),
    "+ masks": recipe(tokens=False),
    "+ AR": recipe(tokens=False, masked=False, losses=("attention",)),
    "+ L_id by TAESD": recipe(tokens=False, masked=False, losses=("identity",)),
    "+ L_id by the full decoder": recipe(tokens=False, masked=False, losses=("identity",)),
    **{
        f"+ {name}": recipe(tokens=False, masked=False, losses=(name,))
        for name in EXTRA
        if name not in ("attention", "identity")
    },
    WHOLE: recipe(losses=EXTRA),
    "whole without AR": recipe(losses=("identity",)),
    "whole without L_id": recipe(losses=("attention",)),
    "whole, tasks in turn": recipe(losses=EXTRA, batching="in_turn"),
    "plain, checkpointing": recipe(tokens=False, masked=False, checkpointing=True),
    "whole, checkpointing": recipe(losses=EXTRA, checkpointing=True),
    "whole, in turn, checkpointing": recipe(losses=EXTRA, batching="in_turn", checkpointing=True),
    "plain, cross- and self-attention": recipe(
        tokens=False, masked=False, targets="cross_and_self"
    ),
}
DREAMBOOTH = "DreamBooth-LoRA of diffusers, cross- and self-attention"
FULL_DECODER = {name for name in ROWS if "full decoder" in name}

OnStep = Callable[[], None]


def run_ours(
    name: str, size: Size, backbone: DiffusersBackbone, steps: int, on_step: OnStep
) -> None:
    """Take some steps of a row, calling `on_step` after each."""

    def listen(event: Event) -> None:
        if isinstance(event, Stepped):
            on_step()

    chosen = replace(ROWS[name], resolution=size.resolution)
    phase = replace(chosen.phases[0], steps=steps)
    chosen = replace(chosen, phases=(phase,))
    small, backbone.decoder = backbone.decoder, None if name in FULL_DECODER else backbone.decoder
    try:
        torch.manual_seed(0)
        embedder = FaceEmbedder(size.embedder_width)
        with Trainer.open(
            job_of(chosen, size.resolution), backbone, embedder=embedder, listener=listen
        ) as run:
            run.run()
    finally:
        backbone.decoder = small


def run_dreambooth(size: Size, backbone: DiffusersBackbone, steps: int, on_step: OnStep) -> None:
    """Take some steps as diffusers' example of DreamBooth with LoRA does.

    Each one encodes its pictures by the VAE and its prompt by the text encoder, and trains a LoRA
    of every attention of the UNet.
    """
    from diffusers import DDPMScheduler
    from peft import LoraConfig

    unet, vae, text = backbone.unet, backbone.vae, backbone.text_encoders["clip_l"]
    device, dtype = backbone.device, backbone.dtype
    unet.add_adapter(
        LoraConfig(
            r=16,
            lora_alpha=16,
            init_lora_weights="gaussian",
            target_modules=["to_k", "to_q", "to_v", "to_out.0"],
        )
    )
    parameters = [p for p in unet.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    optimiser = torch.optim.AdamW(parameters, lr=1e-4)
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    pixels = (2 * torch.stack(pictures(BATCH, size.resolution, 1)) - 1).to(device, dtype)
    tokenizer = backbone.tokenizers["clip_l"]
    prompt = ["a photo of sks person"] * BATCH
    ids = tokenizer(prompt, padding="max_length", max_length=77, return_tensors="pt").input_ids
    for _ in range(steps):
        with torch.no_grad():
            latents = vae.encode(pixels).latent_dist.sample() * vae.config.scaling_factor
            context = text(ids.to(device)).last_hidden_state
        noise = torch.randn_like(latents)
        timesteps = torch.randint(len(scheduler), (BATCH,), device=device)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            prediction = unet(noisy, timesteps, context).sample
        F.mse_loss(prediction.float(), noise.float()).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        on_step()
    unet.unload_lora()


def run(name: str, size: Size, backbone: DiffusersBackbone, steps: int, on_step: OnStep) -> None:
    """Take some steps of any row."""
    if name == DREAMBOOTH:
        run_dreambooth(size, backbone, steps, on_step)
    else:
        run_ours(name, size, backbone, steps, on_step)


def seconds_of(name: str, size: Size, backbone: DiffusersBackbone, steps: int) -> list[float]:
    """Seconds of each step after the first.

    On a CPU they are the process's own, so that other programs on the machine count less.
    """
    ticks: list[float] = []

    def tick() -> None:
        if backbone.device.type == "cuda":
            torch.cuda.synchronize()
            ticks.append(time.perf_counter())
        else:
            ticks.append(time.process_time())

    run(name, size, backbone, 1 + steps, tick)
    return [after - before for before, after in pairwise(ticks)]


def peak(name: str, size: Size, device: torch.device, dtype: torch.dtype) -> float:
    """MiB at the most during the second step, in this process."""
    backbone = build(size, device, dtype)
    seen: list[float] = []

    def on_step() -> None:
        seen.append(memory.peak(device))
        memory.forget_peak(device)

    run(name, size, backbone, 2, on_step)
    return seen[-1]


def operations(name: str, size: Size, backbone: DiffusersBackbone) -> float:
    """Floating-point operations of a step, in units of 10^9, a multiplication and an addition two.

    Those of matrix products, convolutions and attention, forward and backward: two steps less one.
    """
    counts = []
    for steps in (1, 2):
        with Ledger(()) as ledger:
            run(name, size, backbone, steps, lambda: None)
        counts.append(ledger.flops)
    return (counts[1] - counts[0]) / 1e9


@dataclass(frozen=True)
class Figure:
    """A row of the table; rounds: how many the ratio is the mean of."""

    row: str
    seconds: float
    ratio: Interval
    gflop: float
    gflop_ratio: float
    mib: float
    mib_ratio: float


def measure(arguments: argparse.Namespace, size: Size) -> tuple[list[Figure], int]:
    """Time every row in turn until the ratios are known, and weigh each in a process of its own.

    Returns the rows' figures and the number of rounds.
    """
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    names = arguments.rows or [*ROWS, *([] if size.second else [DREAMBOOTH])]
    mib = {n: _peak_elsewhere(n, arguments) if arguments.memory else math.nan for n in names}
    backbone = build(size, device, dtype)
    gflop = {name: operations(name, size, backbone) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    ratios: dict[str, Interval] = {}
    for round_ in range(1 + arguments.most):
        turn = {n: statistics.median(seconds_of(n, size, backbone, arguments.steps)) for n in names}
        if not round_:
            continue
        for name in names:
            seconds[name].append(turn[name])
        first = seconds[names[0]]
        ratios = {
            n: bootstrap([a / b for a, b in zip(seconds[n], first, strict=True)]) for n in names
        }
        widest = max((found.high - found.low) / found.mean for found in ratios.values())
        logger.info("round %d: the widest interval is %.1f %%", round_, 100 * widest)
        if round_ >= arguments.rounds and widest < arguments.until:
            break
    first = names[0]
    figures = [
        Figure(
            n,
            statistics.median(seconds[n]),
            ratios[n],
            gflop[n],
            gflop[n] / gflop[first],
            mib[n],
            mib[n] / mib[first],
        )
        for n in names
    ]
    return figures, len(seconds[first])


def _peak_elsewhere(name: str, arguments: argparse.Namespace) -> float:
    logger.info("memory: %s", name)
    words = [sys.executable, __file__, "--peak", name, "--device", arguments.device]
    words += ["--dtype", arguments.dtype, "--size", arguments.size]
    if arguments.resolution:
        words += ["--resolution", str(arguments.resolution)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def write(figures: list[Figure], rounds: int, arguments: argparse.Namespace, side: int) -> None:
    """The table as .csv and .md."""
    kind = arguments.size.replace("-", "_")
    name = f"step_cost_{kind}_{side}px_{arguments.device.partition(':')[0]}"
    arguments.out.mkdir(parents=True, exist_ok=True)
    with (arguments.out / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(
            ["row", "seconds", "ratio", "low", "high", "gflop", "gflop_ratio", "mib", "mib_ratio"]
        )
        table.writerows([f.row, *_texts(f)] for f in figures)
    cuda = arguments.device.startswith("cuda")
    models = SIZES[arguments.size].title
    lines = [
        f"# Cost of a step: {models}, {side} px, {arguments.dtype}, {_machine(arguments.device)}",
        "",
        f"`python benchmarks/step_cost.py {shlex.join(sys.argv[1:])}`",
        "",
        f"torch {torch.__version__}, diffusers {version('diffusers')}, peft {version('peft')}"
        + ("" if cuda else f", {torch.get_num_threads()} thread(s)")
        + ". Random weights, rank 16.",
        "",
        f"Batch {BATCH}: source, style, composed. {rounds} rounds after one to warm up, "
        f"{arguments.steps} steps a turn, the rows taking turns; seconds are medians, ratios are "
        "to the first row in the same round, with 95 % bootstrap intervals over rounds. L_id acts "
        "in every step here; in training it acts where t < T', half of the steps at T' = 500. "
        "Operations are those of matrix products, convolutions and attention.",
        "",
        f"| step | {'seconds' if cuda else 'CPU seconds'} | ratio | low | high "
        "| 10^9 operations | ratio | peak MiB | ratio |",
        f"|---{'|---:' * 8}|",
        *(f"| {' | '.join([f.row, *_texts(f)])} |" for f in figures),
        "",
    ]
    (arguments.out / f"{name}.md").write_text("\n".join(lines), "utf-8")
    logger.info("wrote %s.md and .csv in %s", name, arguments.out)


def _texts(figure: Figure) -> list[str]:
    """The figures as text; empty where the memory was not measured."""
    told = [f"{figure.seconds:.4g}", *(f"{value:.3f}" for value in figure.ratio)]
    told += [f"{figure.gflop:.4g}", f"{figure.gflop_ratio:.3f}"]
    if math.isnan(figure.mib):
        return [*told, "", ""]
    return [*told, f"{figure.mib:.0f}", f"{figure.mib_ratio:.3f}"]


def _machine(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{os.cpu_count()} cores of {platform.processor() or platform.machine()}"


def main() -> None:
    """Measure and write; with --peak print one row's memory."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=list(SIZES), default="tiny")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--resolution", type=int)
    parser.add_argument("--rounds", type=int, default=5, help="at least so many, after one more")
    parser.add_argument("--most", type=int, default=40, help="rounds at the most")
    parser.add_argument("--until", type=float, default=0.03, help="widest interval of a ratio")
    parser.add_argument("--steps", type=int, default=4, help="counted steps of a row in a round")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="these rows alone, the first as 1")
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    parser.add_argument("--peak", metavar="ROW", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for library in ("magicapture", "diffusers", "transformers"):
        logging.getLogger(library).setLevel(logging.ERROR)
    size = SIZES[arguments.size]
    size = replace(size, resolution=arguments.resolution or size.resolution)
    if arguments.peak is None:
        write(*measure(arguments, size), arguments, size.resolution)
        return
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    sys.stdout.write(f"{json.dumps(peak(arguments.peak, size, device, dtype))}\n")


if __name__ == "__main__":
    main()
