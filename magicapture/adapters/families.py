"""Which family of Stable Diffusion an adapter is for, told by the widths of its text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from torch import Tensor

from ..errors import InputError
from ..families import FAMILIES
from ..lora import LoraWeights
from .adapter import ENCODERS, FAMILY_NAMES

Tokens = Mapping[str, Mapping[str, Tensor]]

# Families by the width of the context that the UNet reads, and of each text encoder.
_FAMILIES: dict[str, dict[int, set[str]]] = {}
for _name, _family in FAMILIES.items():
    if _family.network != "unet":  # told by their layers' names
        continue
    for _part, _width in (("unet", _family.context), *((e.key, e.width) for e in _family.encoders)):
        _FAMILIES.setdefault(_part, {}).setdefault(_width, set()).add(_name)
_READS_CONTEXT = ("attn2.to_k", "attn2.to_v")
_READS_TEXT = ("_proj", "mlp.fc1")

# What programs write into a file's metadata, by how it starts.
_STATED = (
    ("sdxl", "sdxl"),
    ("stable-diffusion-xl", "sdxl"),
    ("sd_v1", "sd1"),
    ("stable-diffusion-v1", "sd1"),
    ("sd_v2", "sd2"),
    ("stable-diffusion-v2", "sd2"),
)
# Layers that families do not share; the first and last level of XL's UNet have no attention.
_LAYERS = (
    (re.compile(r"unet\..*transformer_blocks\.[1-9]|unet\.up_blocks\.0\.attentions"), {"sdxl"}),
    (re.compile(r"unet\.(down_blocks\.0|up_blocks\.[23])\.attentions"), {"sd1", "sd2"}),
)


def family_of(
    lora: Mapping[str, LoraWeights],
    tokens: Tokens,
    metadata: Mapping[str, str],
    keys: Iterable[str],
    path: Path,
) -> str:
    """The family of a file that MagiCapture did not write.

    Widths of text decide; where they leave several, metadata, layers and kohya's prefixes (`keys`:
    the file's own) do. Raises InputError for a file whose parts disagree or do not tell.
    """
    for part, width in _widths(lora, tokens):
        if width not in _FAMILIES[part]:
            raise InputError(
                f"{path} does not tell its base model: it has text of width {width} for "
                f"{'the UNet' if part == 'unet' else part}; expected {_expected(part)}."
            )
    families = possible(lora, tokens, path)
    for hint in (*_hints(lora, metadata, keys), {"sd1"} if tokens or _text(lora) else set()):
        if len(families) > 1 and families & hint:
            families = families & hint
    if len(families) > 1:
        names = ", ".join(FAMILY_NAMES[family] for family in sorted(families))
        raise InputError(
            f"{path} does not tell its base model: its layers are the same in {names}, and nothing "
            "in its metadata says which. Ask its maker for a file with metadata."
        )
    return next(iter(families))


def possible(lora: Mapping[str, LoraWeights], tokens: Tokens, path: Path) -> set[str]:
    """The families that the widths allow; raises InputError where they contradict each other."""
    families = set(FAMILY_NAMES)
    for part, width in _widths(lora, tokens):
        found = _FAMILIES[part].get(width, set())
        if found and not families & found:
            one, other = (
                " or ".join(FAMILY_NAMES[f] for f in sorted(of)) for of in (families, found)
            )
            raise InputError(
                f"{path} mixes base models: one part is for {one}, another of width {width} for "
                f"{other}. Take the LoRA and the embeddings of one training."
            )
        families &= found or families
    return families


def _widths(lora: Mapping[str, LoraWeights], tokens: Tokens) -> Iterator[tuple[str, int]]:
    """Each width of text, and the part that reads or has it."""
    for key, weights in lora.items():
        part = key.partition(".")[0]
        if part in _FAMILIES and key.endswith(_READS_CONTEXT if part == "unet" else _READS_TEXT):
            yield part, weights.down.shape[1]
    for of in tokens.values():
        for encoder, vectors in of.items():
            yield encoder, vectors.shape[1]


def _expected(part: str) -> str:
    return " or ".join(
        f"{width} ({', '.join(FAMILY_NAMES[family] for family in sorted(families))})"
        for width, families in _FAMILIES[part].items()
    )


def _text(lora: Mapping[str, LoraWeights]) -> bool:
    return any(key.partition(".")[0] in ENCODERS["sd1"] for key in lora)


def _hints(
    lora: Mapping[str, LoraWeights], metadata: Mapping[str, str], keys: Iterable[str]
) -> Iterator[set[str]]:
    """Families that anything but a width speaks for, the surest first."""
    stated = (metadata.get("ss_base_model_version"), metadata.get("modelspec.architecture"))
    for start, family in _STATED:
        if any(text and text.lower().startswith(start) for text in stated):
            yield {family}
    for pattern, families in _LAYERS:
        if any(map(pattern.match, lora)):
            yield families
    if any(key.startswith("lora_te1_") for key in keys):  # one encoder alone is lora_te_
        yield {"sdxl"}
