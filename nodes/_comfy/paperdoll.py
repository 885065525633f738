"""The embedded demo model as ComfyUI's MODEL, CLIP and VAE, from its diffusers folder.

A Stable Diffusion, or a Flux, too small for ComfyUI to recognise: the same classes that its own
loaders make, with this model's sizes, and nothing registered.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import comfy.model_management as management
import comfy.sd
import comfy.utils
import numpy as np
import torch
import torch.nn.functional as F
from comfy.latent_formats import LatentFormat
from comfy.ldm.flux.model import FluxParams
from comfy.model_detection import convert_diffusers_mmdit
from comfy.model_patcher import ModelPatcher
from comfy.sd1_clip import SD1ClipModel, SD1Tokenizer, SDClipModel, SDTokenizer
from comfy.supported_models import SD15, FluxSchnell
from comfy.supported_models_base import BASE, ClipTarget
from comfy.taesd.taesd import TAESD
from torch import Tensor, nn

from ...magicapture.backbones import load_backbone
from ...magicapture.paperdoll import identity_from_seed, render, style_from_seed
from ...magicapture.paperdoll.model import ModelName
from ...magicapture.paperdoll.weights import model_folder, transformer_folder
from .host import model_folders

UNET = {
    "image_size": 16,
    "in_channels": 8,
    "out_channels": 8,
    "model_channels": 64,
    "channel_mult": [1, 2, 3],
    "num_res_blocks": [1, 1, 1],
    "transformer_depth": [1, 1, 0],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 0, 0],
    "num_heads": -1,
    "num_head_channels": 32,
    "context_dim": 128,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "use_temporal_attention": False,
    "adm_in_channels": None,
    "legacy": False,
}
"""The UNet in the words of ComfyUI; `magicapture.paperdoll.networks` has it in diffusers'."""

TRANSFORMER = {
    "image_model": "flux",
    "in_channels": 8,
    "out_channels": 8,
    "vec_in_dim": 128,
    "context_in_dim": 128,
    "hidden_size": 256,
    "mlp_ratio": 4.0,
    "num_heads": 4,
    "depth": 3,
    "depth_single_blocks": 6,
    "axes_dim": [16, 24, 24],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": False,
    # Newer ComfyUIs have further families in the same class, and ask.
    **({"txt_ids_dims": []} if "txt_ids_dims" in FluxParams.__annotations__ else {}),
}
"""The transformer in the words of ComfyUI."""


def load_paperdoll(folder: Path, model: ModelName = "unet") -> tuple[ModelPatcher, Any, Any]:
    """MODEL, CLIP and VAE of a paperdoll folder, on ComfyUI's devices and in its dtypes.

    Raises StorageError where the folder is empty or damaged, or holds no such model.
    """
    with torch.inference_mode(False), torch.no_grad():
        parts = load_backbone(model_folder(folder), dtype=torch.float16).modules
        vae = parts["vae"].float()
        latents = _Latents(vae)
        made = _unet(parts["unet"], latents) if model == "unet" else _transformer(folder, latents)
        return made, _clip(parts["clip_l"], folder), _vae(vae)


# -- MODEL ------------------------------------------------------------------------------------


def _unet(unet: nn.Module, latents: LatentFormat) -> ModelPatcher:
    names = comfy.utils.unet_to_diffusers(UNET)
    state = {names[name]: value for name, value in unet.state_dict().items()}
    return _model(_Config(dict(UNET)), latents, state)


def _transformer(folder: Path, latents: LatentFormat) -> ModelPatcher:
    from diffusers import FluxTransformer2DModel

    path = transformer_folder(folder)
    theirs = FluxTransformer2DModel.from_pretrained(path, torch_dtype=torch.float16)
    # ComfyUI takes the layers out of what it is given, and changes one in place.
    state = convert_diffusers_mmdit({n: v.clone() for n, v in theirs.state_dict().items()})
    return _model(_FluxConfig(dict(TRANSFORMER)), latents, state)


def _model(config: BASE, latents: LatentFormat, state: dict[str, Tensor]) -> ModelPatcher:
    config.latent_format = latents
    device, offload = management.get_torch_device(), management.unet_offload_device()
    supported = config.supported_inference_dtypes
    dtype = management.unet_dtype(
        model_params=comfy.utils.calculate_parameters(state),
        supported_dtypes=supported,
        weight_dtype=torch.float16,
    )
    config.set_inference_dtype(dtype, management.unet_manual_cast(dtype, device, supported))
    model = config.get_model(state, "").to(offload)
    model.load_model_weights(state, "")
    return ModelPatcher(model, device, offload)


