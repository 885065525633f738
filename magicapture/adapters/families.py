"""Which family an adapter is for, told by its network and the widths that it reads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import InputError
from ..families import FAMILIES
from ..lora import LoraWeights
from .adapter import ENCODERS, FAMILY_NAMES
from .keys import parse

Tokens = Mapping[str, Mapping[str, Tensor]]

# Families by the width of the context that a UNet reads, of a transformer's tokens, and of each
# text encoder. The drawn world's encoder is the same in front of a UNet that counts as sd1.
_FAMILIES: dict[str, dict[int, set[str]]] = {}
for _name, _family in FAMILIES.items():
    _told: dict[str, int] = {_family.network: _family.hidden or _family.context}
    if not (_family.hidden and _family.is_drawn):
        _told |= {encoder.key: encoder.width for encoder in _family.encoders}
    for _part, _width in _told.items():
        _FAMILIES.setdefault(_part, {}).setdefault(_width, set()).add(_name)
# The layers of a part that read what has this width; a text encoder's are the last.
_READS = {
    "unet": ("attn2.to_k", "attn2.to_v"),
    "transformer": (
        *(".to_q", ".to_k", ".to_v", "_proj", "proj_mlp", "net.0.proj", "linear_in"),
        *("feed_forward.w1", "feed_forward.w3", ".to_gate", "ff.gate", "ff.up"),
    ),
}
_READS_TEXT = ("_proj", "mlp.fc1")
_OF_TEXT = "text_fusion."  # layers of Krea 2's transformer that are as wide as its text

# What programs write into a file's metadata, by how it starts.
_STATED = (
    ("sdxl", "sdxl"),
    ("stable-diffusion-xl", "sdxl"),
    ("sd_v1", "sd1"),
    ("stable-diffusion-v1", "sd1"),
    ("sd_v2", "sd2"),
    ("stable-diffusion-v2", "sd2"),
    ("flux1", "flux1"),
    ("flux-1", "flux1"),
    ("zimage", "zimage"),
    ("z-image", "zimage"),
    *(
        (text, name)
        for name, family in FAMILIES.items()
        for text in (family.base_version, family.architecture)
    ),
)
_OF_FLUX2 = re.compile(r"transformer\..*\.(to_qkv_mlp_proj|linear_(in|out))")
_KLEINS = {"flux2_klein_4b", "flux2_klein_9b"}
# Layers that families do not share; the first and last level of XL's UNet have no attention, Flux
# has 19 double blocks of Qwen-Image's 60, and Flux.2 alone has one layer for several of others'.
_LAYERS = (
    (re.compile(r"unet\..*transformer_blocks\.[1-9]|unet\.up_blocks\.0\.attentions"), {"sdxl"}),
    (re.compile(r"unet\.(down_blocks\.0|up_blocks\.[23])\.attentions"), {"sd1", "sd2"}),
    (_OF_FLUX2, _KLEINS),
    (
        re.compile(r"transformer\.transformer_blocks\.(19|[2-5]\d|\d+\.(img|txt)_(mlp|mod))\."),
        {"qwen_image"},
    ),
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
            what = "layers" if part == "transformer" else "text"
            raise InputError(
                f"{path} does not tell its base model: it has {what} of width {width} for "
                f"{'the UNet' if part == 'unet' else part}; expected {_expected(part)}."
            )
    families = possible(lora, tokens, path)
    usual = [{"sd1"} if tokens or _text(lora) else set(), {"flux1"}]
    for hint in (*_hints(lora, metadata, keys), *usual):
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
    """The families that the network and the widths allow; raises InputError where they differ."""
    networks = {key.partition(".")[0] for key in lora} & _READS.keys()
    if len(networks) > 1:
        raise InputError(
            f"{path} mixes base models: it has layers of {' and of '.join(sorted(networks))}. Take "
            "the LoRA of one training."
        )
    families = {name for name, of in FAMILIES.items() if networks <= {of.network}}
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
        known = part in _FAMILIES and _OF_TEXT not in key
        if known and key.endswith(_READS.get(part, _READS_TEXT)):
            yield part, weights.down.shape[1]
    for of in tokens.values():
        for encoder, vectors in of.items():
            yield encoder, vectors.shape[1]


def has_known_transformer(entries: Mapping[str, Any]) -> bool:
    """Whether a file's tensors are a LoRA for a transformer of a family's width.

    Flux.2's layers must be of a klein's: dev's are as wide as Krea 2's.
    """
    widths, found = _FAMILIES["transformer"], []
    for name, tensor in entries.items():
        key = None if _OF_TEXT in name else parse(name)
        if key and key[::2] == ("transformer", "down") and key.layer.endswith(_READS[key.part]):
            families = widths.get(tensor.shape[-1], set()) if isinstance(tensor, Tensor) else set()
            of_flux2 = _OF_FLUX2.match(f"transformer.{key.layer}")
            found.append(families & _KLEINS if of_flux2 else families)
    return bool(found) and all(found)


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
