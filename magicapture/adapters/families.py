"""Which family of Stable Diffusion an adapter is for, told by the widths of its text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from torch import Tensor

from ..errors import InputError
from ..lora import LoraWeights
from .adapter import ENCODERS, FAMILY_NAMES

Tokens = Mapping[str, Mapping[str, Tensor]]

# Families by the width of the context that the UNet reads, and of each text encoder.
_CONTEXT = {768: {"sd1"}, 1024: {"sd2"}, 2048: {"sdxl"}}
_WIDTHS = {"clip_l": {768: {"sd1", "sdxl"}, 1024: {"sd2"}}, "clip_g": {1280: {"sdxl"}}}
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
    strange = next((w for w, found in _widths(lora, tokens) if not found), None)
    if strange is not None:
        raise InputError(
            f"{path} does not tell its base model: it has text of width {strange}; expected 768 "
            "(Stable Diffusion 1.x), 1024 (2.x) or 2048 (XL)."
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
    for width, found in _widths(lora, tokens):
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


def _widths(lora: Mapping[str, LoraWeights], tokens: Tokens) -> Iterator[tuple[int, set[str]]]:
    """Each width of text, with the families that have it; none for one that no family has."""
    for key, weights in lora.items():
        part, width = key.partition(".")[0], weights.down.shape[1]
        if part == "unet" and key.endswith(_READS_CONTEXT):
            yield width, _CONTEXT.get(width, set())
        elif part in _WIDTHS and key.endswith(_READS_TEXT):
            yield width, _WIDTHS[part].get(width, set())
    for of in tokens.values():
        for encoder, vectors in of.items():
            yield vectors.shape[1], _WIDTHS.get(encoder, {}).get(vectors.shape[1], set())


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
