"""What MODEL, CLIP and VAE are, and clear words where they cannot be trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.model_sampling as sampling
import comfy.supported_models as supported
import torch
from comfy.ldm.chroma.model import Chroma
from comfy.ldm.flux.model import Flux
from comfy.ldm.lumina.model import NextDiT
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel
from comfy.model_patcher import ModelPatcher
from torch import nn

from ...magicapture.backbones.support import klein_of
from ...magicapture.errors import InputError, UnsupportedModelError
from ...magicapture.families import FAMILIES, OLDEST, FamilyName, transformers
from ...magicapture.schedule import DiscreteLevels, Prediction, Schedule, flow_levels

NEWER = FAMILIES["zimage"].comfyui
SUPPORTED = (
    "Stable Diffusion 1.x, 2.x and XL (text to image, epsilon or v prediction), "
    f"{transformers('and', OLDEST)} and, from ComfyUI {NEWER} on, {transformers('and', NEWER)}"
)

# ComfyUI's name of a text encoder: its key in adapters and embedding files. Stable Diffusion 2's
# only encoder has the key of 1's, as everywhere outside ComfyUI.
ENCODERS = {
    "clip_l": "clip_l",
    "clip_h": "clip_l",
    "clip_g": "clip_g",
    "t5xxl": "t5xxl",
    "qwen3_4b": "qwen3_4b",
    "qwen3_8b": "qwen3_8b",
    "qwen25_7b": "qwen25_7b",
    "qwen3vl_4b": "qwen3vl_4b",
}

_PER_LAYER = "txtdim"
_CONTEXT = ("context_dim", "context_in_dim", "cap_feat_dim", _PER_LAYER)
"""What networks call the width of the text that they read; the last is of one of several layers."""

DISCRETE = {sampling.ModelSamplingDiscrete, sampling.EPS, sampling.V_PREDICTION, object}
FLOW = {sampling.ModelSamplingDiscreteFlow, sampling.ModelSamplingFlux, sampling.CONST, object}
"""What the class of a model's sampling may be made of."""


def family_of(model: ModelPatcher) -> FamilyName:
    """The family of a MODEL; raises UnsupportedModelError, or InputError where there is none."""
    if model is None:
        raise InputError("There is no model at the input 'model'; connect a checkpoint's MODEL.")
    config, network = model.model.model_config, getattr(model.model, "diffusion_model", None)
    found = f"{type(config).__name__} ({type(network).__name__})"
    if isinstance(network, UNetModel):
        channels, kind = config.unet_config.get("in_channels", 4), type(config).__name__
        if channels != latent_channels(model):
            found = f"{kind} with {channels} input channels (for inpainting or editing)"
        elif isinstance(config, supported.SDXLRefiner):
            found = f"{kind}, which only finishes what the base model began"
        elif _is_xl(config):
            return "sdxl"
        elif network.num_classes is not None:
            found = f"{kind} with size, image or class conditioning"
        elif isinstance(config, supported.SD15):
            return "sd1"
        elif isinstance(config, supported.SD20):
            return "sd2"
    elif isinstance(network, Flux) and config.unet_config.get("image_model") == "flux":
        channels = config.unet_config["in_channels"]
        if channels == config.unet_config["out_channels"] == latent_channels(model):
            return "doll_flux" if _is_doll(config) else "flux1"
        found = (
            f"{type(config).__name__} with {channels} input channels (for inpainting or control)"
        )
    elif isinstance(network, Flux) and config.unet_config.get("image_model") == "flux2":
        if not config.unet_config["guidance_embed"]:
            return klein_of(config.unet_config["hidden_size"])
        found = f"{type(config).__name__} that guidance is distilled in (dev)"
    elif type(network) is Chroma:
        return "chroma"
    elif type(network) is NextDiT and _is_zimage(config):
        channels = config.unet_config["in_channels"]
        if channels == latent_channels(model):
            return "zimage"
        found = f"{type(config).__name__} with {channels} input channels"
    elif type(network) is QwenImageTransformer2DModel:
        if _is_qwen_image(config) and network.in_channels == 4 * latent_channels(model):
            return "qwen_image"
        found = f"{type(config).__name__} that edits pictures or draws layers"
    elif _is_krea2(config):
        if network.channels == latent_channels(model):
            return "krea2"
        found = f"{type(config).__name__} with {network.channels} channels"
    raise _unsupported("model", found)


