"""Does `magicapture evaluate` agree with the judge of drawn faces, picture by picture?

    python benchmarks/evaluate.py --keep build/benchmark/paperdoll --pairs 0 1

It measures pictures that `benchmarks/paperdoll.py` kept, of several rows, with true compositions,
strangers in the style, the person in other styles, and training pictures in the mirror; and ranks
both sides by Spearman's correlation. No real CLIP model knows drawn faces, so a tiny CLIPModel is
trained on drawn pictures and their captions first (`--clip`, minutes; kept for the next time).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from study import command  # first: it gives the process one core

# isort: split
import numpy as np
import torch
import torch.nn.functional as F
from paperdoll_run import pair_seeds
from scipy.stats import spearmanr
from torch import Tensor

from magicapture.backbones.clip_tokenizer import write_tokenizer
from magicapture.clip import load_clip
from magicapture.evaluation import Given, Models, References, evaluate, write_page
from magicapture.evaluation.report import Evaluation
from magicapture.faces.analyzer import FaceAnalyzer
from magicapture.images import read_picture
from magicapture.metrics import METRICS, Shown
from magicapture.paperdoll import (
    Split,
    identity_from_seed,
    pose_from_seed,
    render,
    style_from_seed,
)
from magicapture.paperdoll.captions import caption
from magicapture.paperdoll.faces import doll_analyzer
from magicapture.paperdoll.judge import Judge
from magicapture.paperdoll.pairs import Pair, make_pair, pictures, references
from magicapture.paperdoll.weights import loss_embedder

ROOT = Path(__file__).resolve().parent.parent
ROWS = ("truth", "magicapture", "release as shipped", "untrained")
MEASURES = ("identity", "style", "copies")
PICTURES, SIDE = 8, 64


def main() -> None:
    options = _arguments()
    if not (options.clip / "config.json").is_file():
        train_clip(options.clip, options.steps)
    clip = load_clip(options.clip)
    judge, faces = Judge.load(), doll_analyzer()
    eyes = {
        "another network than the judge's": Models(
            FaceAnalyzer(faces.detector, faces.parser, loss_embedder()), clip
        ),
        "the judge's network": Models(faces, clip),
    }
    ours: dict[str, dict[str, list[float]]] = {name: {m: [] for m in MEASURES} for name in eyes}
    theirs: dict[str, list[float]] = {m: [] for m in MEASURES}
    means: dict[str, list[list[float]]] = {}
    for index in options.pairs:
        pair = make_pair(*pair_seeds(Split.TEST, index))
        case, groups = judge.case(pair), shown(options.keep, pair, index)
        truth = {name: judged(judge, images, case) for name, images in groups.items()}
        for m in MEASURES:
            theirs[m] += [value for found in truth.values() for value in found[m]]
        for name, models in eyes.items():
            against = References.of(references(pair.source), references(pair.reference), models)
            found = evaluate({g: given(images) for g, images in groups.items()}, against, models)
            for m in MEASURES:
                ours[name][m] += values(found, m)
            if name == "the judge's network":
                write_page(found, options.clip.parent / f"evaluation {index}.html")
                for group, own in zip(found.groups, truth.values(), strict=True):
                    line = [
                        np.mean(x) for m in MEASURES for x in (own[m], values(found, m, group.name))
                    ]
                    means.setdefault(group.name, []).append(line)
    write(options, ours, theirs, means)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, default=ROOT / "build/benchmark/paperdoll")
    parser.add_argument("--pairs", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--clip", type=Path, default=ROOT / "build/doll_clip")
    parser.add_argument("--steps", type=int, default=400, help="of the tiny CLIP's training")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/benchmarks")
    return parser.parse_args()


def shown(keep: Path, pair: Pair, index: int) -> dict[str, Tensor]:
    """Pictures (N,3,128,128) of several qualities, by name."""
    groups = {}
    for row in ROWS:
        strip = read_picture(keep / f"{row} {index}" / "pictures.png").image
        groups[row] = torch.stack(list(strip.split(strip.shape[-2], dim=-1)))[:PICTURES]
    groups["strangers in the style"] = pictures(pair.others_in_style[:PICTURES])
    groups["the person in other styles"] = pictures(pair.otherwise[:PICTURES])
    groups["training pictures, mirrored"] = pictures(pair.training).flip(-1)
    return groups


def judged(judge: Judge, images: Tensor, case: object) -> dict[str, list[float]]:
    """The judge's measures of each picture."""
    seen = Shown(images, judge.see(images), case)  # type: ignore[arg-type]
    return {m: METRICS[m].measure(seen).float().tolist() for m in MEASURES}  # type: ignore[misc]


