"""One training of the paperdoll benchmark: learn a pair, draw pictures, have them judged."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from magicface_references import GUIDANCE, WEIGHT
from magicface_references import prompt_of as magicface_prompt
from magicface_references import references as magicface_references
from paperdoll_photos import photos_of, with_masks
from paperdoll_rows import MAGICFACE, Row
from study import Line, version
from torch import Tensor

from magicapture import (
    Adapter,
    Recipe,
    ReferenceSet,
    SamplingSettings,
    Trainer,
    TrainingJob,
    load_adapter,
    sample,
    save_adapter,
)
from magicapture.data import Learnable
from magicapture.demo.drawing import SAMPLING, prompt_of
from magicapture.magicface import MagicFaceSettings, ReferenceGuide
from magicapture.metrics import METRICS, Case
from magicapture.paperdoll import Split, identity_from_seed
from magicapture.paperdoll.attention import token_leakage
from magicapture.paperdoll.captions import TONES, tone_word
from magicapture.paperdoll.edits import edits
from magicapture.paperdoll.judge import Judge
from magicapture.paperdoll.model import FAMILY_OF, ModelName, doll_backbone
from magicapture.paperdoll.pairs import Pair, make_pair, masks, pictures, references
from magicapture.paperdoll.recipe import doll_recipe
from magicapture.paperdoll.weights import loss_embedder
from magicapture.prompts import with_edit
from magicapture.recipes import fitted, with_steps
from magicapture.sampling import adapted

BESIDE = tuple(name for name, metric in METRICS.items() if metric.measure is None)
COMPOSED, EDITED = 16, 8  # pictures of the composed prompt, and of each of its edits


class Draw(Protocol):
    """Draws pictures (count,3,H,W) of the composed prompt, the first one from a seed.

    edit: words guided by themselves. extra: words of the prompt.
    """

    def __call__(self, count: int, seed: int, edit: str = "", extra: str = "") -> Tensor: ...


@dataclass(frozen=True)
class Plan:
    """What is the same for every row of a table."""

    weights: Path
    split: Split
    keep: Path  # adapters and pictures, by row and pair
    quick: bool = False
    in_words: bool = False  # draw edits also as words of the prompt, without edit guidance
    hard: str | None = None  # of `hardships.HARDSHIPS`, which the person's photos then have
    model: ModelName = "unet"

    @property
    def pictures(self) -> tuple[int, int]:
        """Pictures of the composed prompt, and of each edit."""
        return (4, 2) if self.quick else (COMPOSED, EDITED)

    @property
    def sampling(self) -> SamplingSettings:
        """How pictures are drawn."""
        return replace(SAMPLING, steps=8) if self.quick else SAMPLING

    def recipe_of(self, row: Row) -> Recipe | None:
        """The row's recipe for the model; for a quick look 12 steps of it, with 2 class images."""
        if row.recipe is None:
            return None
        weighting = doll_recipe(model=self.model).weighting
        recipe = fitted(replace(row.recipe, weighting=weighting), FAMILY_OF[self.model])
        if not self.quick:
            return recipe
        prior = replace(recipe.prior, images=min(2, recipe.prior.images))
        return with_steps(replace(recipe, prior=prior, variants=2), 12)

    @property
    def files(self) -> list[Path]:
        """The weights that decide scores: all but those of the other model."""
        other = self.weights / ("transformer" if self.model == "unet" else "unet")
        files = self.weights.rglob("*.safetensors")
        return sorted(file for file in files if other not in file.parents)

    def version(self, row: Row) -> str:
        """A hash of all that decides a row's scores; a line of another version is not reused."""
        recipe = self.recipe_of(row)
        named = json.dumps(recipe.settings() if recipe else row.name, sort_keys=True)
        if row.name == MAGICFACE:
            named += repr((GUIDANCE, WEIGHT, MagicFaceSettings()))
        drawn = (self.sampling, self.pictures, row.strengths, self.in_words, self.hard)
        settings = (named, *drawn, row.seed, row.start, *(row.phrases or ()))
        if row.photos is not None or row.masks is not None:
            settings += (row.photos, row.masks)
        return version(settings, self.files)


def pair_seeds(split: Split, index: int) -> tuple[int, int]:
    """Identity and style seed of a pair; bands of skin tone take turns, so that each is a third."""
    start = split.seeds.start + 100 * index
    band = TONES[index % len(TONES)]
    found = (
        seed for seed in range(start, start + 100) if tone_word(identity_from_seed(seed)) == band
    )
    return next(found), start + 99


