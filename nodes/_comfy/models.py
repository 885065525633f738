"""What MODEL, CLIP and VAE are, and clear words where they cannot be trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.model_sampling as sampling
import comfy.supported_models as supported
import comfy.utils
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from torch import nn

from ...magicapture.backbone import Family
from ...magicapture.errors import InputError, UnsupportedModelError
from ...magicapture.schedule import DiscreteLevels, FlowLevels, Prediction, Schedule

SUPPORTED = "Stable Diffusion 1.x and 2.x (text to image, epsilon or v prediction)"

# ComfyUI's name of a text encoder: its key in adapters and embedding files. Stable Diffusion 2's
# only encoder has the key of 1's, as everywhere outside ComfyUI.
ENCODERS = {"clip_l": "clip_l", "clip_h": "clip_l", "clip_g": "clip_g"}


DISCRETE = {sampling.ModelSamplingDiscrete, sampling.EPS, sampling.V_PREDICTION, object}
FLOW = {sampling.ModelSamplingDiscreteFlow, sampling.ModelSamplingFlux, sampling.CONST, object}
"""What the class of a model's sampling may be made of."""


def family_of(model: ModelPatcher) -> Family:
    """The family of a MODEL; raises UnsupportedModelError, or InputError where there is none."""
    if model is None:
        raise InputError("There is no model at the input 'model'; connect a checkpoint's MODEL.")
    config, network = model.model.model_config, getattr(model.model, "diffusion_model", None)
    found = f"{type(config).__name__} ({type(network).__name__})"
    if isinstance(network, UNetModel):
        channels, kind = config.unet_config.get("in_channels", 4), type(config).__name__
        if channels != latent_channels(model):
            found = f"{kind} with {channels} input channels (for inpainting or editing)"
        elif network.num_classes is not None:
            found = f"{kind} with size, image or class conditioning"
        elif isinstance(config, supported.SD15):
            return "sd1"
        elif isinstance(config, supported.SD20):
            return "sd2"
    raise _unsupported("model", found)


def latent_channels(model: ModelPatcher) -> int:
    """Numbers in a latent cell: 4 for Stable Diffusion."""
    return int(model.model.latent_format.latent_channels)


def context_width(model: ModelPatcher) -> int:
    """How wide the text encoder's output must be."""
    return int(model.model.model_config.unet_config["context_dim"])


def compute_dtype(model: ModelPatcher) -> torch.dtype:
    """What ComfyUI computes the UNet in, where weights are cast or not."""
    return model.get_model_object("manual_cast_dtype") or model.model.get_dtype()


def sampling_patches(model: ModelPatcher) -> list[str]:
    """What nodes such as FreeU hang into sampling; a LoRA, which changes weights, is not one."""
    hung = model.model_options["transformer_options"]
    patches = [*hung.get("patches", {}), *hung.get("patches_replace", {})]
    return patches + [n for n in model.model_options if n == "model_function_wrapper"]


def schedule_of(model: ModelPatcher) -> Schedule:
    """The noise schedule of a MODEL, with any ModelSampling node's changes.

    Timesteps have abar_t = 1 / (sigma_t^2 + 1); at zero terminal SNR ComfyUI's last is 5e-8. A
    flow's levels are ComfyUI's sigmas, shifted in training as in sampling. Raises
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
        return Schedule(FlowLevels(shift=half / (1 - half)), "flow")
    prediction: Prediction = "v_prediction" if sampling.V_PREDICTION in kinds else "epsilon"
    with torch.inference_mode(False):
        sigmas = own.sigmas.detach().float().cpu().clone()
        return Schedule(DiscreteLevels(1 / (sigmas**2 + 1)), prediction)


def text_encoder_of(clip: Any, width: int) -> tuple[Any, Any]:
    """The text encoder and its tokenizer; raises InputError or UnsupportedModelError.

    width: of the context that the UNet expects.
    """
    if clip is None:
        raise InputError(
            "There is no text encoder at the input 'clip': the checkpoint holds none. Connect a "
            "CLIP, for example from Load CLIP."
        )
    names = [name for name in ENCODERS if hasattr(clip.cond_stage_model, name)]
    if len(names) != 1 or not hasattr(clip.tokenizer, names[0]):
        raise _unsupported("clip", type(clip.cond_stage_model).__name__)
    encoder = getattr(clip.cond_stage_model, names[0])
    own = encoder.transformer.get_input_embeddings().weight.shape[1]
    if own != width:
        raise UnsupportedModelError(
            f"The text encoder at the input 'clip' is {own} wide and the model at 'model' expects "
            f"{width}. Take both from the same checkpoint."
        )
    return encoder, getattr(clip.tokenizer, names[0])


def autoencoder_of(vae: Any, channels: int = 4, name: str = "vae") -> nn.Module:
    """The network of a VAE; raises InputError or UnsupportedModelError.

    channels: of the model's latents. name: of the node's input.
    """
    network = getattr(vae, "first_stage_model", None)
    if network is None:
        raise InputError(
            f"There is no VAE at the input '{name}': the checkpoint holds none. Connect one, for "
            "example from Load VAE."
        )
    if vae.latent_dim != 2 or vae.latent_channels != channels:
        found = f"{type(network).__name__} with {vae.latent_channels} latent channels"
        raise _unsupported(name, found)
    return network


def downscale_of(vae: Any) -> int:
    """Image pixels to a latent cell."""
    return int(vae.spacial_compression_encode())


def unet_names(model: ModelPatcher) -> Mapping[str, str]:
    """ComfyUI's names of the UNet's modules to those of diffusers.

    ComfyUI's own table names weights; modules above them, such as a transformer block, follow
    where both names end alike.
    """
    names: dict[str, str] = {}
    table = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    for theirs, own in table.items():
        path, other = own.split(".")[:-1], theirs.split(".")[:-1]
        while path and other:
            names[".".join(path)] = ".".join(other)
            if path.pop() != other.pop():
                break
    # The table also has what other models have, such as a class embedding.
    present = (name for name, _ in model.model.diffusion_model.named_modules())
    return {name: names[name] for name in present if name in names}


def _unsupported(name: str, found: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"The input '{name}' holds {found}; MagiCapture trains {SUPPORTED}. Connect such a "
        "checkpoint."
    )