def check_attention(model: ModelPatcher) -> None:
    """Raise UnsupportedModelError where it is not known how a MODEL attends to its prompt.

    Known are all UNets of Stable Diffusion, also those that are no family's, and the transformers
    of the families. InputError where there is no model.
    """
    network = getattr(getattr(model, "model", None), "diffusion_model", None)
    if isinstance(network, UNetModel):
        return
    try:
        family_of(model)
    except UnsupportedModelError:
        known = ", ".join(family.title for family in FAMILIES.values())
        raise UnsupportedModelError(
            f"The input 'model' holds {type(model.model.model_config).__name__} "
            f"({type(network).__name__}), of which it is not known how it attends to a prompt. "
            f"Connect a model of one of these: {known}."
        ) from None


def _is_zimage(config: Any) -> bool:
    """Whether a MODEL of Lumina's class is a Z-Image that draws from a text alone, not Omni."""
    kind = getattr(supported, "ZImage", None)  # of newer ComfyUIs
    facts = config.unet_config
    plain = facts.get("siglip_feat_dim") is None and facts.get("clip_text_dim") is None
    return kind is not None and isinstance(config, kind) and plain


def _is_qwen_image(config: Any) -> bool:
    """Whether a MODEL of Qwen-Image's class draws one picture from a text alone.

    The first model for editing is the same in shape.
    """
    facts = config.unet_config
    plain = facts.get("default_ref_method", "index") == "index"
    return plain and not facts.get("use_additional_t_cond")


def _is_krea2(config: Any) -> bool:
    """Whether a MODEL is a Krea 2 that draws from a text alone."""
    kind = getattr(supported, "Krea2", None)  # of newer ComfyUIs
    plain = config.unet_config.get("default_ref_method") is None
    return kind is not None and isinstance(config, kind) and plain


def _is_doll(config: Any) -> bool:
    """Whether a transformer of Flux's class is a paperdolls': told by one encoder of everything."""
    one = config.unet_config["context_in_dim"] == config.unet_config["vec_in_dim"]
    return one and isinstance(config, supported.FluxSchnell)


def _is_xl(config: Any) -> bool:
    """Whether a model is SDXL itself: ComfyUI counts models of fewer layers as kinds of it."""
    smaller = supported.SSD1B, supported.Segmind_Vega, supported.KOALA_700M, supported.KOALA_1B
    return isinstance(config, supported.SDXL) and not isinstance(config, smaller)


def latent_channels(model: ModelPatcher) -> int:
    """Numbers in a latent cell: 4 for Stable Diffusion."""
    return int(model.model.latent_format.latent_channels)


def of_films(model: ModelPatcher) -> bool:
    """Whether a MODEL has latents of films, of which a picture is one frame."""
    return bool(model.model.latent_format.latent_dimensions == 3)


def context_width(model: ModelPatcher) -> int:
    """How wide the text encoder's output must be."""
    config, network = model.model.model_config.unet_config, model.model.diffusion_model
    if isinstance(network, QwenImageTransformer2DModel):  # of which the config says nothing
        return len(network.txt_norm.weight)
    return int(next(config[name] for name in _CONTEXT if name in config))


def compute_dtype(model: ModelPatcher) -> torch.dtype:
    """What ComfyUI computes the network in, where weights are cast or not."""
    return model.get_model_object("manual_cast_dtype") or model.model.get_dtype()


def sampling_patches(model: ModelPatcher) -> list[str]:
    """What nodes such as FreeU hang into sampling; a LoRA, which changes weights, is not one."""
    hung = model.model_options["transformer_options"]
    patches = [*hung.get("patches", {}), *hung.get("patches_replace", {})]
    return patches + [n for n in model.model_options if n == "model_function_wrapper"]


def schedule_of(model: ModelPatcher) -> Schedule:
    """The noise schedule of a MODEL, with any ModelSampling node's changes.

    Timesteps have abar_t = 1 / (sigma_t^2 + 1); at zero terminal SNR ComfyUI's last is 5e-8. A
    flow's levels are ComfyUI's sigmas, shifted in training as in sampling, where a family has no
    shift of its own for training. Raises
    UnsupportedModelError for other predictions.
    """
    own = model.get_model_object("model_sampling")
    kinds = {c for c in type(own).__mro__[1:] if c.__module__ != "torch.nn.modules.module"}
    flow = sampling.CONST in kinds
    known = FLOW if flow else DISCRETE
    if not (flow or sampling.EPS in kinds) or not kinds <= known:
        names = ", ".join(sorted(c.__name__ for c in kinds - known)) or type(own).__name__
        raise _unsupported("model", f"a model sampled by {names}")
    if getattr(own, "noise_scale", 1.0) != 1:
        raise _unsupported("model", f"a model whose noise is {own.noise_scale} times normal")
    if flow:
        half = float(own.percent_to_sigma(0.5))  # shift / (1 + shift)
        drawn = FAMILIES[family_of(model)].drawn_shift
        return Schedule(flow_levels(half / (1 - half), drawn), "flow")
    prediction: Prediction = "v_prediction" if sampling.V_PREDICTION in kinds else "epsilon"
    with torch.inference_mode(False):
        sigmas = own.sigmas.detach().float().cpu().clone()
        return Schedule(DiscreteLevels(1 / (sigmas**2 + 1)), prediction)


