"""Tiny families of joint attention: ComfyUI's own networks, and diffusers' of the same weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

WIDTH, WORDS = 32, 48  # of the transformers, and of the text encoders


def fill(module: nn.Module, std: float = 0.08) -> nn.Module:
    """Give a module weights; ComfyUI leaves them uninitialised until a file is read."""
    generator = torch.Generator().manual_seed(7)
    for name, parameter in module.named_parameters():
        values = torch.randn(parameter.shape, generator=generator) * std
        if ("norm" in name and name.endswith("weight")) or name.endswith("gamma"):
            values += 1
        parameter.data = values.to(parameter.dtype)
    return module


def seeded(*shape: int, seed: int = 0) -> Tensor:
    with torch.inference_mode(False):
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def near(found: Tensor, expected: Tensor, share: float = 2e-4) -> None:
    """Within a share of the largest number: sums run in another order."""
    assert found.shape == expected.shape and expected.abs().max() > 0
    assert (found - expected).abs().max() <= share * expected.abs().max()


def prompts(pack: Any, *texts: str) -> list[Any]:
    return [pack("magicapture.tokens").Prompt(text) for text in texts]


@dataclass(frozen=True)
class Clip:
    """How a family's CLIP is made; keys: of its text encoders. qwen: of a Qwen."""

    target: Callable[[], Any]
    keys: tuple[str, ...]
    qwen: Mapping[str, int] = field(default_factory=dict)


def _chroma_clip() -> Any:
    import comfy.supported_models

    return comfy.supported_models.Chroma({}).clip_target({})


def _klein_clip() -> Any:
    from comfy.supported_models_base import ClipTarget
    from comfy.text_encoders import flux

    return ClipTarget(flux.KleinTokenizer, flux.klein_te())


CLIPS = {
    "chroma": Clip(_chroma_clip, ("t5xxl",)),
    "klein": Clip(_klein_clip, ("qwen3_4b",), {"num_hidden_layers": 28, "num_attention_heads": 1}),
}

_FLUX = {
    "in_channels": 16,
    "out_channels": 16,
    "context_in_dim": WORDS,
    "hidden_size": WIDTH,
    "num_heads": 2,
    "depth": 2,
    "depth_single_blocks": 2,
    "vec_in_dim": None,
}
CHROMA = {
    **_FLUX,
    "image_model": "chroma",
    "mlp_ratio": 4.0,
    "axes_dim": [4, 6, 6],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "in_dim": 64,
    "out_dim": WIDTH,
    "hidden_dim": WIDTH,
    "n_layers": 2,
    "txt_ids_dims": [],
}
KLEIN = {
    **_FLUX,
    "image_model": "flux2",
    "context_in_dim": 3 * WORDS,
    "mlp_ratio": 3.0,
    "axes_dim": [4, 4, 4, 4],
    "theta": 2000,
    "patch_size": 1,
    "qkv_bias": False,
    "guidance_embed": False,
    "txt_ids_dims": [3],
    "global_modulation": True,
    "mlp_silu_act": True,
    "ops_bias": False,
}


def patched(
    config: Any,
    std: float = 0.15,
    dtype: torch.dtype | None = torch.float32,
    manual_cast: torch.dtype | None = None,
) -> Any:
    """A MODEL of a configuration, with random weights."""
    import comfy.model_management
    from comfy.model_patcher import ModelPatcher

    config.set_inference_dtype(dtype, manual_cast)
    model = config.get_model({}, "", device=torch.device("cpu"))
    fill(model.diffusion_model, std)
    cpu = comfy.model_management.get_torch_device()
    return ModelPatcher(model, load_device=cpu, offload_device=cpu)