class _Latents(LatentFormat):
    """Eight numbers for 8 x 8 pixels, of about unit size."""

    latent_channels = 8

    def __init__(self, vae: nn.Module) -> None:
        """Fits the mixture of the eight that ComfyUI shows as colours while it samples."""
        seeds = range(8)
        dolls = [render(identity_from_seed(i), style_from_seed(i)).image for i in seeds]
        pictures = torch.from_numpy(np.stack(dolls)) * 2 - 1
        numbers = vae.encode(pictures).latents.movedim(1, -1).reshape(-1, self.latent_channels)
        colours = F.avg_pool2d(pictures, 8).movedim(1, -1).reshape(-1, 3)
        known = torch.cat([numbers, torch.ones(len(numbers), 1)], dim=1)
        mixture = torch.linalg.lstsq(known, colours).solution
        self.latent_rgb_factors = mixture[:-1].tolist()
        self.latent_rgb_factors_bias = mixture[-1].tolist()


class _Config(SD15):
    unet_config: ClassVar[dict[str, Any]] = UNET
    unet_extra_config: ClassVar[dict[str, Any]] = {}
    latent_format = LatentFormat  # an instance takes its place

    def inpaint_model(self) -> bool:
        return False  # ComfyUI takes more than four channels for a mask beside them


class _FluxConfig(FluxSchnell):
    unet_config: ClassVar[dict[str, Any]] = TRANSFORMER
    unet_extra_config: ClassVar[dict[str, Any]] = {}
    latent_format = LatentFormat


# -- CLIP -------------------------------------------------------------------------------------


def _clip(encoder: Any, folder: Path) -> Any:
    config, length = encoder.config, encoder.config.max_position_embeddings
    # transformers 5 dropped the prefix that ComfyUI's text encoder has.
    state = {
        f"text_model.{name.removeprefix('text_model.')}": value
        for name, value in encoder.state_dict().items()
    }
    state["text_projection.weight"] = torch.eye(config.hidden_size)  # unused, but never unset
    tokenizer = partial(
        SDTokenizer,
        tokenizer_path=str(folder / "tokenizer"),
        max_length=length,
        embedding_size=config.hidden_size,
    )
    target = ClipTarget(
        partial(SD1Tokenizer, tokenizer=tokenizer),
        partial(SD1ClipModel, clip_model=partial(_TextEncoder, config.to_dict())),
    )
    clip = comfy.sd.CLIP(
        target,
        embedding_directory=[str(path) for path in model_folders("embeddings")],
        parameters=comfy.utils.calculate_parameters(state),
    )
    clip.load_sd(state)
    return clip


class _TextEncoder(SDClipModel):
    """CLIP's text encoder of another size; ComfyUI's own table of words has CLIP's 49,408."""

    def __init__(
        self,
        config: dict[str, Any],
        device: Any = "cpu",
        dtype: torch.dtype | None = None,
        model_options: dict[str, Any] | None = None,
    ) -> None:
        start, end = config["bos_token_id"], config["eos_token_id"]
        super().__init__(
            device=device,
            max_length=config["max_position_embeddings"],
            textmodel_json_config=config,
            dtype=dtype,
            special_tokens={"start": start, "end": end, "pad": config["pad_token_id"]},
            return_projected_pooled=False,
            model_options=model_options or {},
        )
        table = self.operations.Embedding(
            config["vocab_size"], config["hidden_size"], dtype=dtype, device=device
        )
        self.transformer.set_input_embeddings(table.requires_grad_(False))


# -- VAE --------------------------------------------------------------------------------------


def _vae(network: nn.Module) -> Any:
    # A VAE of TAESD's kind over the same latents, in which our network takes the place of its own.
    kind = TAESD(latent_channels=_Latents.latent_channels)
    vae = comfy.sd.VAE(sd=kind.state_dict(), dtype=torch.float32)
    vae.first_stage_model = _Autoencoder(network).to(vae.vae_dtype)
    offload = management.vae_offload_device()
    vae.patcher = ModelPatcher(vae.first_stage_model, vae.device, offload)
    vae.disable_offload = True  # 2 MB; its layers are not ComfyUI's, which could be streamed
    vae.working_dtypes = [torch.float32]
    vae.size = None  # of the network before; newer versions ask for it
    vae.memory_used_encode = _memory_used(1)
    vae.memory_used_decode = _memory_used(8 * 8)
    return vae


def _memory_used(pixels: int) -> Any:
    """Bytes for a batch: three layers of 48 channels at the picture's full size."""

    def used(shape: tuple[int, ...], dtype: torch.dtype) -> int:
        return 3 * 48 * shape[2] * shape[3] * pixels * management.dtype_size(dtype)

    return used


class _Autoencoder(nn.Module):
    """diffusers' AutoencoderTiny as ComfyUI calls a VAE's network; pictures (B,3,H,W) -1..1."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def encode(self, pictures: Tensor) -> Tensor:
        return self.network.encode(pictures).latents

    def decode(self, latents: Tensor) -> Tensor:
        return self.network.decode(latents).sample
