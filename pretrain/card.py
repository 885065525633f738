"""The model card: what each shipped file is, how it was trained, and what it scores."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from .loop import state_file
from .report import SCORES

_HEAD = """# The paperdoll weights

Networks of the embedded world, trained by this project from nothing on pictures that it drew
itself: no photograph, no other model and no person took part. They draw and read paper dolls and
nothing else. Licence: the project's own.

Built by `python -m pretrain` from training seeds below 1,000,000; scored on
development seeds from 1,000,000 up, which no training has seen. Half precision, safetensors.
"""

# Folder or file of the export, and the training state it comes from.
SOURCES = {
    "unet/diffusion_pytorch_model.safetensors": "unet",
    "text_encoder/model.safetensors": "unet",
    "vae/diffusion_pytorch_model.safetensors": "vae",
    "transformer/diffusion_pytorch_model.safetensors": "transformer",
    "identity_loss.safetensors": "identity_loss",
    "identity_score.safetensors": "identity_score",
    "finder.safetensors": "finder",
    "parser.safetensors": "parser",
    "style.safetensors": "style",
    "probe.safetensors": "probe",
}


def write_card(out: Path, target: Path) -> Path:
    """Writes target/README.md for the weights exported there from the training folder `out`.

    Scores are those that `report` left in the folder; without them the card says that there are
    none.
    """
    parts = [_HEAD, _files(out, target)]
    scores = out / SCORES
    if scores.exists():
        kept = json.loads(scores.read_text(encoding="utf-8"))
        parts.append(_scores(kept["figures"]))
        for who, key in (("", "obeyed"), (" by the transformer", "obeyed by the transformer")):
            if key in kept:
                parts.append(_obedience(kept[key], who))
    else:
        parts.append("No scores were taken: run the command again with --report.\n")
    card = target / "README.md"
    card.write_text("\n".join(parts), encoding="utf-8")
    return card


def checksum(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _files(out: Path, target: Path) -> str:
    lines = [
        "## Files\n",
        "| file | kB | steps | hours | last loss | SHA-256 |",
        "|---|---|---|---|---|---|",
    ]
    for name, state in SOURCES.items():
        file = target / name
        if not file.exists():
            continue
        about = _about(state_file(out, state))
        last = {k: v for k, v in about["history"][-1].items() if k != "step"}
        losses = ", ".join(f"{key} {value:.4f}" for key, value in last.items())
        lines.append(
            f"| `{name}` | {file.stat().st_size / 1e3:.0f} | {about['step']} "
            f"| {about['seconds'] / 3600:.2f} | {losses} | `{checksum(file)}` |"
        )
    return "\n".join(lines) + "\n"


def _scores(found: Mapping[str, float]) -> str:
    lines = ["## Scores on development dolls\n", "| figure | value |", "|---|---|"]
    lines += [f"| {name} | {value:.4g} |" for name, value in found.items()]
    return "\n".join(lines) + "\n"


def _obedience(obeyed: Mapping[str, Mapping[str, float]], who: str) -> str:
    lines = [
        f"## How often a prompt is obeyed{who}\n",
        "The probe reads pictures drawn from full captions, and true dolls (its own ceiling).\n",
        "| attribute | samples | true dolls |",
        "|---|---|---|",
    ]
    lines += [
        f"| {name} | {share:.2f} | {obeyed['dolls'][name]:.2f} |"
        for name, share in obeyed["samples"].items()
    ]
    return "\n".join(lines) + "\n"


def _about(state: Path) -> dict[str, Any]:
    with safe_open(state, "pt") as file:
        about: dict[str, Any] = json.loads(file.metadata()["about"])
    return about
