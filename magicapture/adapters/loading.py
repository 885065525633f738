"""Adapters read back, whatever program wrote their files."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import weight_files
from ..backups import backups_of
from ..errors import InputError, MagiCaptureError, StorageError
from ..lora import LoraWeights
from .adapter import FAMILY_NAMES, Adapter
from .embeddings import SUFFIXES, bundled, embedding_in, read_embedding
from .families import Tokens, family_of, possible
from .keys import is_lora
from .kinds import refuse_others
from .layers import check_finite, gather
from .metadata import Facts, digest, is_ours, restore
from .peft import START, read_peft, with_stated_alphas
from .reading import AnyPath, read_file

logger = logging.getLogger(__name__)


def load_adapter(path: AnyPath, embeddings: Iterable[AnyPath] = ()) -> Adapter:
    """Read an adapter from a LoRA file of any form, a PEFT folder, or a single embedding.

    embeddings: files, or folders in which to look up the tokens that the LoRA names and does not
    hold itself; each is told by its digest, also among backups of embeddings that a later training
    replaced. A LoRA that MagiCapture did not write gets the tokens that are bundled with it and
    those of the files given. Raises InputError for a file of another kind, or with numbers that no
    model can use; StorageError for one that is damaged or missing, an embedding among them.
    """
    path, places = Path(path), [Path(place) for place in embeddings]
    bundle: dict[str, dict[str, Tensor]] = {}
    entries: Mapping[str, Any] = {}
    if path.is_dir():
        lora, metadata = read_peft(path)
    else:
        entries, metadata = read_file(path)
        entries, bundle = bundled(entries, path)
        if any(key.startswith(START) for key in entries):
            raise InputError(
                f"{path} is one file of a PEFT adapter; give the folder that it is in."
            )
        refuse_others(entries, path, ours=is_ours(metadata))
        if entries and not any(map(is_lora, entries)):
            return _from_embedding(entries, metadata, path)
        lora = gather(entries, path) if entries or not (metadata or bundle) else {}
        lora = with_stated_alphas(lora, metadata, path)
    check_finite(lora, path)
    facts = _facts(metadata, path)
    if facts is None:
        given = [read_embedding(place) for place in places if place.is_file()]
        found: Tokens = {**bundle, **{embedding.name: embedding.vectors for embedding in given}}
        return _made(path, lora, found, family_of(lora, found, metadata, entries, path))
    tokens = {token: _look_up(token, facts, bundle, places) for token in facts.digests}
    _check_family(facts, lora, tokens, path)
    return _made(path, lora, tokens, facts.family, facts.recipe, facts.concepts, facts.info)


def read_info(path: AnyPath) -> Mapping[str, str]:
    """The facts of the run that wrote a LoRA (`Adapter.info`), without reading its tensors.

    Empty for a file of another program. Raises StorageError for one that is missing or damaged.
    """
    path = Path(path)
    facts = _facts(weight_files.read_metadata(path), path)
    return facts.info if facts else {}


def _from_embedding(entries: Mapping[str, Any], metadata: Mapping[str, str], path: Path) -> Adapter:
    """The adapter of one token alone."""
    embedding = embedding_in(entries, metadata, path)
    facts, tokens = _facts(metadata, path), {embedding.name: embedding.vectors}
    if facts is None:
        return _made(path, {}, tokens, family_of({}, tokens, metadata, entries, path))
    _check_family(facts, {}, tokens, path)
    concepts = tuple(concept for concept in facts.concepts if concept.name == embedding.name)
    return _made(path, {}, tokens, facts.family, facts.recipe, concepts, facts.info)


def _made(path: Path, *facts: Any) -> Adapter:
    """The adapter, or an error that names the file."""
    try:
        return Adapter(*facts)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _facts(metadata: Mapping[str, str], path: Path) -> Facts | None:
    try:
        return restore(metadata)
    except MagiCaptureError as error:
        raise type(error)(f"{path}: {error}") from error


def _check_family(
    facts: Facts, lora: Mapping[str, LoraWeights], tokens: Tokens, path: Path
) -> None:
    """Raise InputError where a file's numbers are not of the family that it states."""
    families = possible(lora, tokens, path)
    if facts.family not in families:
        found = " or ".join(FAMILY_NAMES[family] for family in sorted(families))
        raise InputError(
            f"{path} says that it is for {FAMILY_NAMES[facts.family]}, but its numbers are of "
            f"{found}; train or download it again."
        )


def _look_up(
    token: str, facts: Facts, bundle: Tokens, places: Sequence[Path]
) -> Mapping[str, Tensor]:
    """The vectors of a token that the LoRA's metadata names, told by their digest."""
    others = []
    if token in bundle:
        if digest(bundle[token]) == facts.digests[token]:
            return bundle[token]
        others.append("The one bundled in the file is of another training.")
    for file in _candidates(token, places):
        try:
            vectors = read_embedding(file).vectors
        except MagiCaptureError as error:
            others.append(str(error))
            continue
        if digest(vectors) == facts.digests[token]:
            if file.stem != token:
                logger.info("The token %r is read from the backup %s.", token, file)
            return vectors
        others.append(f"{file} is of another training.")
    looked = ", ".join(map(str, places)) or "any folder that was given"
    raise StorageError(
        f"The adapter needs the embedding {token}.safetensors that was trained with it, which is "
        f"not in {looked}. {' '.join(others[:3])} Put it there, as it was saved with the LoRA, or "
        "train again."
    )


def _candidates(token: str, places: Sequence[Path]) -> Iterator[Path]:
    """The files that may hold a token, and then the backups of those replaced."""
    files = [
        file
        for place in places
        for file in ([place / (token + s) for s in SUFFIXES] if place.is_dir() else [place])
        if file.stem == token
    ]
    yield from (file for file in files if file.is_file())
    for file in files:
        yield from backups_of(file)