def given(images: Tensor) -> list[Given]:
    return [Given(str(i), lambda image=image: image) for i, image in enumerate(images)]


def values(found: Evaluation, name: str, group: str | None = None) -> list[float]:
    return [
        float(line.values[name] or 0)
        for one in found.groups
        if group in (None, one.name)
        for line in one.lines
    ]


# -- a CLIP of drawn faces --------------------------------------------------------------------


def train_clip(folder: Path, steps: int, batch: int = 64, drawn: int = 2048) -> None:
    """Train a tiny CLIPModel on drawn pictures and their captions, by CLIP's own loss."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    write_tokenizer(folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    small = {
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    }
    ids = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
    model = CLIPModel(
        CLIPConfig(
            text_config={**small, **ids, "vocab_size": 49408},
            vision_config={**small, "image_size": SIDE, "patch_size": 8},
            projection_dim=64,
        )
    )
    seeds = rng.choice(len(Split.TRAIN.seeds), 2 * drawn, replace=False)
    images, words = [], []
    for one, other in (seeds.reshape(-1, 2) + Split.TRAIN.seeds.start).tolist():
        who, look, pose = identity_from_seed(one), style_from_seed(other), pose_from_seed(one)
        images.append(torch.from_numpy(render(who, look, pose, SIDE).image))
        words.append(caption(who, look, pose, rng))
    pixels = (torch.stack(images) - 0.45) / 0.27
    tokens = tokenizer(words, padding=True, return_tensors="pt")
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, steps)
    for step in range(steps):
        rows = torch.from_numpy(rng.choice(drawn, batch, replace=False))
        output = model(
            pixel_values=pixels[rows],
            input_ids=tokens.input_ids[rows],
            attention_mask=tokens.attention_mask[rows],
        )
        own = torch.arange(batch)
        both = (output.logits_per_image, output.logits_per_text)
        loss = sum(F.cross_entropy(logits, own) for logits in both) / 2
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        plan.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step}: {float(loss):.3f}", flush=True)  # noqa: T201
    model.save_pretrained(folder)


# -- the page ---------------------------------------------------------------------------------


def write(
    options: argparse.Namespace,
    ours: dict[str, dict[str, list[float]]],
    theirs: dict[str, list[float]],
    means: dict[str, list[list[float]]],
) -> None:
    """Correlations over all pictures, and the means of each group."""
    number = len(theirs["identity"])
    rows = [
        [f"{m}, {name}" if m == "identity" else m, *_correlation(ours[name][m], theirs[m])]
        for m in MEASURES
        for name in (ours if m == "identity" else [next(iter(ours))])
    ]
    head = [title for m in MEASURES for title in (f"{m}, judge", "evaluate")]
    table = [[name, *(f"{v:.2f}" for v in np.mean(lines, axis=0))] for name, lines in means.items()]
    text = "\n\n".join(
        [
            "# evaluate",
            f"`{command()}`",
            f"Test pairs {', '.join(map(str, options.pairs))}; {number} pictures. Spearman's rank "
            "correlation of what `evaluate` says with what the judge says, picture by picture:",
            _markdown(["measure", "Spearman", "p"], rows),
            "Means over the pictures of each kind, evaluate with the judge's face network:",
            _markdown(["pictures", *head], table),
            "The judge knows the true compositions, and has a style network of its own; evaluate "
            "knows the training pictures alone, and sees style by a tiny CLIPModel trained on "
            f"drawn pictures and captions ({options.steps} steps): this says nothing of a real "
            "CLIP model on real portraits. Copies differ by what they ask: the judge whether a "
            "picture is nearer to a training picture than to any true composition, which is true "
            "of all that are far from both; evaluate whether it is nearly a training picture.",
        ]
    )
    (options.out / "evaluate.md").write_text(text + "\n", "utf-8")
    print(text)  # noqa: T201


def _correlation(some: Sequence[float], others: Sequence[float]) -> tuple[str, str]:
    found = spearmanr(some, others)
    return f"{found.statistic:.2f}", f"{found.pvalue:.1g}"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
