"""What Attention Refocusing while sampling does to adapters trained with and without it.

    python benchmarks/paperdoll.py --rows magicapture "without refocusing"     # trains them
    python benchmarks/refocusing.py --workers 2                                # the study
    python benchmarks/refocusing.py --strengths --split development --pairs 4  # choosing

Every adapter draws the composed prompt from the same noise without a guide, held by bias, and
moved by gradient, with the region given and found. A given region is the face in the picture that
was drawn without a guide, as a user would mask it on a preview. Leakage is measured in the finished
pictures, without a guide, as Preview Attention does. A pair takes about 60 seconds of one core,
the strengths 80.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from paperdoll_run import kept_adapter, pair_seeds, save_strip
from paperdoll_table import SCORES, Table, examples
from study import Line, changes, command, complete, means, version
from torch import Tensor

from magicapture import Adapter, load_backbone, sample
from magicapture.demo.drawing import SAMPLING, prompt_of
from magicapture.metrics import METRICS
from magicapture.paperdoll import Split
from magicapture.paperdoll.attention import token_leakage
from magicapture.paperdoll.judge import Judge
from magicapture.paperdoll.pairs import Pair, make_pair, masks
from magicapture.paperdoll.readers import faces_in
from magicapture.paperdoll.weights import WEIGHTS
from magicapture.refocusing import PromptRefocuser, RefocusGuidance, foci
from magicapture.sampling import adapted
from magicapture.tokens import Prompt

ROOT = Path(__file__).resolve().parent.parent
ADAPTERS = ("magicapture", "without refocusing")  # rows of benchmarks/paperdoll.py
NEITHER = "neither"
BIAS, GRADIENT = RefocusGuidance().bias, 0.02  # as chosen on development pairs
GRID = {"bias": (2.0, 4.0, 8.0), "gradient": (0.02, 0.05, 0.1)}
MEASURED = SCORES | {
    n: METRICS[n].heading for n in ("collapse", "leakage_subject", "leakage_style")
}
OVERLAP = {"overlap": "overlap"}


@dataclass(frozen=True)
class Form:
    """One way to draw: without a guide, or with one whose region is given or found."""

    name: str
    guidance: RefocusGuidance | None = None
    given: bool = False


@dataclass(frozen=True)
class Plan:
    """What is drawn, of which adapters."""

    split: Split
    keep: Path  # the adapters, as paperdoll.py leaves them
    pictures: Path
    seeds: int
    forms: tuple[Form, ...]

    def version(self, form: Form, adapter: str, index: int) -> str:
        """A hash of what decides a line's scores."""
        file = self.keep / f"{adapter} {index}" / "adapter.safetensors"
        readers = sorted(WEIGHTS.rglob("*.safetensors"))
        return version((SAMPLING, self.seeds, form), [file, *readers])


def forms(biases: Sequence[float], gradients: Sequence[float]) -> tuple[Form, ...]:
    """Every strength with the region given and found, and neither."""
    guidances = {f"bias {b:g}": RefocusGuidance(bias=b) for b in biases}
    guidances |= {f"gradient {g:g}": RefocusGuidance(bias=0.0, gradient=g) for g in gradients}
    return Form(NEITHER), *(
        Form(f"{name}, region {'given' if given else 'found'}", guidance, given)
        for name, guidance in guidances.items()
        for given in (True, False)
    )


