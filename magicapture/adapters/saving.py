"""An adapter on disk as a user meets it: one LoRA file, and one embedding file for each token."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ..errors import InputError
from ..files import inside, require_space, safe_name
from ..tokens import Concept
from .adapter import Adapter
from .embeddings import SUFFIXES, embedding_metadata, to_embedding
from .kohya import kohya_metadata, to_kohya
from .reading import AnyPath
from .replacing import check_replaceable, write_all


@dataclass(frozen=True)
class SavedFiles:
    """What `save_adapter` wrote, and what it kept of earlier files."""

    lora: Path
    embeddings: tuple[Path, ...]
    backups: tuple[Path, ...]


def check_names(
    concepts: Iterable[Concept], folders: Iterable[AnyPath], lora: AnyPath | None = None
) -> list[str]:
    """Refuse, before training, names that saving would refuse afterwards.

    folders: where embeddings are looked up, under every ending. lora: the LoRA file to be written.
    Raises InputError for a file that MagiCapture did not write; returns a line for each of its own
    that will be replaced.
    """
    places = [Path(folder) for folder in folders]
    paths = [path for concept in concepts for path in _taken(concept.name, places)]
    if lora is not None and Path(lora).exists():
        paths.append(Path(lora))
    for path in paths:
        check_replaceable(path)
    return [f"{path} is from an earlier run; it will be kept as a backup." for path in paths]


def _taken(token: str, folders: Iterable[Path]) -> list[Path]:
    """The files that already answer to a token's name."""
    paths = (folder / (token + suffix) for folder in folders for suffix in SUFFIXES)
    return [path for path in paths if path.exists()]


def save_adapter(
    adapter: Adapter,
    lora_folder: AnyPath,
    embeddings_folder: AnyPath,
    name: str,
    *,
    replace: bool = True,
    dtype: torch.dtype = torch.float32,
) -> SavedFiles:
    """Write `name`.safetensors in kohya's form and one embedding for each token.

    dtype: of the LoRA; float32 keeps every bit, float16 halves the file. An adapter without a
    LoRA gets a file of metadata alone, so that it can be loaded by its name all the same.
    MagiCapture's own earlier files are kept as backups, or refused with `replace=False`; others
    are never touched. Raises InputError for a name or a file in the way, StorageError for the
    disk; then every file is as it was.
    """
    lora = inside(lora_folder, f"{safe_name(name, 'output name')}.safetensors")
    embeddings = {t: inside(embeddings_folder, f"{t}.safetensors") for t in adapter.tokens}
    if lora in embeddings.values():
        raise InputError(
            f"The output name {name!r} is also a token's, and both would be {lora}; choose "
            "another output name, or another folder for the embeddings."
        )
    taken = [path for token in embeddings for path in _taken(token, [Path(embeddings_folder)])]
    for path in (lora, *taken):
        check_replaceable(path, replace=replace)

    contents = {lora: (to_kohya(adapter, dtype), kohya_metadata(adapter, lora.stem))}
    for token, path in embeddings.items():
        contents[path] = (to_embedding(adapter.tokens[token]), embedding_metadata(adapter, token))
    size = sum(tensor.nbytes for tensors, _ in contents.values() for tensor in tensors.values())
    for folder in (lora_folder, embeddings_folder):
        require_space(folder, size)
    backups = write_all({path: writer(*content) for path, content in contents.items()})
    return SavedFiles(lora, tuple(embeddings.values()), tuple(backups))


def writer(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Callable[[Path], object]:
    """A function that writes these tensors to a path as safetensors.

    Copies, since safetensors refuses tensors that share memory; and not through `save_file`,
    whose files only their owner may read.
    """
    copies = {key: tensor.contiguous().clone() for key, tensor in tensors.items()}
    return lambda path: path.write_bytes(save(copies, dict(metadata)))
