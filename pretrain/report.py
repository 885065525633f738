"""What a training folder is worth: scores on development dolls, and sheets to look at."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from magicapture.paperdoll import (
    SIZE,
    Identity,
    Pose,
    Split,
    Style,
    identity_from_seed,
    pose_from_seed,
    style_from_seed,
)
from magicapture.paperdoll.attributes import classes
from magicapture.paperdoll.captions import caption
from magicapture.paperdoll.model import transformer_backbone
from magicapture.paperdoll.tokenizer import load_tokenizer
from magicapture.paperdoll.weights import load_reader
from magicapture.sampling import SamplingSettings, sample

from . import scores
from .export import trained_reader, trained_transformer
from .loop import state_file
from .preview import Model, save_sheet
from .stage_readers import EMBEDDERS
from .stage_transformer import frozen_parts

log = logging.getLogger(__name__)


SCORES = "scores.json"


def report(out: Path, count: int = 200, prompts: int = 64, steps: int = 25) -> dict[str, float]:
    """Scores of every network trained so far; also written to the folder, as the card shows them.

    count: dolls, or twice the people and styles; prompts: how many are drawn, in `steps` steps.
    """
    found: dict[str, float] = {}
    trained = {file.name.split(".")[0] for file in out.glob("*.state.safetensors")}
    some = scores.dolls(count)
    for name in sorted(trained & EMBEDDERS.keys()):
        found[f"{name} AUC"] = scores.verification(trained_reader(out, name), count // 2)
    if "finder" in trained:
        found["finder pixels"] = scores.landmark_error(trained_reader(out, "finder"), some)
    if "parser" in trained:
        found["parser IoU"] = scores.overlap(trained_reader(out, "parser"), some)
    if "style" in trained:
        found["style AUC"] = scores.style_verification(trained_reader(out, "style"), count // 2)
    kept: dict[str, object] = {"figures": found}
    if {"vae", "unet"} <= trained:
        found["VAE PSNR"] = scores.psnr(Model.of_run(out).vae, some)
        if "probe" in trained:
            kept["obeyed"] = obeyed(out, prompts, steps)
    if "transformer" in trained:
        kept["obeyed by the transformer"] = obeyed_by_transformer(out, prompts, steps)
    (out / SCORES).write_text(json.dumps(kept, indent=2), encoding="utf-8")
    log.info("%s", kept)
    return found


def obeyed(out: Path, count: int = 64, steps: int = 25) -> dict[str, dict[str, float]]:
    """How often samples show what their prompts ask, beside what the probe reads off true dolls."""
    probe, model = trained_reader(out, "probe"), Model.of_run(out)
    truth = [classes(*parts) for parts in _parts(count)]
    asked = captions(count)
    drawn = torch.cat([model.sample(asked[i : i + 16], steps, seed=i) for i in range(0, count, 16)])
    return {
        "samples": scores.obedience(probe, drawn, truth),
        "dolls": scores.obedience(probe, scores.pictures(scores.dolls(count)), truth),
    }


def obeyed_by_transformer(
    out: Path, count: int = 64, steps: int = 25
) -> dict[str, dict[str, float]]:
    """The same of the transformer's samples, by the shipped probe where none is trained here."""
    known = state_file(out, "probe").exists()
    probe = trained_reader(out, "probe") if known else load_reader("probe")
    truth = [classes(*parts) for parts in _parts(count)]
    drawn = drawn_by_transformer(out, captions(count), steps)
    return {
        "samples": scores.obedience(probe, drawn, truth),
        "dolls": scores.obedience(probe, scores.pictures(scores.dolls(count)), truth),
    }


def drawn_by_transformer(out: Path, prompts: list[str], steps: int = 25) -> Tensor:
    """Pictures (B,3,H,W) 0..1 for prompts."""
    vae, text, _ = frozen_parts(out, torch.device("cpu"))
    words = load_tokenizer(out / "tokenizer")
    backbone = transformer_backbone(trained_transformer(out), vae, text, words)
    settings = SamplingSettings(
        sampler="dpmpp_2m", steps=steps, guidance=3, width=SIZE, height=SIZE
    )
    parts = [
        sample(backbone, prompts[i : i + 16], settings=settings, seed=i)
        for i in range(0, len(prompts), 16)
    ]
    return torch.cat(parts)


def captions(count: int) -> list[str]:
    """Full captions of development dolls."""
    return [caption(*parts) for parts in _parts(count)]


def _parts(count: int) -> list[tuple[Identity, Style, Pose]]:
    seeds = Split.DEVELOPMENT.seeds[:count]
    return [(identity_from_seed(s), style_from_seed(s), pose_from_seed(s)) for s in seeds]


def draw(out: Path, steps: int = 25, columns: int = 8) -> None:
    """Writes dolls over reconstructions (vae.png) and over samples, of either network."""
    true = scores.pictures(scores.dolls(2 * columns))
    if state_file(out, "transformer").exists():
        drawn = drawn_by_transformer(out, captions(2 * columns), steps)
        _sheet(true, drawn, columns, out / "transformer.png")
    if not state_file(out, "unet").exists():
        return
    model = Model.of_run(out)
    with torch.no_grad():
        again = ((model.vae.decoder(model.vae.encoder(true * 2 - 1)) + 1) / 2).clamp(0, 1)
    drawn = model.sample(captions(2 * columns), steps)
    for name, made in (("vae", again), ("samples", drawn)):
        _sheet(true, made, columns, out / f"{name}.png")


def _sheet(true: Tensor, made: Tensor, columns: int, file: Path) -> None:
    first, second = slice(0, columns), slice(columns, None)
    rows = torch.cat([true[first], made[first], true[second], made[second]])
    save_sheet(np.asarray(rows), columns, file)
