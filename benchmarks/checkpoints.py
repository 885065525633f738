"""How often the checkpoint that the product marks is the judge's best, and what choosing gains.

    python benchmarks/checkpoints.py --pairs 10 --workers 2

Each development pair is trained once with the default recipe of drawn faces; the product keeps and
scores checkpoints with what a user has at hand: the face recognition model of the identity loss,
and the base model's autoencoder for style. Then the judge, whose networks no training saw, scores
further pictures of each. A line is one kept step of one pair, and is written when the pair is done.
A pair takes some 6 minutes of one core.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from paperdoll_run import pair_seeds, save_strip
from paperdoll_table import Table, markdown
from study import Line, changes, command, complete, means, read, version
from torch import Tensor

from magicapture import Adapter, Concept, Learnable, Trainer, TrainingJob, sample
from magicapture.checkpoints import COLUMNS, Checkpoints, Keep, KeepSettings, Record, best_of
from magicapture.checkpoints.record import stops
from magicapture.demo.drawing import SAMPLING, prompt_of
from magicapture.images import to_pil
from magicapture.paperdoll import Split
from magicapture.paperdoll.faces import doll_analyzer
from magicapture.paperdoll.judge import Judge
from magicapture.paperdoll.model import doll_backbone
from magicapture.paperdoll.pairs import make_pair, references
from magicapture.paperdoll.recipe import doll_recipe
from magicapture.paperdoll.weights import WEIGHTS, loss_embedder
from magicapture.recipes import with_steps
from magicapture.sampling import adapted

ROOT = Path(__file__).resolve().parent.parent
CHOICES = ("both", "identity", "style")
JUDGED = {"both": "both", "identity": "identity", "style": "style"}
"""What the judge says, by the columns of tables; in the file they begin with "judge_"."""


@dataclass(frozen=True)
class Plan:
    """What is trained, kept and drawn; stretch: of the recipe's steps."""

    out: Path  # grids and strips
    settings: KeepSettings
    stretch: float
    pictures: int

    @property
    def version(self) -> str:
        """A hash of what decides a line."""
        recipe = doll_recipe().settings()
        shared = (self.settings, self.stretch, self.pictures, SAMPLING, sorted(recipe.items()))
        return version(shared, sorted(WEIGHTS.rglob("*.safetensors")))

    @property
    def rows(self) -> list[str]:
        """The names of a pair's lines."""
        return [f"kept {number}" for number in range(1, self.settings.keep + 1)]


