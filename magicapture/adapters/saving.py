"""An adapter on disk as a user meets it: a LoRA, and a file for each token or all in one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch

from ..backups import KEPT, write_all
from ..errors import InputError, MagiCaptureError, StorageError
from ..files import inside, require_space, safe_path
from ..tokens import Concept
from .adapter import Adapter
from .embeddings import SUFFIXES, embedding_metadata, to_bundle, to_embedding
from .forms import held, to_lora
from .kohya import kohya_metadata
from .metadata import TOKEN, digest, restore
from .reading import AnyPath, read_metadata
from .replacing import check_replaceable, same_tensors
from .writing import writer

_ENDING = ".safetensors"


@dataclass(frozen=True)
class SavedFiles:
    """What `save_adapter` wrote, what it kept of earlier files, and what the user should know.

    adapter: as `load_adapter` reads it, under the names that its tokens got. embeddings: none in a
    bundle.
    """

    adapter: Adapter
    lora: Path
    embeddings: tuple[Path, ...]
    backups: tuple[Path, ...]
    notes: tuple[str, ...] = ()


def lora_file(folder: AnyPath, name: str) -> Path:
    """The LoRA's file for a user's name, which may have a sub-folder, or the ending already.

    Raises InputError for a name that is none, StorageError for one that leaves the folder.
    """
    return inside(folder, safe_path(name, "output name", _ENDING) + _ENDING)


def check_names(
    concepts: Iterable[Concept], folders: Iterable[AnyPath], lora: AnyPath | None = None
) -> list[str]:
    """Refuse, before training, names that saving would refuse afterwards.

    folders: where embeddings are looked up, under every ending; new ones go into the first. lora:
    the LoRA file to be written. Raises InputError for a file that MagiCapture did not write;
    returns a line for each of its own that will be replaced, or that makes a token's file get
    another name.
    """
    places = [Path(folder) for folder in folders]
    lines = []
    for concept in (of for of in concepts if of.vectors):
        taken = _taken(concept.name, places)
        for path in taken:
            check_replaceable(path)
        if taken:
            lines.append(_forecast(concept.name, places[0], None if lora is None else Path(lora)))
    if lora is not None and Path(lora).exists():
        check_replaceable(Path(lora))
        lines.append(f"{lora} is from an earlier training; it will be kept as a backup.")
    return lines


def _forecast(token: str, folder: Path, lora: Path | None) -> str:
    """What saving will do about an embedding of ours that is there already."""
    if lora is None:
        return (
            f"There is an embedding:{token} from an earlier training. Saved under that one's LoRA "
            f"name, this one will replace it; under another name it becomes embedding:{token}-2."
        )
    name = _free_name(token, folder, _digests(lora))
    if name == token:
        return f"{folder / (token + _ENDING)} will be replaced, and kept as a backup."
    return f"The embedding {token!r} belongs to another LoRA, so this one will be {name!r}."


def _taken(token: str, folders: Iterable[Path]) -> list[Path]:
    """The files that already answer to a token's name."""
    paths = (folder / (token + suffix) for folder in folders for suffix in SUFFIXES)
    return [path for path in paths if path.exists()]


def _digests(path: Path) -> Mapping[str, str]:
    """The digests that a file of ours tells of its training's tokens; none of any other file."""
    with suppress(MagiCaptureError):
        facts = restore(read_metadata(path))
        return facts.digests if facts else {}
    return {}


def _free_name(token: str, folder: Path, own: Mapping[str, str], new: str = "") -> str:
    """The first of ada, ada-2, ada-3 and so on that no other LoRA's embedding has.

    own: the digests of the LoRA that is replaced, whose embeddings may go with it. new: the
    digest of the embedding to be written; a file with just that may stay. A foreign `ada` is left
    to `check_replaceable`, which refuses it.
    """
    for number in count(1):
        name = token if number == 1 else f"{token[:100]}-{number}"
        taken, file = _taken(name, [folder]), folder / (name + _ENDING)
        told = read_metadata(file)
        if TOKEN not in told and (not taken or number == 1):
            return name
        if taken == [file] and _digests(file).get(told.get(TOKEN, "")) in {new, *own.values()}:
            return name
    raise AssertionError  # count() has no end


