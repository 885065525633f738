"""What MODEL, CLIP and VAE are, down to the last weight and patch, wherever ComfyUI keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comfy.model_patcher import ModelPatcher

from ...magicapture.digests import tokenizer_digest
from .models import TextPart


def unet_parts(model: ModelPatcher) -> list[object]:
    """What of a MODEL can change a training's result, but for its schedule, to be hashed.

    What hangs into sampling alone (attention patches, wrappers, hooks) does not count: training
    leaves it out.
    """
    inner = model.model
    objects = {n: o for n, o in model.object_patches.items() if n != "model_sampling"}
    return [
        _weights(model, "diffusion_model."),
        objects,
        type(inner.model_config),
        inner.model_config.unet_config,
        inner.latent_format,
    ]


def text_parts(clip: Any, parts: Sequence[TextPart]) -> list[object]:
    """What of a CLIP can; parts: those that are trained through."""
    known = [_weights(clip.patcher), clip.patcher.object_patches, clip.layer_idx]  # clip skip
    known += [told] if (told := clip.tokenizer_options) else []  # T5TokenizerOptions
    return known + [value for part in parts for value in _text_part(part)]


def _text_part(part: TextPart) -> list[object]:
    encoder, tokenizer = part.encoder, part.tokenizer
    numbers = ("start_token", "end_token", "pad_token", "max_length", "tokens_start")
    return [
        encoder.options_default,
        encoder.special_tokens,
        [type(encoder), encoder.layer_norm_hidden_state, encoder.zero_out_masked],
        tokenizer_digest(tokenizer.tokenizer),
        [getattr(tokenizer, name, None) for name in numbers],
    ]


def vae_parts(vae: Any) -> list[object]:
    """What of a VAE can."""
    return [
        _weights(vae.patcher),
        vae.patcher.object_patches,
        type(vae.first_stage_model),
        vae.vae_dtype,
    ]


def _weights(patcher: ModelPatcher, prefix: str | None = None) -> list[object]:
    """The weights as they were read, and the patches (LoRAs, merges) that are put on them.

    Where weights are patched at the moment, ComfyUI has their originals in a backup. A quantised
    weight counts as what it stands for; its scales have names in the file that no tensor has.
    """
    model = patcher.model
    weights: dict[str, Any] = dict(model.named_parameters(remove_duplicate=False))
    weights |= model.named_buffers(remove_duplicate=False)
    weights = {n: weights[n] for n in patcher.model_state_dict(prefix) if n in weights}
    weights |= {n: kept.weight for n, kept in patcher.backup.items() if n in weights}
    weights |= {n: kept[0] for n, kept in patcher.hook_backup.items() if n in weights}
    buffers = getattr(patcher, "backup_buffers", {})  # 0.33's dynamic VRAM casts them
    weights |= {n: kept for n, kept in buffers.items() if n in weights}
    patches = {name: of for name, of in patcher.patches.items() if name in weights}
    return [weights, patches, patcher.weight_wrapper_patches]