class Bench:
    """The networks of one process, and the pair it is at."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.backbone = doll_backbone(plan.model, plan.weights)
        self.judge = Judge.load(plan.weights)
        self.embedder = loss_embedder(plan.weights)
        self._known: tuple[int, Pair, Case] | None = None

    def __call__(self, item: tuple[Row, int]) -> list[Line]:
        """Train, draw and judge a row on a pair; returns its line of the table."""
        row, index = item
        pair, case = self._pair(index)
        place = self.plan.keep / f"{row.name} {index}"
        trained, further = 0.0, dict[str, object]()
        if row.name == "truth":
            drawn = pictures(pair.unseen)
        elif row.name == MAGICFACE:
            drawn, further = self._drawn(partial(self._referred, pair), pair, case, index)
        else:
            started = time.process_time()
            adapter = self._adapter(row, index, pair, place)
            trained = time.process_time() - started
            scope = adapted(self.backbone, adapter, *row.strengths)
            with scope if row.recipe else nullcontext():
                drawn, further = self._drawn(partial(self._sample, adapter), pair, case, index)
                further |= self._leakages(adapter, pair)
        save_strip(drawn[:8], place / "pictures.png")
        identity, style = pair_seeds(self.plan.split, index)
        line: Line = {
            "row": row.name,
            "pair": index,
            "version": self.plan.version(row),
            "identity_seed": identity,
            "style_seed": style,
            **self.judge.scores(drawn, case),
            "tone": case.tone,
            **(dict.fromkeys(BESIDE, "") | further),
            "train_seconds": trained,
        }
        return [line]

    def _pair(self, index: int) -> tuple[Pair, Case]:
        if self._known is None or self._known[0] != index:
            pair = make_pair(*pair_seeds(self.plan.split, index), hard=self.plan.hard)
            self._known = (index, pair, self.judge.case(pair))
        return self._known[1:]

    def _adapter(self, row: Row, index: int, pair: Pair, place: Path) -> Adapter:
        """Train the row; without a recipe, the adapter of no step. Kept for later rows."""
        subject, style = row.concepts()
        recipe = self.plan.recipe_of(row) or doll_recipe(model=self.plan.model)
        job = TrainingJob(
            Learnable(subject, _photos(row, pair, pair_seeds(self.plan.split, index)[0])),
            Learnable(style, references(pair.reference)),
            recipe,
            seed=1000 * row.seed + index,
        )
        with Trainer.open(job, self.backbone, embedder=self.embedder) as trainer:
            adapter = trainer.run() if row.recipe else trainer.adapter()
        if row.recipe:
            save_adapter(adapter, place, place, "adapter")
        return adapter

    def _drawn(
        self, draw: Draw, pair: Pair, case: Case, index: int
    ) -> tuple[Tensor, dict[str, object]]:
        """Pictures of the composed prompt, and what is measured beside them."""
        composed, edited = self.plan.pictures
        started = time.process_time()
        drawn = draw(composed, 1000 * index)
        further: dict[str, object] = {"sample_seconds": time.process_time() - started}
        asked, seed = edits(pair.identity, pair.style), 1000 * index + 500
        shown = {kind: draw(edited, seed, edit=edit.words) for kind, edit in asked.items()}
        further |= self.judge.edited(shown, asked, case)
        if self.plan.in_words:
            for kind, edit in asked.items():
                images = draw(edited, seed, extra=edit.words)
                further[f"obeys_{kind}_in_words"] = self.judge.obedience(images, edit)
        return drawn, further

    def _sample(
        self, adapter: Adapter, count: int, seed: int, edit: str = "", extra: str = ""
    ) -> Tensor:
        """Pictures by an adapter's tokens."""
        texts = [prompt_of(adapter, extra)] * count
        sampling = replace(self.plan.sampling, edit=edit)
        return sample(self.backbone, texts, adapter.vectors(), sampling, seed=seed)

    def _referred(
        self, pair: Pair, count: int, seed: int, edit: str = "", extra: str = ""
    ) -> Tensor:
        """Pictures by MagicFace, from a face, clothes and a background."""
        prompt = with_edit(magicface_prompt(pair), extra)
        given = magicface_references(pair, 3, WEIGHT)
        guide = ReferenceGuide(self.backbone, given, prompt, side=self.plan.sampling.width)
        sampling = replace(self.plan.sampling, guidance=GUIDANCE, edit=edit)
        return sample(self.backbone, [prompt] * count, None, sampling, seed=seed, guide=guide)

    def _leakages(self, adapter: Adapter, pair: Pair) -> dict[str, object]:
        """How much of each token's attention lies outside its region, by the columns' names."""
        shown = pair.unseen[:8]
        leakages = token_leakage(self.backbone, adapter, pictures(shown), masks(shown))
        return {f"leakage_{name}": value for name, value in asdict(leakages).items()}


def _photos(row: Row, pair: Pair, seed: int) -> ReferenceSet:
    """The person's photos as a row has them. seed: the identity's."""
    dolls = pair.source if row.photos is None else photos_of(pair, seed, row.photos)
    return references(dolls) if row.masks is None else with_masks(dolls, *row.masks, seed)


def kept_adapter(keep: Path, row: str, index: int) -> Adapter:
    """An adapter that an earlier run trained; for rows that only sample in another way."""
    place = keep / f"{row} {index}"
    return load_adapter(place / "adapter.safetensors", [place])


def save_strip(images: Tensor, file: Path) -> None:
    """Pictures (N,3,H,W) in 0..1, side by side."""
    from PIL import Image

    file.parent.mkdir(parents=True, exist_ok=True)
    strip = torch.cat(list(images), dim=-1).mul(255).round().byte().permute(1, 2, 0)
    Image.fromarray(strip.numpy()).save(file)
