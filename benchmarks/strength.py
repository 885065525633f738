"""What a lower strength of the LoRA costs in likeness, and what it gives words that contradict.

    python benchmarks/paperdoll.py --rows magicapture     # trains the adapters
    python benchmarks/strength.py --workers 2             # draws with them

Every adapter draws the composed prompt, alone and with the words of two edits, from the same noise
at each strength. A pair takes about 50 seconds of one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from paperdoll_run import kept_adapter, pair_seeds, save_strip
from paperdoll_table import SCORES, Table, examples
from study import Line, changes, command, complete, means, version
from torch import Tensor

from magicapture import Adapter, load_backbone, sample
from magicapture.demo.drawing import SAMPLING, prompt_of
from magicapture.metrics import METRICS
from magicapture.paperdoll import Split
from magicapture.paperdoll.edits import edits
from magicapture.paperdoll.judge import Judge
from magicapture.paperdoll.pairs import make_pair
from magicapture.paperdoll.weights import WEIGHTS
from magicapture.sampling import adapted

ROOT = Path(__file__).resolve().parent.parent
ADAPTER = "magicapture"  # the row of benchmarks/paperdoll.py
STRENGTHS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
MEASURED = SCORES | {
    name: METRICS[name].heading
    for name in ("collapse", "obeys_face_in_words", "obeys_scene_in_words")
}


@dataclass(frozen=True)
class Plan:
    """What is drawn, and of which adapters."""

    keep: Path  # the adapters, as paperdoll.py leaves them
    pictures: Path
    seeds: int

    def version(self, strength: float, index: int) -> str:
        """A hash of what decides a line's scores."""
        file = self.keep / f"{ADAPTER} {index}" / "adapter.safetensors"
        readers = sorted(WEIGHTS.rglob("*.safetensors"))
        return version((SAMPLING, self.seeds, strength), [file, *readers])


class Study:
    """The networks of one process; called with the number of a pair."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.backbone = load_backbone(WEIGHTS)
        self.judge = Judge.load()

    def __call__(self, index: int) -> list[Line]:
        pair = make_pair(*pair_seeds(Split.TEST, index))
        case = self.judge.case(pair)
        adapter = kept_adapter(self.plan.keep, ADAPTER, index)
        wanted = edits(pair.identity, pair.style)
        lines: list[Line] = []
        for strength in STRENGTHS:
            with adapted(self.backbone, adapter, strength):
                drawn = self._draw(adapter, "", 1000 * index)
                face, scene = (
                    self._draw(adapter, wanted[kind].words, 1000 * index + 500)
                    for kind in ("face", "scene")
                )
            for kind, images in (("", drawn), (", face", face), (", scene", scene)):
                place = self.plan.pictures / f"{row_of(strength)}{kind} {index}"
                save_strip(images, place / "pictures.png")
            lines.append(
                {
                    "row": row_of(strength),
                    "pair": index,
                    "version": self.plan.version(strength, index),
                    **self.judge.scores(drawn, case),
                    "tone": case.tone,
                    "obeys_face_in_words": self.judge.obedience(face, wanted["face"]),
                    "obeys_scene_in_words": self.judge.obedience(scene, wanted["scene"]),
                }
            )
        return lines

    def _draw(self, adapter: Adapter, words: str, seed: int) -> Tensor:
        """Pictures of the composed prompt with words behind it."""
        texts = [prompt_of(adapter, words)] * self.plan.seeds
        return sample(self.backbone, texts, adapter.vectors(), SAMPLING, seed=seed)


def row_of(strength: float) -> str:
    """A strength's row."""
    return f"strength {strength:g}"


def write(plan: Plan, file: Path, lines: Sequence[Line]) -> None:
    """The table, and a sheet of the first pair's pictures."""
    table = Table(lines, [row_of(strength) for strength in STRENGTHS])
    pairs = sorted({pair for _, pair in table.by})
    picture = file.with_suffix(".jpg")
    parts = [
        "# The LoRA's strength",
        f"`{command()}`: {len(pairs)} test pairs, {plan.seeds} seeds, {SAMPLING.steps} steps of "
        f"{SAMPLING.sampler}, guidance {SAMPLING.guidance:g}; means over pairs, 95 % intervals by "
        "bootstrap over pairs. The token vectors stay as they are.",
        means(table, table.order, MEASURED),
        changes(table, table.order, row_of(STRENGTHS[0]), MEASURED),
        f"![The first pair's pictures: the composed prompt and its edits]({picture.name})",
    ]
    file.with_suffix(".md").write_text("\n\n".join(parts) + "\n", "utf-8")
    shown = [f"{row}{kind}" for row in table.order[::2] for kind in ("", ", face", ", scene")]
    examples(plan.pictures, shown, pairs[0], pair_seeds(Split.TEST, pairs[0]), picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=4, help="pictures of each prompt")
    parser.add_argument("--workers", type=int, default=1, help="processes, one core each")
    parser.add_argument("--keep", type=Path, default=ROOT / "build/benchmark/paperdoll")
    parser.add_argument("--pictures", type=Path, default=ROOT / "build/benchmark/strength")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/benchmarks")
    options = parser.parse_args()
    plan = Plan(options.keep, options.pictures, options.seeds)
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "strength.csv"
    wanted = {
        index: {(row_of(s), index): plan.version(s, index) for s in STRENGTHS}
        for index in range(options.pairs)
        if (plan.keep / f"{ADAPTER} {index}" / "adapter.safetensors").exists()
    }
    lines = complete(Study, plan, wanted, file, options.workers)
    if lines:
        write(plan, file, lines)


if __name__ == "__main__":
    main()
