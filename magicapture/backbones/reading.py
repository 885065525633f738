"""The files of a diffusers folder, and the libraries kept quiet."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from ..errors import StorageError
from ..files import safe_name
from ..memory import refuse_large
from ..weight_files import PICKLES, SAFETENSORS, read_tensors


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object; raises StorageError for any other."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StorageError(f"There is no file {path}, which a diffusers folder has.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise StorageError(f"{path} is damaged or not JSON; fetch it again.") from error
    if not isinstance(data, dict):
        raise StorageError(
            f'{path} holds a {type(data).__name__}; expected an object, {{"name": value, ...}}. '
            "Fetch it again."
        )
    return data


def read_part(folder: Path, stem: str) -> dict[str, Tensor]:
    """The tensors of a folder's .safetensors file called `stem`, or of the pieces its index lists.

    Raises StorageError where there is none or a piece is missing, InputError for an index that
    names files outside the folder. Pickles beside it are never read: whoever names the folder has
    not named them.
    """
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    wanted = f"{stem}{SAFETENSORS}"
    found = next((file for file in files if file.name.lower() == wanted), None)
    if found is not None:
        return read_tensors(found)
    if (index := folder / f"{wanted}.index.json").is_file():
        return _pieces(index)
    pickles = [file.name for file in files if file.suffix.lower() in PICKLES]
    others = [file.name for file in files if file.suffix.lower() == SAFETENSORS]
    if others:
        hint = f"There is {others[0]}: if it is the whole of it, give it that name."
    elif pickles:
        hint = (
            f"There is {pickles[0]}, a pickle, which could hold code and is not read from a "
            "folder. Fetch the .safetensors file, or save the model anew with diffusers."
        )
    else:
        hint = "Fetch it again."
    raise StorageError(f"{folder} holds no {wanted}. {hint}")


def _pieces(index: Path) -> dict[str, Tensor]:
    """The tensors of all files in an index, {"weight_map": {tensor: file}}."""
    listed = read_json(index).get("weight_map")
    names = set(listed.values()) if isinstance(listed, dict) else set()
    if not names or not all(isinstance(n, str) and n.endswith(SAFETENSORS) for n in names):
        raise StorageError(f"{index} lists no files of weights; fetch it again.")
    tensors: dict[str, Tensor] = {}
    for name in sorted(names):
        safe_name(name.removesuffix(SAFETENSORS), f"file in {index}")
        tensors.update(read_tensors(index.with_name(name)))
    return tensors


TokenizerName = Literal["clip", "t5", "qwen"]


def read_tokenizer(folder: Path, kind: TokenizerName = "clip") -> Any:
    """A tokenizer from a folder with vocab.json and merges.txt, or tokenizer.json.

    kind: of CLIP, of Qwen (both from either), or of T5 (from tokenizer.json). Raises StorageError
    for files that are missing or damaged.
    """
    import transformers

    # Of classes' names, as each kind is made when it is first asked for.
    names = {"clip": "CLIPTokenizer", "t5": "T5TokenizerFast", "qwen": "Qwen2Tokenizer"}
    files = ["tokenizer.json"] if kind == "t5" else ["vocab.json", "tokenizer.json"]
    if not any((folder / name).is_file() for name in files):
        expected = "tokenizer.json" if kind == "t5" else "vocab.json, merges.txt"
        raise StorageError(f"There is no tokenizer in {folder}: expected {expected}.")
    try:
        tokenizer: Any = getattr(transformers, names[kind]).from_pretrained(
            folder, local_files_only=True
        )
        ids = tokenizer("a photo", add_special_tokens=False).input_ids
        ids = [*ids, tokenizer.eos_token_id, tokenizer.pad_token_id]
        ids += [tokenizer.bos_token_id] if kind == "clip" else []
        if kind == "qwen":  # one id each, where the vocabulary is whole
            (start,) = tokenizer("<|im_start|>", add_special_tokens=False).input_ids
            ids.append(start)
        if len(ids) < 4 or not all(type(number) is int and number >= 0 for number in ids):
            raise ValueError("ids")
    except Exception as error:  # JSON's, the tokenizers package's and transformers' own
        refuse_large(folder, error)
        raise StorageError(
            f"The tokenizer in {folder} is damaged ({type(error).__name__}); fetch it again."
        ) from error
    return tokenizer


@contextmanager
def errors_only() -> Iterator[None]:
    """Keep diffusers from warning of settings that it writes itself."""
    from diffusers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