class Study:
    """The networks of one process; called with an adapter's name and the number of its pair."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.backbone: Any = load_backbone(WEIGHTS)
        self.judge = Judge.load()

    def __call__(self, item: tuple[str, int]) -> list[Line]:
        name, index = item
        pair = make_pair(*pair_seeds(self.plan.split, index))
        case = self.judge.case(pair)
        adapter = kept_adapter(self.plan.keep, name, index)
        lines: list[Line] = []
        preview = None
        with adapted(self.backbone, adapter):
            for form in self.plan.forms:
                started = time.process_time()
                images, found = self._draw(adapter, form, preview, 1000 * index)
                seconds = time.process_time() - started
                faces = self._faces(images, pair)
                preview = faces if preview is None else preview
                row = f"{name}, {form.name}"
                save_strip(images, self.plan.pictures / f"{row} {index}" / "pictures.png")
                leakages = token_leakage(self.backbone, adapter, images, faces)
                lines.append(
                    {
                        "row": row,
                        "pair": index,
                        "version": self.plan.version(form, name, index),
                        **self.judge.scores(images, case),
                        "tone": case.tone,
                        "leakage_subject": leakages.subject,
                        "leakage_style": leakages.style,
                        "overlap": "" if found is None else _overlap(found, faces),
                        "seconds": seconds,
                    }
                )
        return lines

    def _draw(
        self, adapter: Adapter, form: Form, preview: Tensor | None, seed: int
    ) -> tuple[Tensor, Tensor | None]:
        """Pictures of the composed prompt, and the regions found at the last step."""
        texts = [prompt_of(adapter)] * self.plan.seeds
        vectors, guide = adapter.vectors(), None
        if form.guidance is not None:
            prompts = [Prompt(text) for text in texts]
            with torch.no_grad():
                conditioning = self.backbone.encode_prompts(prompts, vectors)
            rows = foci(self.backbone, prompts, conditioning, vectors, adapter.concepts)
            region = preview if form.given else None
            guide = PromptRefocuser(self.backbone, rows, form.guidance, region)
        images = sample(self.backbone, texts, vectors, SAMPLING, seed=seed, guide=guide)
        if guide is None or form.given:
            return images, None
        last = [torch.zeros(1, 1) if found is None else found for found in guide.seen[-1]]
        size = (images.shape[-2], images.shape[-1])
        return images, torch.cat([F.interpolate(one[None, None], size) for one in last])

    @torch.no_grad()
    def _faces(self, images: Tensor, pair: Pair) -> Tensor:
        """The face in each picture; where none is seen, where the portraits have it."""
        faces = faces_in(self.judge.readers.parser(images).argmax(1))
        usual = (masks(pair.reference).mean(0, keepdim=True) >= 0.5).float()
        seen = faces.mean((1, 2, 3), keepdim=True) > 0.01
        return torch.where(seen, faces, usual)


def _overlap(found: Tensor, faces: Tensor) -> float:
    """Intersection over union of the regions found and the faces drawn, the mean over pictures."""
    both = torch.minimum(found, faces).sum((1, 2, 3))
    return float((both / torch.maximum(found, faces).sum((1, 2, 3)).clamp_min(1)).mean())


def write(plan: Plan, file: Path, lines: Sequence[Line]) -> None:
    """The table, and a sheet of the first pair's pictures."""
    named = [[f"{adapter}, {form.name}" for form in plan.forms] for adapter in ADAPTERS]
    table = Table(lines, [row for rows in named for row in rows])
    pairs = sorted({pair for _, pair in table.by})
    parts = [
        "# Refocusing while sampling",
        f"`{command()}`: {len(pairs)} {plan.split.name.lower()} pairs, {plan.seeds} seeds, "
        f"{SAMPLING.steps} steps of {SAMPLING.sampler}, guidance {SAMPLING.guidance:g}; means over "
        "pairs, 95 % intervals by bootstrap over pairs. Overlap: of the region found at the last "
        "step with the face drawn, intersection over union.",
    ]
    for adapter, rows in zip(ADAPTERS, named, strict=True):
        own = [row for row in rows if row in table.order]
        if own:
            parts += [f"## Adapter: {adapter}", means(table, own, MEASURED | OVERLAP)]
            parts += [changes(table, own, f"{adapter}, {NEITHER}", MEASURED)]
    picture = file.with_suffix(".jpg")
    parts += [f"![The first pair's pictures]({picture.name})"]
    file.with_suffix(".md").write_text("\n\n".join(parts) + "\n", "utf-8")
    examples(plan.pictures, table.order, pairs[0], pair_seeds(plan.split, pairs[0]), picture)


def main() -> None:
    options = _arguments()
    biases, gradients = GRID.values() if options.strengths else ((BIAS,), (GRADIENT,))
    stem = "refocusing" + ("_strengths" if options.strengths else "")
    plan = Plan(
        Split[options.split.upper()],
        options.keep,
        options.pictures / stem,
        options.seeds,
        forms(biases, gradients),
    )
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / f"{stem}.csv"
    wanted = {
        (adapter, index): {
            (f"{adapter}, {form.name}", index): plan.version(form, adapter, index)
            for form in plan.forms
        }
        for index in range(options.pairs)
        for adapter in ADAPTERS
        if (plan.keep / f"{adapter} {index}" / "adapter.safetensors").exists()
    }
    lines = complete(Study, plan, wanted, file, options.workers)
    if lines:
        write(plan, file, lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=4, help="pictures of each form")
    parser.add_argument("--split", choices=("development", "test"), default="test")
    parser.add_argument("--strengths", action="store_true", help="a grid of them")
    parser.add_argument("--workers", type=int, default=1, help="processes, one core each")
    parser.add_argument("--keep", type=Path, default=ROOT / "build/benchmark/paperdoll")
    parser.add_argument("--pictures", type=Path, default=ROOT / "build/benchmark")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/benchmarks")
    options = parser.parse_args()
    if options.strengths and options.split == "test":
        parser.error("strengths are chosen on development pairs; add --split development")
    return options


if __name__ == "__main__":
    main()
