"""Networks from their config and their weights: whole, or refused with what does not fit."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import MagiCaptureError, StorageError, UnsupportedModelError
from ..memory import refuse_large
from ..weight_files import difference
from .autoencoders import latent_channels, latent_scale
from .parts import in_float32
from .reading import errors_only
from .support import QWEN_IMAGE, SUPPORTED, TRANSFORMERS

_COUNTS = (
    "layers_per_block",
    "n_layers",
    "n_refiner_layers",
    "num_decoder_blocks",
    "num_encoder_blocks",
    "num_hidden_layers",
    "num_layers",
    "num_single_layers",
    "reverse_transformer_layers_per_block",
    "transformer_layers_per_block",
)
"""Settings that say how much is built."""
_QWENS = {"qwen3": "Qwen3", "qwen2_5_vl": "Qwen2_5_VLText", "qwen3_vl": "Qwen3VLText"}
"""What reads words in transformers' kinds of Qwen."""
_PROJECTION = "text_projection.weight"
_TABLE = "shared.weight"


@contextmanager
def understood(source: str | Path) -> Iterator[None]:
    """Turn whatever a library raises over settings in `source` into StorageError."""
    try:
        yield
    except MagiCaptureError:
        raise
    except Exception as error:  # types, sizes, missing names: each library has errors of its own
        refuse_large(source, error)
        raise StorageError(
            f"{source} is damaged: it has settings that cannot be used "
            f"({type(error).__name__}). Fetch it again."
        ) from error


def build_unet(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], dtype: torch.dtype, source: Path
) -> nn.Module:
    """diffusers' UNet with these weights, which have its own names.

    source: the file or folder, for messages. Raises StorageError for settings that cannot be used,
    UnsupportedModelError for weights that are missing, unknown or of other shapes.
    """
    from diffusers import UNet2DConditionModel

    network = _empty(_diffusers(UNet2DConditionModel), config, len(weights), source)
    return fill(network, weights, dtype, f"The UNet of {source}")


def build_transformer(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], dtype: torch.dtype, source: Path
) -> nn.Module:
    """One of diffusers' `TRANSFORMERS`, Flux where the config names none; as `build_unet`."""
    import diffusers

    name = config.get("_class_name")
    if "cap_feat_dim" in config:
        name = "ZImageTransformer2DModel"
    kind = getattr(diffusers, name if name in TRANSFORMERS else "FluxTransformer2DModel")
    network: Any = _empty(_diffusers(kind), config, len(weights), source)
    if name == QWEN_IMAGE:  # what turns its places is in no file
        rope = network.pos_embed
        network.pos_embed = type(rope)(rope.theta, rope.axes_dim, rope.scale_rope)
    told: Any = getattr(network, "time_text_embed", None)
    if hasattr(told, "mod_proj"):  # nor are Chroma's numbers of its modulations
        channels = network.config.approximator_num_channels // 4
        network.time_text_embed = type(told)(channels, len(told.mod_proj))
    whole = {name: torch.float32 for name in in_float32(network)}
    return fill(network, weights, dtype, f"The transformer of {source}", whole)


def build_vae(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], dtype: torch.dtype, source: Path
) -> nn.Module:
    """One of diffusers' `AUTOENCODERS`, whichever `_class_name` is; as `build_unet`."""
    import diffusers

    kind = getattr(diffusers, config["_class_name"])
    network: Any = _empty(_diffusers(kind), config, len(weights), source)
    filled = fill(network, weights, dtype, f"The VAE of {source}")
    with understood(source):
        scale, _ = (torch.as_tensor(of).flatten() for of in latent_scale(network))
        if not (scale.isfinite() & (scale > 0)).all():
            raise ValueError("scaling_factor")
        if len(scale) not in (1, latent_channels(network.config)):
            raise ValueError("latents_std")
    return filled


def build_text_encoder(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], dtype: torch.dtype, source: Path
) -> nn.Module:
    """CLIP's text encoder; as `build_unet`, but names may start with "text_model." or not.

    With its projection where the config's `architectures` say so. Left out is what files hold
    beside it: the positions' numbers, a projection, a vision half.
    """
    import transformers

    def make(config: Mapping[str, Any]) -> nn.Module:
        projected = "CLIPTextModelWithProjection" in (config.get("architectures") or ())
        kind = "CLIPTextModelWithProjection" if projected else "CLIPTextModel"
        made: nn.Module = getattr(transformers, kind)(
            transformers.CLIPTextConfig.from_dict(dict(config))
        )
        return made

    network = _empty(make, config, len(weights), source)
    # transformers 4 has "text_model." before every name, 5 before those beside a projection.
    present = network.state_dict()
    prefix = "text_model." if next(iter(present)).startswith("text_model.") else ""
    bare = {name.removeprefix("text_model."): value for name, value in weights.items()}
    own = {
        prefix + name: value
        for name, value in bare.items()
        if name.startswith(("embeddings.", "encoder.", "final_layer_norm."))
        and not name.endswith(".position_ids")
    }
    own |= {
        name: bare[name] for name in ("text_projection.weight",) if name in present.keys() & bare
    }
    fill(network, own, dtype, f"The text encoder of {source}")
    for module in network.modules():
        ids = module._buffers.get("position_ids")
        if ids is not None and ids.is_meta:  # it is in no file
            module.register_buffer(
                "position_ids", torch.arange(ids.shape[-1])[None], persistent=False
            )
    return network