def tokenizer_name(tokenizer: Any, encoder: str) -> str | None:
    """What a CLIP's tokenizer calls that of one of its text encoders, "t5xxl" or "clip_t5xxl"."""
    return next((name for name in (encoder, f"clip_{encoder}") if hasattr(tokenizer, name)), None)


@dataclass(frozen=True)
class TextPart:
    """One of a CLIP's text encoders, and its tokenizer."""

    encoder: Any
    tokenizer: Any

    @property
    def width(self) -> int:
        """Of its vectors."""
        return int(self.encoder.transformer.get_input_embeddings().weight.shape[1])


def text_parts_of(clip: Any, model: ModelPatcher) -> dict[str, TextPart]:
    """The text encoders of a MODEL's family by their keys in files.

    Raises InputError where there is no CLIP, UnsupportedModelError for another family's.
    """
    if clip is None:
        raise InputError(
            "There is no text encoder at the input 'clip': the checkpoint holds none. Connect a "
            "CLIP, for example from Load CLIP."
        )
    encoders, tokenizer = clip.cond_stage_model, clip.tokenizer
    found = {name: tokenizer_name(tokenizer, name) for name in ENCODERS if hasattr(encoders, name)}
    names = [name for name, own in found.items() if own]
    others = [name for name, part in encoders.named_children() if hasattr(part, "transformer")]
    if not names or set(others) - set(names):
        raise _unsupported("clip", type(encoders).__name__)
    parts = {
        ENCODERS[name]: TextPart(getattr(encoders, name), getattr(tokenizer, found[name]))
        for name in names
    }
    family = FAMILIES[family_of(model)]
    if parts.keys() != set(family.keys):
        raise UnsupportedModelError(
            f"The input 'clip' holds {' and '.join(parts)}, and {family.title} at 'model' reads "
            f"{' and '.join(family.keys)}. Connect the CLIP of the same model."
        )
    first = family.encoder(family.reads[0])
    fills = (parts[first.key].tokenizer.min_length or 0) > 1
    if getattr(tokenizer, "llama_template", None) != first.template or (fills and first.own_length):
        raise UnsupportedModelError(
            f"The input 'clip' writes prompts as another model than {family.title} reads them "
            f"({type(tokenizer).__name__}). Load the text encoder with the type "
            f"{family.clip_type}."
        )
    layers = 1 if _PER_LAYER in model.model.model_config.unet_config else len(first.layers) or 1
    own, width = [layers * parts[key].width for key in family.reads], context_width(model)
    if sum(own) != width:
        raise UnsupportedModelError(
            f"The text encoder at the input 'clip' is {' + '.join(map(str, own))} wide and the "
            f"model at 'model' expects {width}. Take both from the same checkpoint."
        )
    return parts


def autoencoder_of(vae: Any, model: ModelPatcher, name: str = "vae") -> nn.Module:
    """The network of a VAE; raises InputError or UnsupportedModelError.

    model: whose latents it must have. name: of the node's input.
    """
    network = getattr(vae, "first_stage_model", None)
    if network is None:
        raise InputError(
            f"There is no VAE at the input '{name}': the checkpoint holds none. Connect one, for "
            "example from Load VAE."
        )
    dimensions, channels = 3 if of_films(model) else 2, latent_channels(model)
    if (vae.latent_dim, vae.latent_channels) != (dimensions, channels):
        found = f"{type(network).__name__} with {vae.latent_channels} latent channels"
        raise _unsupported(name, found)
    return network


def downscale_of(vae: Any) -> int:
    """Image pixels to a latent cell."""
    return int(vae.spacial_compression_encode())


def _unsupported(name: str, found: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"The input '{name}' holds {found}; MagiCapture trains {SUPPORTED}. Connect such a "
        "checkpoint."
    )