class Study:
    """The networks of one process; called with the number of a pair."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.backbone, self.judge, self.embedder = doll_backbone(), Judge.load(), loss_embedder()

    def __call__(self, index: int) -> list[Line]:
        pair = make_pair(*pair_seeds(Split.DEVELOPMENT, index))
        case = self.judge.case(pair)
        kept = self._trained(index)
        self.plan.out.mkdir(parents=True, exist_ok=True)
        to_pil(kept.grid()).save(self.plan.out / f"grid {index}.png")
        lines: list[Line] = []
        for row, record in zip(self.plan.rows, kept.records, strict=True):
            drawn = self._drawn(kept.adapter(record.step), index)
            save_strip(drawn[:8], self.plan.out / f"{row} {index}" / "pictures.png")
            judged = self.judge.scores(drawn, case)
            lines.append(
                {
                    "row": row,
                    "pair": index,
                    "version": self.plan.version,
                    "step": record.step,
                    **{name: record.scores.get(name, "") for name in COLUMNS},
                    **{f"judge_{name}": value for name, value in judged.items()},
                    **{
                        f"best_by_{choice}": int(record is best_of(kept.records, choice))
                        for choice in CHOICES
                    },
                    "stopped": int(self._is_stopped(kept.records, record)),
                    "tone": case.tone,
                }
            )
        return lines

    def _trained(self, index: int) -> Checkpoints:
        pair = make_pair(*pair_seeds(Split.DEVELOPMENT, index))
        recipe = doll_recipe()
        recipe = with_steps(recipe, round(recipe.steps * self.plan.stretch))
        job = TrainingJob(
            Learnable(Concept("ada", "subject"), references(pair.source)),
            Learnable(Concept("fable", "style"), references(pair.reference)),
            recipe,
            seed=index,
        )
        analyzer = replace(doll_analyzer(), embedder=self.embedder)
        keep = Keep(self.plan.settings, analyzer, loss=self.embedder, sampling=SAMPLING)
        kept = Checkpoints(keep)
        with Trainer.open(job, self.backbone, embedder=self.embedder) as trainer:
            trainer.run(keeping=kept)
        return kept

    def _drawn(self, adapter: Adapter, index: int) -> Tensor:
        """Pictures of other seeds than those that chose."""
        with adapted(self.backbone, adapter):
            texts = [prompt_of(adapter)] * self.plan.pictures
            first = 1000 * (index + 1)
            return sample(self.backbone, texts, adapter.vectors(), SAMPLING, seed=first)

    @staticmethod
    def _is_stopped(records: Sequence[Record], record: Record) -> bool:
        """Whether early stopping by "both" would have ended the run before this one."""
        before = [one for one in records if one.step < record.step]
        return any(stops(before[:n], "both") for n in range(1, len(before) + 1))


# -- the table --------------------------------------------------------------------------------


def taken(lines: Sequence[Line]) -> list[Line]:
    """For each pair what the judge says of the step that each way of choosing takes."""
    pairs: Mapping[int, list[Line]] = defaultdict(list)
    for line in lines:
        pairs[int(line["pair"])].append(line)
    found: list[Line] = []
    for pair, own in sorted(pairs.items()):
        own.sort(key=lambda line: int(line["step"]))
        ways = {f"best by {c}": _marked(own, f"best_by_{c}") for c in CHOICES}
        ways["last"] = own[-1]
        ways["stopped early"] = _stopped(own)
        ways["the judge's best"] = max(own, key=lambda line: float(line["judge_both"]))
        ways["the judge's worst"] = min(own, key=lambda line: float(line["judge_both"]))
        for way, line in ways.items():
            judged = {name: line[f"judge_{name}"] for name in JUDGED}
            is_best = float(line is ways["the judge's best"])
            found.append({"row": way, "pair": pair, "hit": str(is_best), **judged, "tone": ""})
        random = {n: str(statistics.fmean(float(x[f"judge_{n}"]) for x in own)) for n in JUDGED}
        hit = str(1 / len(own))
        found.append({"row": "any, at random", "pair": pair, "hit": hit, **random, "tone": ""})
    return found


def _marked(own: Sequence[Line], column: str) -> Line:
    return next(line for line in own if int(line[column]))


def _stopped(own: Sequence[Line]) -> Line:
    """The best by "both" of what is trained before early stopping ends the run."""
    return max(
        (line for line in own if not int(line["stopped"])),
        key=lambda line: (float(line["both"]), int(line["step"])),
    )


def write(plan: Plan, file: Path, lines: Sequence[Line]) -> None:
    """The table of what choosing gains, and the means of the kept steps."""
    found = taken(lines)
    order = list(dict.fromkeys(line["row"] for line in found))
    table = Table(found, order)
    columns = {"hit": "is the judge's best", **JUDGED}
    pairs = sorted({int(line["pair"]) for line in lines})
    saved = statistics.fmean(float(line["stopped"]) for line in lines)
    parts = [
        "# The right checkpoint",
        f"`{command()}`: {len(pairs)} development pairs, {plan.settings.keep} kept steps, scored "
        f"by the product on {plan.settings.keep_seeds} seeds and by the judge on {plan.pictures} "
        f"others; recipe's steps times {plan.stretch:g}. Means over pairs, 95 % intervals by "
        "bootstrap over pairs. The product measures identity by the identity loss's own network, "
        "the judge by another; so a product with two face recognition models may choose better.",
        "What the judge says of the step that each way takes:",
        means(table, order, columns),
        "What each way gains over the last step, pair by pair:",
        changes(table, order, "last", columns),
        f"Early stopping would have left out {saved:.0%} of the kept steps' trainings.",
        "The kept steps, by the product and by the judge, means over pairs:",
        _steps(lines),
    ]
    file.with_suffix(".md").write_text("\n\n".join(parts) + "\n", "utf-8")


def _steps(lines: Sequence[Line]) -> str:
    columns = [*COLUMNS, *(f"judge_{name}" for name in JUDGED)]
    rows = []
    for row in dict.fromkeys(line["row"] for line in lines):
        own = [line for line in lines if line["row"] == row]
        known = ([float(line[c]) for line in own if line[c] != ""] for c in columns)
        rows.append([row, *(f"{statistics.fmean(v):.2f}" if v else "" for v in known)])
    return markdown(["kept", *(c.replace("_", ": ") for c in columns)], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--keep", type=int, default=5, help="steps kept of each training")
    parser.add_argument("--seeds", type=int, default=4, help="pictures that the product scores")
    parser.add_argument("--pictures", type=int, default=16, help="pictures that the judge scores")
    parser.add_argument("--stretch", type=float, default=1.0, help="of the recipe's steps")
    parser.add_argument("--workers", type=int, default=1, help="processes, one core each")
    parser.add_argument("--table", action="store_true", help="only write the table anew")
    parser.add_argument("--pictures-in", type=Path, default=ROOT / "build/benchmark/checkpoints")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/benchmarks")
    options = parser.parse_args()
    settings = KeepSettings(keep=options.keep, keep_seeds=options.seeds)
    plan = Plan(options.pictures_in, settings, options.stretch, options.pictures)
    options.out.mkdir(parents=True, exist_ok=True)
    name = "checkpoints" if options.stretch == 1 else f"checkpoints_times_{options.stretch:g}"
    file = options.out / f"{name}.csv"
    rows = [(row, index) for index in range(options.pairs) for row in plan.rows]
    wanted = {
        index: {key: plan.version for key in rows if key[1] == index}
        for index in range(options.pairs)
    }
    if options.table:
        lines: list[Line] = [line for key, line in read(file).items() if key in rows]
    else:
        lines = complete(Study, plan, wanted, file, options.workers)
    if lines:
        write(plan, file, lines)


if __name__ == "__main__":
    main()
