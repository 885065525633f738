"""The models of faces that a command was given, or finds, and what they see in the photos."""

from __future__ import annotations

import argparse
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..adapters import read_info
from ..config import Recipe
from ..data import Learnable, ReferenceSet
from ..data.checks import needs_masks
from ..data.faces import FoundFace, with_faces
from ..dino import Dino, load_dino
from ..doctor import SetCheck, judge_photos
from ..errors import InputError
from ..faces.analyzer import FaceAnalyzer
from ..faces.detect import load_detector
from ..faces.embed import FaceEmbedder, FaceEmbeddingNetwork, load_face_embedder
from ..faces.find import best, best_or_none, places
from ..faces.labelling import FaceParser
from ..faces.models import TITLES
from ..faces.models import Role as ModelRole
from ..faces.parse import load_parser
from ..faces.protocols import Detector
from ..faces.registry import known
from ..losses import needs

logger = logging.getLogger(__name__)

NONE = "none"
"""What a user names who wants no model where one could be found."""


def detector_from(arguments: argparse.Namespace) -> Detector:
    """The detector named, else the best one found; one comes with the pack."""
    file = Path(arguments.detector or best("detector", places(arguments.models)))
    logger.info("Faces are found by %s.", file.name)
    return load_detector(file)


def parser_from(arguments: argparse.Namespace) -> FaceParser | None:
    """The parser named, else the best one found, else None."""
    file = _optional("parser", arguments.parser, arguments)
    return None if file is None else load_parser(file)


def embedder_from(arguments: argparse.Namespace) -> FaceEmbeddingNetwork | None:
    """The face embedder named, else the best one found, else None."""
    file = _optional("embedder", arguments.face_model, arguments)
    return None if file is None else load_face_embedder(file, arguments.face_model_input)


def judges_from(
    arguments: argparse.Namespace, recipe: Recipe
) -> tuple[FaceEmbeddingNetwork | None, Dino | None]:
    """What the recipe's losses compare pictures by: a face embedder of people, a DINO of things."""
    embedder = embedder_from(arguments) if recipe.subject_is == "person" else None
    return embedder, dino_from(arguments, recipe)


def dino_from(arguments: argparse.Namespace, recipe: Recipe) -> Dino | None:
    """The DINO named, else the best one found; None where the recipe looks through none.

    Raises StorageError that says what to get where there is none.
    """
    if "dino" not in needs(recipe):
        return None
    file = arguments.dino or best("dino", places(arguments.models))
    logger.info("%s", f"Things are compared by {file.name}.")
    return load_dino(file)


def loss_from(arguments: argparse.Namespace) -> Path | str | None:
    """The identity loss's face embedder: its file, or its name as the adapter tells it."""
    if arguments.loss_face_model:
        return Path(arguments.loss_face_model)
    if arguments.adapter:
        return read_info(arguments.adapter).get("face_model")
    return None


def faces_found(
    subject: Learnable,
    style: Learnable,
    arguments: argparse.Namespace,
    recipe: Recipe,
    embedder: FaceEmbedder | None,
) -> tuple[Learnable, Learnable]:
    """A person's photos and a style's, with what masks and landmarks they lack found, and judged.

    A set that lacks nothing is taken as it is, and so are things, which have no face. embedder:
    tells which of several faces is the person's. Raises InputError for photos without a face, where
    the recipe needs masks, and for a folder of models that does not exist; StorageError for a model
    that cannot be read.
    """
    both = (subject, style)
    if recipe.subject_is == "thing" or not any(map(_lacks, both)):
        return both
    detector, parser = detector_from(arguments), parser_from(arguments)
    filled, faceless = [], []
    for learnable, known_person in zip(both, (embedder, None), strict=True):
        if _lacks(learnable):
            analyzer = FaceAnalyzer(detector, parser, known_person)
            learnable = _judged(learnable, analyzer, recipe, arguments.leave_out)
        filled.append(learnable)
        faceless += [photo.name for photo in learnable.photos if photo.face_mask is None]
    if faceless and needs_masks(recipe):
        raise InputError(
            f"No face was found in {', '.join(faceless)}. Take such photos out (--leave-out does), "
            "give them masks, or train on whole pictures (--without-masks)."
        )
    return filled[0], filled[1]


def _lacks(learnable: Learnable) -> bool:
    return any(photo.face_mask is None or photo.landmarks is None for photo in learnable.photos)


def _judged(
    learnable: Learnable, analyzer: FaceAnalyzer, recipe: Recipe, leave_out: bool
) -> Learnable:
    """A concept with its photos' faces found, and said what is thought of each."""
    references, role = learnable.photos, learnable.concept.role
    filled, found = with_faces(references, analyzer)
    filled = replace(filled, warnings=references.warnings)  # the verdicts say it
    logger.info("%s", f"Photos for {learnable.concept.token}:")
    if all(one.face is None for one in found):
        logger.info("No face was found in any of them.")
        return replace(learnable, photos=filled)
    report = judge_photos(filled, found, role, resolution=recipe.side, embedder=analyzer.embedder)
    _tell(report, found)
    if leave_out:
        filled = _kept(filled, report)
    return replace(learnable, photos=filled)


def _tell(report: SetCheck, found: Sequence[FoundFace]) -> None:
    for photo in report.photos:
        level = logging.WARNING if photo.verdict == "leave out" else logging.INFO
        logger.log(level, "%s", f"{photo.name}: {photo.text}")
    tell_origins(found)
    for line in report.summary:
        logger.info("%s", line)


def tell_origins(found: Sequence[FoundFace]) -> None:
    """Say where the masks are from, each origin once."""
    for origin, count in Counter(one.mask_origin for one in found).items():
        logger.info("%s", f"{origin[0].upper()}{origin[1:]}: {count} of {len(found)}.")


def _kept(references: ReferenceSet, report: SetCheck) -> ReferenceSet:
    """The photos but those to leave out; raises InputError where none remains."""
    kept = [i for i, photo in enumerate(report.photos) if photo.verdict != "leave out"]
    if not kept:
        raise InputError(f"--leave-out: no photo is left, every one is to be left out.\n{report}")
    return references.only(kept)


def _optional(role: ModelRole, named: str | None, arguments: argparse.Namespace) -> Path | None:
    """The file named, else the best one found; None, with a word about it, where there is none."""
    if named == NONE:
        return None
    if named:
        return Path(named)
    found, why = best_or_none(role, places(arguments.models))
    if found is None:
        logger.info("%s", why)
        return None
    entry = known(found.name)
    licence = f" (licence: {entry[1].licence})" if entry else ""
    flag = "face-model" if role == "embedder" else role
    logger.info("%s", f"{TITLES[role].capitalize()}: {found.name}{licence}; --{flag} none: none.")
    return found