def save_adapter(
    adapter: Adapter,
    lora_folder: AnyPath,
    embeddings_folder: AnyPath,
    name: str,
    *,
    bundle: bool = False,
    replace: bool = True,
    dtype: torch.dtype = torch.float32,
    spare: Iterable[AnyPath] = (),
) -> SavedFiles:
    """Write `name`.safetensors in its family's form and one embedding for each token.

    name: may have a sub-folder ("people/ada"). bundle: the tokens go into the LoRA's file too, for
    sharing, and no other file is written. dtype: of the LoRA; float32 keeps every bit, float16
    halves the file. An adapter without a LoRA gets a file of metadata alone, so that it can be
    loaded by its name all the same. An embedding of the LoRA that is replaced is kept as a
    backup, as that LoRA is; one of another LoRA stays, and the token is saved under another name
    (ada-2), which the notes tell. `replace=False` refuses a LoRA that is there; files of other
    programs are never touched. spare: folders to save in, the first that works, where the disk
    does not take the files. Raises InputError for a name or a file in the way, StorageError for
    the disk; then every file is as it was.
    """
    lora, embeddings = lora_file(lora_folder, name), Path(embeddings_folder)
    try:
        return _save(adapter, lora, None if bundle else embeddings, replace, dtype)
    except StorageError as error:
        for folder in map(Path, spare):
            with suppress(MagiCaptureError):
                lora = lora_file(folder, name)
                place = None if bundle else lora.parent / "embeddings"
                files = _save(adapter, lora, place, True, dtype)
                note = f"{error} It was saved in {folder} instead; move the files from there."
                return dataclasses.replace(files, notes=(note, *files.notes))
        raise


def _save(
    adapter: Adapter, lora: Path, folder: Path | None, replace: bool, dtype: torch.dtype
) -> SavedFiles:
    """Save into a LoRA file and a folder of embeddings; without a folder all in the one file."""
    adapter = held(adapter)
    names = {token: token for token in adapter.tokens}
    embeddings: dict[str, Path] = {}
    if folder is not None:
        own = _digests(lora)
        names = {t: _free_name(t, folder, own, digest(of)) for t, of in adapter.tokens.items()}
        adapter = _renamed(adapter, names)
        embeddings = {token: inside(folder, token + _ENDING) for token in adapter.tokens}
    if lora in embeddings.values():
        raise InputError(
            f"The output name {lora.stem!r} is also a token's, and both would be {lora}; choose "
            "another output name, or another folder for the embeddings."
        )
    check_replaceable(lora, replace=replace)
    for token, file in embeddings.items():
        for path in _taken(token, [file.parent]):
            check_replaceable(path)

    # The LoRA comes last: killed before it, the old one finds its embeddings among the backups.
    contents = {
        path: (to_embedding(adapter.tokens[token]), embedding_metadata(adapter, token))
        for token, path in embeddings.items()
    }
    inner = to_bundle(adapter.tokens) if folder is None else {}
    contents[lora] = (to_lora(adapter, dtype) | inner, kohya_metadata(adapter, lora.stem))
    size = sum(tensor.nbytes for tensors, _ in contents.values() for tensor in tensors.values())
    for place in {path.parent for path in contents}:
        require_space(place, size)
    files = {path: writer(*content) for path, content in contents.items()}
    kept = write_all(files, same_tensors)
    notes = [
        f"embedding:{token} belongs to another LoRA, so this one is embedding:{name}."
        for token, name in names.items()
        if token != name
    ]
    if kept.removed:
        gone = ", ".join(path.name for path in kept.removed)
        notes.append(f"Removed, since {KEPT} newer backups are kept: {gone}.")
    return SavedFiles(adapter, lora, tuple(embeddings.values()), kept.backups, tuple(notes))


def _renamed(adapter: Adapter, names: Mapping[str, str]) -> Adapter:
    """The adapter with other names for its tokens."""
    return dataclasses.replace(
        adapter,
        tokens={names[token]: of for token, of in adapter.tokens.items()},
        concepts=tuple(
            dataclasses.replace(concept, name=names.get(concept.name, concept.name))
            for concept in adapter.concepts
        ),
    )
