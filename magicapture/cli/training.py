"""A training as `train`'s options say, which a job of a batch is as well: ready, run, saved."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ..adapters import (
    Adapter,
    SavedFiles,
    check_consent,
    check_names,
    credited,
    lora_file,
    save_adapter,
)
from ..backbones import DiffusersBackbone
from ..checkpoints import Checkpoints
from ..config import Recipe
from ..data import Learnable, load_folder
from ..dino import Dino
from ..faces.embed import FaceEmbedder, FaceEmbeddingNetwork
from ..losses import needs
from ..planning import Watch
from ..tokens import Concept
from ..training import Listener, Trainer, TrainingJob
from . import keeping
from .faces import faces_found, judges_from
from .fit import announced, fitted, heard
from .latest import Latest
from .model import DTYPES, backbone_from
from .options import MAX_SEED, require_range, require_text
from .recipe import recipe_from


@dataclass(frozen=True)
class Training:
    """A training that `train`'s options ask for; `of` reads it, and `on` gives it its base model.

    embedder: of the identity loss. checkpoints: where any are to be kept. watch: follows the run
    where its needs are known.
    """

    arguments: argparse.Namespace
    job: TrainingJob
    embedder: FaceEmbeddingNetwork | None
    dino: Dino | None
    checkpoints: Checkpoints | None
    backbone: DiffusersBackbone | None = None
    watch: Watch | None = None

    @classmethod
    def of(cls, arguments: argparse.Namespace, latest: Latest) -> Training:
        """Read the photos, find their faces, load all models but the base model.

        Raises InputError and StorageError for what cannot be used.
        """
        recipe = recipe_from(arguments)
        looks = recipe.subject_is, "dino" in needs(recipe)
        names = ("face_model", "face_model_input", "dino", "models")
        wanted = *looks, *(getattr(arguments, name) for name in names)
        embedder, dino = latest("of losses", wanted, lambda: judges_from(arguments, recipe))
        job = job_from(arguments, recipe, embedder)
        checkpoints = keeping.checkpoints_from(arguments, recipe, embedder, latest)
        return cls(arguments, job, embedder, dino, checkpoints)

    def on(self, latest: Latest) -> Training:
        """The same with its base model, and with settings that fit where `--fit` asks for them.

        Raises OutOfMemoryError where it cannot run, but for `--anyway`, and as `load_backbone`.
        """
        precision = self.job.recipe.precision
        wanted = self.arguments.base, self.arguments.taesd, DTYPES[precision]
        backbone = latest("base", wanted, lambda: backbone_from(self.arguments, precision))
        job = fitted(self.arguments, self.job, backbone, self.embedder, self.dino)
        watch = announced(self.arguments, job, backbone, self.embedder, self.dino)
        return replace(self, job=job, backbone=backbone, watch=watch)

    def check_files(self, folder: Path, name: str) -> list[str]:
        """Lines on files of ours that are replaced; raises InputError for those of others."""
        lora = lora_file(folder, name)
        concepts = [] if self.arguments.bundle else self.job.concepts
        lines = check_names(concepts, [lora.parent / "embeddings"], lora)
        if self.checkpoints:
            keeping.check_files(lora)
        return lines

    @contextmanager
    def opened(self, listener: Listener, states: Path, *, fresh: bool = False) -> Iterator[Trainer]:
        """The trainer of the run, as `Trainer.open` makes it; states: a folder for its state."""
        assert self.backbone is not None
        with Trainer.open(
            self.job,
            self.backbone,
            embedder=self.embedder,
            dino=self.dino,
            listener=heard(listener, self.watch),
            state_folder=states,
            save_every=self.arguments.save_every,
            fresh=fresh,
        ) as trainer:
            if self.watch is not None:
                self.watch.begin()
            yield trainer

    def run(self, trainer: Trainer) -> Adapter:
        """Train to the end; the adapter of the last step, or of the checkpoint to be taken."""
        every = self.arguments.preview_every
        adapter = trainer.run(preview_every=every, keeping=self.checkpoints)
        return self.checkpoints.adapter(self.arguments.take) if self.checkpoints else adapter

    def save(
        self, adapter: Adapter, folder: Path, name: str, spare: Iterable[Path] = ()
    ) -> SavedFiles:
        """Write the adapter; spare: as `save_adapter` has it, which says what is raised."""
        embeddings = lora_file(folder, name).parent / "embeddings"
        adapter = credited_by(self.arguments, adapter)
        bundle = self.arguments.bundle
        return save_adapter(adapter, folder, embeddings, name, bundle=bundle, spare=spare)

    def save_scores(self, folder: Path, name: str) -> list[Path]:
        """Write what checkpoints scored, and their pictures; nothing where none were kept."""
        if self.checkpoints is None:
            return []
        made_with = not self.arguments.no_made_with
        return keeping.write(self.checkpoints, lora_file(folder, name), made_with)

    def save_kept(self, folder: Path, name: str) -> list[Path]:
        """Write the adapter of each kept step into one file, name-STEP."""
        files = []
        for step in [one.step for one in self.checkpoints.records] if self.checkpoints else ():
            assert self.checkpoints is not None
            adapter = credited_by(self.arguments, self.checkpoints.adapter(step))
            saved = save_adapter(adapter, folder, folder, f"{name}-{step:06}", bundle=True)
            files.append(saved.lora)
        return files


def check_values(arguments: argparse.Namespace) -> None:
    """Raise InputError for a value of `train`'s options that is empty or out of its range."""
    require_text("--source", arguments.source)
    require_text("--style", arguments.style)
    require_range("--seed", arguments.seed, 0, MAX_SEED)
    require_range("--preview-every", arguments.preview_every, 0)
    require_range("--save-every", arguments.save_every, 0)
    check_consent(arguments.consent)
    require_range("--fit", arguments.fit or 0, 0)
    keeping.settings(arguments, recipe_from(arguments))


def credited_by(arguments: argparse.Namespace, adapter: Adapter) -> Adapter:
    """The adapter with what `train`'s options have its files say of their making."""
    base, made_with = Path(arguments.base).stem, not arguments.no_made_with
    return credited(adapter, arguments.consent, made_with, base=base)


def job_from(
    arguments: argparse.Namespace, recipe: Recipe, embedder: FaceEmbedder | None
) -> TrainingJob:
    """The job of `train`'s options: photos read, faces found; raises InputError, StorageError."""
    word, vectors = arguments.class_word, arguments.vectors
    named = arguments.subject_name, arguments.style_name
    phrases = arguments.subject_phrase, arguments.style_phrase
    subject = Concept(named[0], "subject", word, vectors, phrase=phrases[0])
    style = Concept(named[1], "style", word, vectors, phrase=phrases[1])
    photos, portraits = load_folder(arguments.source), load_folder(arguments.style)
    both = Learnable(subject, photos), Learnable(style, portraits)
    return TrainingJob(*faces_found(*both, arguments, recipe, embedder), recipe, arguments.seed)