def make_chroma(**changes: Any) -> Any:
    """A MODEL of Chroma's class over Stable Diffusion's latents."""
    import comfy.latent_formats
    import comfy.supported_models
    from comfy.ldm.chroma.model import ChromaParams

    class TinyChroma(comfy.supported_models.Chroma):
        latent_format = comfy.latent_formats.SD15

    known = {*ChromaParams.__dataclass_fields__, "image_model"}  # 0.3.64 has fewer
    return patched(TinyChroma({n: v for n, v in {**CHROMA, **changes}.items() if n in known}))


def make_klein(channels: int = 16, **changes: Any) -> Any:
    """A MODEL of Flux.2's class over latents of so many channels; the published one's have 128."""
    import comfy.latent_formats
    import comfy.supported_models

    class Latents(comfy.latent_formats.Flux2):
        latent_channels = channels

    class TinyFlux2(comfy.supported_models.Flux2):
        latent_format = Latents

    own = {"in_channels": channels, "out_channels": channels}
    return patched(TinyFlux2({**KLEIN, **own, **changes}))


def make_flux2_vae(channels: int = 16) -> Any:
    """A VAE of Flux.2's form, with a quarter of the channels and latents of so many."""
    import comfy.sd

    layout = {
        "double_z": True,
        "z_channels": channels // 4,
        "resolution": 64,
        "in_channels": 3,
        "out_ch": 3,
        "ch": WIDTH,
        "ch_mult": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "dropout": 0.0,
        "batch_norm_latent": True,
    }
    vae = comfy.sd.VAE(sd={}, config={"params": {"ddconfig": layout, "embed_dim": channels // 4}})
    network = fill(vae.first_stage_model)
    network.bn.running_mean.copy_(0.2 * seeded(channels))
    network.bn.running_var.copy_(0.5 + seeded(channels, seed=1).abs())
    vae.latent_channels, vae.downscale_ratio, vae.upscale_ratio = channels, 16, 16
    return vae


def make_taef2() -> Any:
    """Flux.2's tiny VAE, as Load VAE makes it of its file."""
    import comfy.sd
    from comfy.taesd.taesd import TAESD

    network = fill(TAESD(latent_channels=128), std=0.04)
    state = {name: value.detach().clone() for name, value in network.state_dict().items()}
    return comfy.sd.VAE(sd=state, metadata={"tae_latent_channels": 128})


def _by_table(model: Any, theirs: nn.Module, names: Mapping[str, str]) -> nn.Module:
    """A network of diffusers' with a MODEL's weights: by ComfyUI's own table, and further names.

    A final modulation's halves lie the other way round.
    """
    import comfy.utils

    config = model.model.model_config.unet_config
    weights, state = model.model.diffusion_model.state_dict(), {}
    wanted = theirs.state_dict().keys()
    for name, entry in comfy.utils.flux_to_diffusers(config).items():
        own, place, *change = (entry, None) if isinstance(entry, str) else entry
        if name in wanted and own in weights:
            rows = slice(None) if place is None else slice(place[1], place[1] + place[2])
            value = weights[own][rows].clone()
            state[name] = change[0](value) if change else value
    for name in wanted - state.keys():
        own = name
        for theirs_, ours in names.items():
            own = own.replace(theirs_, ours)
        if own not in weights:  # what 0.3.64 calls a norm's weight
            own = own.removesuffix("weight") + "scale"
        state[name] = weights[own].clone()
    theirs.load_state_dict(state)
    return theirs.eval()


def chroma_twin(model: Any) -> nn.Module:
    """diffusers' Chroma with a MODEL's weights."""
    from diffusers import ChromaTransformer2DModel

    theirs = ChromaTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WORDS,
        axes_dims_rope=(4, 6, 6),
        approximator_hidden_dim=WIDTH,
        approximator_layers=2,
    )
    # ComfyUI counts the modulations of the published model, whatever its depth is.
    theirs.time_text_embed = type(theirs.time_text_embed)(16, 344)
    return _by_table(model, theirs, {"linear_1": "in_layer", "linear_2": "out_layer"})


def klein_twin(model: Any) -> nn.Module:
    """diffusers' Flux.2 with a MODEL's weights."""
    from diffusers import Flux2Transformer2DModel

    theirs = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * WORDS,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    names = {
        "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
        "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
        "modulation_img.linear": "modulation_img.lin",
        "modulation_txt.linear": "modulation_txt.lin",
        "single_stream_modulation.linear": "single_stream_modulation.lin",
    }
    return _by_table(model, theirs, names)


def tiny_vae_twin(pack: Any, vae: Any) -> nn.Module:
    """diffusers' AutoencoderTiny with a TAESD's weights."""
    network = vae.first_stage_model
    halves = {"encoder": network.taesd_encoder, "decoder": network.taesd_decoder}
    state = {p: {k: v.clone() for k, v in of.state_dict().items()} for p, of in halves.items()}
    twin: nn.Module = pack("magicapture.backbones.taesd").taesd_from(state)
    return twin


def flux2_vae_twin(pack: Any, vae: Any) -> nn.Module:
    """diffusers' VAE of Flux.2 with a VAE's weights."""
    from diffusers import AutoencoderKLFlux2

    theirs = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(WIDTH,) * 4,
        layers_per_block=1,
        latent_channels=4,
    )
    own = {name: value.clone() for name, value in vae.first_stage_model.state_dict().items()}
    theirs.load_state_dict(pack("magicapture.backbones.renaming").vae_weights(own))
    return theirs.eval()


def qwen_twin(clip: Any, comfyui: Path, config: Mapping[str, Any]) -> tuple[Any, Any]:
    """transformers' Qwen3 with a CLIP's weights, and its tokenizer."""
    from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model

    own = clip.cond_stage_model.qwen3_4b.transformer.state_dict()
    settings = Qwen3Config(**config, vocab_size=151936, head_dim=128, rope_theta=1000000.0)
    encoder = Qwen3Model(settings).eval()
    encoder.load_state_dict({n: own[f"model.{n}"].clone() for n in encoder.state_dict()})
    words = comfyui / "comfy" / "text_encoders" / "qwen25_tokenizer"
    return encoder, Qwen2Tokenizer.from_pretrained(words)


def t5_twin(clip: Any, comfyui: Path) -> tuple[Any, Any]:
    """transformers' T5 with a CLIP's weights, and its tokenizer."""
    from transformers import T5Config, T5EncoderModel, T5TokenizerFast

    own = clip.cond_stage_model.t5xxl.transformer.state_dict()
    config = T5Config(
        vocab_size=32128,
        d_model=WORDS,
        d_kv=8,
        d_ff=2 * WORDS,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
    )
    encoder, table = T5EncoderModel(config).eval(), own["shared.weight"]
    encoder.load_state_dict(
        {
            name: (table if name == "encoder.embed_tokens.weight" else own[name]).clone()
            for name in encoder.state_dict()
        }
    )
    words = comfyui / "comfy" / "text_encoders" / "t5_tokenizer"
    return encoder, T5TokenizerFast.from_pretrained(words)


@dataclass(frozen=True)
class Kind:
    """A family at toy size. key: of its text encoder. vectors: whether it learns any.

    cell: latent cells a side of a place. clip: what a message calls the CLIP's type.
    """

    family: str
    title: str
    needs: str
    model: Callable[..., Any]
    twin: Callable[[Any], nn.Module]
    key: str
    clip: str
    vectors: bool = False
    channels: int = 4
    cell: int = 2
    mu: float = 1.15


KINDS = {
    "chroma": Kind(
        "chroma", "Chroma", "Chroma", make_chroma, chroma_twin, "t5xxl", "chroma", vectors=True
    ),
    "klein": Kind(
        *("flux2_klein_4b", "Flux.2 klein 4B", "Flux2", make_klein, klein_twin, "qwen3_4b"),
        clip="flux2",
        channels=16,
        cell=1,
        mu=2.02,
    ),
}