def build_t5(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], dtype: torch.dtype, source: Path
) -> nn.Module:
    """T5's encoder; as `build_unet`. Files hold its table of words under one name or both."""
    import transformers

    def make(config: Mapping[str, Any]) -> nn.Module:
        return transformers.T5EncoderModel(transformers.T5Config.from_dict(dict(config)))

    network: Any = _empty(make, config, len(weights), source)
    twin = "encoder.embed_tokens.weight"
    table = weights.get(_TABLE, weights.get(twin))
    both = {} if table is None else {_TABLE: table, twin: table}
    fill(network, {**weights, **both}, dtype, f"The text encoder of {source}")
    network.set_input_embeddings(network.shared)
    return network  # type: ignore[no-any-return]


def build_qwen(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], dtype: torch.dtype, source: Path
) -> nn.Module:
    """A Qwen without its head, and of one that sees the half that reads words.

    As `build_unet`, but names may start with "model.", "language_model." and so on, or not.
    """
    import transformers

    kind, settings = _QWENS[config["model_type"]], []

    def make(config: Mapping[str, Any]) -> nn.Module:
        settings.append(getattr(transformers, f"{kind}Config").from_dict(dict(config)))
        made: nn.Module = getattr(transformers, f"{kind}Model")(settings[0])
        return made

    network: Any = _empty(make, of_words(config), len(weights), source)
    own = {
        re.sub(r"^(model\.)?(language_model\.)?(model\.)?", "", name): value
        for name, value in weights.items()
        if name != "lm_head.weight" and not name.startswith(("visual.", "model.visual."))
    }
    fill(network, own, dtype, f"The text encoder of {source}")
    network.rotary_emb = type(network.rotary_emb)(settings[0])  # its frequencies are in no file
    return network  # type: ignore[no-any-return]


def of_words(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A text encoder's config; of one that also sees pictures the part about words."""
    words: Mapping[str, Any] = config.get("text_config") or config  # older files have no parts
    return words


def fill(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    dtype: torch.dtype,
    what: str,
    others: Mapping[str, torch.dtype] = MappingProxyType({}),
) -> nn.Module:
    """Give a network its weights, without a copy where they have the dtype already.

    others: the dtypes of those that have one of their own, by name.
    Raises UnsupportedModelError for weights that are missing, unknown or of other shapes.
    """
    if wrong := difference(network, weights):
        raise UnsupportedModelError(
            f"{what} {wrong}. It is incomplete, or not one of {SUPPORTED}; fetch it again."
        )
    cast = {name: value.to(others.get(name, dtype)) for name, value in weights.items()}
    network.load_state_dict(cast, assign=True)
    return network


def _diffusers(kind: Any) -> Callable[[Mapping[str, Any]], nn.Module]:
    """How a class of diffusers is made of settings that are like its defaults.

    Others it often takes without a word, and fails, or computes NaN, when it runs.
    """

    def make(config: Mapping[str, Any]) -> nn.Module:
        for name, parameter in inspect.signature(kind.__init__).parameters.items():
            if name in config and not _is_like(config[name], parameter.default):
                raise TypeError(name)
        return kind.from_config(dict(config))

    return make


def _is_like(value: object, default: object) -> bool:
    if value is None or default is None or default is inspect.Parameter.empty:
        return True
    if isinstance(default, list | tuple):
        return isinstance(value, list) and all(_is_like(v, d) for v in value for d in default[:1])
    if isinstance(value, list) and isinstance(default, int):  # for each level, not for all
        return all(_is_like(v, default) for v in value)
    if isinstance(default, bool | str):
        return isinstance(value, type(default))
    return isinstance(value, int | float) and value is not True and math.isfinite(value)


def _empty(
    make: Callable[[Mapping[str, Any]], nn.Module],
    config: Mapping[str, Any],
    weights: int,
    source: Path,
) -> nn.Module:
    """The network without values: at no cost in memory, and without drawing random numbers."""
    with understood(source):
        counts = (config.get(name) or 0 for name in _COUNTS)
        flat = (n for count in counts for n in (count if isinstance(count, list) else [count]))
        if any(n > weights for n in flat):
            raise ValueError("more layers than weights")  # and it would take for ever
        with torch.device("meta"), errors_only():
            return make(config)
