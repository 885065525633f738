"""What MagicFace is worth on the paperdoll model, against the same prompt without it.

    python benchmarks/magicface_paperdoll.py --workers 2
    python benchmarks/magicface_paperdoll.py --split development --weight 3 --pairs 4

The prompt says the style in words and of the person only "person". One concept is the person's
face, from one photo; two add the clothes and three the background as well, both from one portrait
in the style. A pair takes about 15 seconds of one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magicface_references import GUIDANCE, WEIGHT, prompt_of, references
from paperdoll_run import pair_seeds, save_strip
from paperdoll_table import SCORES, Table, examples
from study import Line, carry_out, changes, command, means, read, version
from torch import Tensor

from magicapture.backbones import load_backbone
from magicapture.magicface import MagicFaceSettings, ReferenceGuide
from magicapture.metrics import METRICS
from magicapture.paperdoll import Split
from magicapture.paperdoll.judge import Judge
from magicapture.paperdoll.pairs import Pair, make_pair
from magicapture.paperdoll.weights import WEIGHTS
from magicapture.sampling import SamplingSettings, sample

ROOT = Path(__file__).resolve().parent.parent
ROWS = ("no reference", "one concept", "two concepts", "three concepts")
MEASURED = SCORES | {n: METRICS[n].heading for n in ("collapse", "faces")}


@dataclass(frozen=True)
class Plan:
    """What is drawn, and how."""

    split: Split
    pictures: Path
    seeds: int
    weight: float
    sampling: SamplingSettings
    magicface: MagicFaceSettings

    @property
    def version(self) -> str:
        """A hash of what decides the scores."""
        settings = (self.seeds, self.weight, self.sampling, self.magicface)
        return version(settings, sorted(WEIGHTS.rglob("*.safetensors")))


class Study:
    """The networks of one process; called with the number of a pair."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.backbone: Any = load_backbone(WEIGHTS)
        self.judge = Judge.load()

    def __call__(self, index: int) -> list[Line]:
        pair = make_pair(*pair_seeds(self.plan.split, index))
        case = self.judge.case(pair)
        lines: list[Line] = []
        for count, row in enumerate(ROWS):
            images = self._draw(pair, count, 1000 * index)
            save_strip(images, self.plan.pictures / f"{row} {index}" / "pictures.png")
            scores = {**self.judge.scores(images, case), "tone": case.tone}
            lines.append({"row": row, "pair": index, "version": self.plan.version, **scores})
        return lines

    def _draw(self, pair: Pair, count: int, seed: int) -> Tensor:
        """Pictures (seeds,3,128,128) with `count` concepts."""
        plan, prompt, guide = self.plan, prompt_of(pair), None
        if count:
            given = references(pair, count, plan.weight)
            guide = ReferenceGuide(self.backbone, given, prompt, None, plan.magicface, side=128)
        prompts = [prompt] * plan.seeds
        return sample(self.backbone, prompts, None, plan.sampling, seed=seed, guide=guide)


def write(plan: Plan, file: Path, lines: Sequence[Line]) -> None:
    """The table, and a sheet of the first pair's pictures."""
    table = Table(lines, ROWS)
    pairs = sorted({pair for _, pair in table.by})
    sampling, picture = plan.sampling, file.with_suffix(".jpg")
    parts = [
        "# MagicFace on paperdolls",
        f"`{command()}`: {len(pairs)} {plan.split.name.lower()} pairs, "
        f"{plan.seeds} seeds, {sampling.steps} steps of {sampling.sampler}, guidance "
        f"{sampling.guidance:g}, weight {plan.weight:g}; means over pairs, 95 % intervals by "
        "bootstrap over pairs.",
        means(table, ROWS, MEASURED),
        changes(table, ROWS, ROWS[0], MEASURED),
        f"![The first pair: photos, portraits, and each row's pictures]({picture.name})",
    ]
    file.with_suffix(".md").write_text("\n\n".join(parts) + "\n", "utf-8")
    examples(plan.pictures, ROWS, pairs[0], pair_seeds(plan.split, pairs[0]), picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=4, help="pictures of each row")
    parser.add_argument("--split", choices=("development", "test"), default="test")
    parser.add_argument("--steps", type=int, default=12, help="sampling steps (default: 12)")
    parser.add_argument("--guidance", type=float, default=GUIDANCE, help=f"default: {GUIDANCE:g}")
    parser.add_argument(
        "--weight", type=float, default=WEIGHT, help=f"of references (default: {WEIGHT:g})"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes, one core each")
    parser.add_argument("--pictures", type=Path, default=ROOT / "build/benchmark/magicface")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/benchmarks")
    options = parser.parse_args()
    plan = Plan(
        Split[options.split.upper()],
        options.pictures,
        options.seeds,
        options.weight,
        SamplingSettings("ddim", options.steps, options.guidance, "", 128, 128),
        MagicFaceSettings(),
    )
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "magicface.csv"
    done = {key for key, line in read(file).items() if line["version"] == plan.version}
    missing = [i for i in range(options.pairs) if any((row, i) not in done for row in ROWS)]
    carry_out(Study, plan, missing, file, options.workers)
    write(plan, file, [line for line in read(file).values() if line["version"] == plan.version])


if __name__ == "__main__":
    main()
