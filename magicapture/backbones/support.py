"""Which models the method runs on, and how the others are refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from ..errors import UnsupportedModelError
from ..families import FAMILIES, FamilyName, transformers
from .autoencoders import latent_channels
from .passes import PATCH

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
"""The noise schedule of SD 1.x and 2.x, as diffusers names it."""

ENCODERS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
"""The folders that diffusers keeps text encoders in, and the keys they have in embedding files."""

T5 = "t5xxl"
"""The key of a text encoder that is a T5, in whichever folder it is."""

QWENS = {
    "qwen3": ("qwen3_4b", "qwen3_8b"),
    "qwen2_5_vl": ("qwen25_7b",),
    "qwen3_vl": ("qwen3vl_4b",),
}
"""The keys of text encoders of a kind of Qwen, of which a family has one, by transformers' name."""

QWEN_IMAGE, KREA2 = "QwenImageTransformer2DModel", "Krea2Transformer2DModel"

TRANSFORMERS = {
    "FluxTransformer2DModel",
    "ChromaTransformer2DModel",
    "Flux2Transformer2DModel",
    "ZImageTransformer2DModel",
    QWEN_IMAGE,
    KREA2,
}
"""diffusers' classes of the transformers that are supported."""

SUPPORTED = f"Stable Diffusion 1.x, 2.x and XL (epsilon or v prediction), {transformers()}"


def refuse(found: str) -> NoReturn:
    """Raise UnsupportedModelError: what was found, and which models are supported."""
    raise UnsupportedModelError(f"This model is {found}, which is not supported; use {SUPPORTED}.")


def family_of(
    unet: Mapping[str, Any], vae: Mapping[str, Any], text_widths: Sequence[int]
) -> FamilyName:
    """The family of a model from the configs of its parts.

    A context 1024 wide is SD 2.x's; any other with one text encoder is taken as SD 1.x's, whose
    files it shares. text_widths: of the outputs of the text encoders, in their order. Raises
    UnsupportedModelError for a model with other inputs than those of SD 1.x, 2.x and XL.
    """
    if "cap_feat_dim" in unet:
        return _zimage_family(unet, vae, text_widths)
    if unet.get("_class_name") == QWEN_IMAGE:
        return _qwen_image_family(unet, vae, text_widths)
    if unet.get("_class_name") == KREA2:
        return _krea2_family(unet, vae, text_widths)
    if "joint_attention_dim" in unet:
        return _transformer_family(unet, vae, text_widths)
    large = unet.get("addition_embed_type") == "text_time"
    if unet.get("addition_embed_type") and not large:
        refuse("one with further conditioning beside the prompt and the size")
    if large and len(text_widths) == 1:
        refuse("an SDXL refiner, which only finishes what the base model began")
    if unet.get("class_embed_type") or unet.get("num_class_embeds"):
        refuse("conditioned on classes or noise levels (an upscaler or unCLIP)")
    channels, out, latent = (
        config.get(key, 4)
        for config, key in (
            (unet, "in_channels"),
            (unet, "out_channels"),
            (vae, "latent_channels"),
        )
    )
    if channels != latent or out != latent:
        kind = "an inpainting model" if channels == 2 * latent + 1 else "a model"
        refuse(
            f"{kind} whose UNet takes {channels} and gives {out} channels where "
            f"its VAE's latents have {latent}"
        )
    context = unet.get("cross_attention_dim")
    if len(text_widths) != 1 + large or sum(text_widths) != context:
        refuse(
            f"a UNet for a context {context} wide with a text encoder "
            f"{' and '.join(map(str, text_widths)) or 'missing'}"
        )
    if large:
        return "sdxl"
    return "sd2" if context == 1024 else "sd1"


def _transformer_family(
    transformer: Mapping[str, Any], vae: Mapping[str, Any], text_widths: Sequence[int]
) -> FamilyName:
    """Of transformers with joint attention Flux.1, Chroma, klein, and the paperdolls' own."""
    cells = vae.get("latent_channels", 4) * PATCH**2
    if "timestep_guidance_channels" in transformer:
        return _klein_family(transformer, cells, text_widths)
    channels = transformer.get("in_channels")
    if channels != cells and transformer.get("out_channels") in (cells, None):
        refuse(
            f"a Flux for inpainting or control, with {channels} input channels where its VAE's "
            f"latents make {cells}"
        )
    words, pooled = transformer["joint_attention_dim"], transformer.get("pooled_projection_dim")
    if "approximator_layers" in transformer and channels == cells and list(text_widths) == [words]:
        return "chroma"
    if channels == cells and list(text_widths) == [pooled, words]:
        return "flux1"
    if channels == cells and pooled == words and list(text_widths) == [words]:
        return "doll_flux"
    refuse("a diffusion transformer of another kind (Stable Diffusion 3 and the like)")


def _klein_family(
    transformer: Mapping[str, Any], cells: int, text_widths: Sequence[int]
) -> FamilyName:
    """Of Flux.2's transformers klein of either size, in which no guidance is distilled."""
    if transformer.get("guidance_embeds", True):
        refuse("a Flux.2 that guidance is distilled in (dev)")
    channels, words = transformer.get("in_channels"), transformer["joint_attention_dim"]
    layers = len(FAMILIES["flux2_klein_4b"].encoders[0].layers)
    if channels != cells or [layers * own for own in text_widths] != [words]:
        refuse(
            f"a Flux.2 of {channels} channels and a context {words} wide, with latents that make "
            f"{cells} and a text encoder {' and '.join(map(str, text_widths)) or 'missing'}, of "
            f"which it reads {layers} layers"
        )
    return klein_of(transformer["num_attention_heads"] * transformer["attention_head_dim"])


def klein_of(hidden: int) -> FamilyName:
    """The klein of a transformer whose tokens are so wide."""
    small = FAMILIES["flux2_klein_4b"].hidden or 0
    return "flux2_klein_9b" if hidden > small else "flux2_klein_4b"


def _zimage_family(
    transformer: Mapping[str, Any], vae: Mapping[str, Any], text_widths: Sequence[int]
) -> FamilyName:
    """Of Z-Image's transformers those that draw from a text alone."""
    if transformer.get("siglip_feat_dim") is not None:
        refuse("a Z-Image that also looks at pictures (Omni)")
    if PATCH not in transformer.get("all_patch_size", ()):
        refuse("a Z-Image with places of another size than 2x2 latent cells")
    words = transformer["cap_feat_dim"]
    _check_fits("a Z-Image", transformer, vae, words, text_widths, cells=1)
    return "zimage"


def _qwen_image_family(
    transformer: Mapping[str, Any], vae: Mapping[str, Any], text_widths: Sequence[int]
) -> FamilyName:
    """Of Qwen-Image's transformers those that draw one picture from a text alone."""
    others = ("zero_cond_t", "use_additional_t_cond", "use_layer3d_rope", "guidance_embeds")
    if any(transformer.get(name) for name in others):
        refuse("a Qwen-Image that edits pictures or draws layers")
    _check_fits(
        "a Qwen-Image", transformer, vae, transformer.get("joint_attention_dim"), text_widths
    )
    return "qwen_image"


def _krea2_family(
    transformer: Mapping[str, Any], vae: Mapping[str, Any], text_widths: Sequence[int]
) -> FamilyName:
    """Krea 2, whose transformer reads several layers of its text encoder."""
    (encoder,), layers = FAMILIES["krea2"].encoders, transformer.get("num_text_layers")
    if layers != len(encoder.layers):
        refuse(f"a Krea 2 that reads {layers} layers of its text encoder")
    _check_fits("a Krea 2", transformer, vae, transformer.get("text_hidden_dim"), text_widths)
    return "krea2"


def _check_fits(
    what: str,
    transformer: Mapping[str, Any],
    vae: Mapping[str, Any],
    words: int | None,
    text_widths: Sequence[int],
    cells: int = PATCH**2,
) -> None:
    """Refuse a transformer of other latents, `cells` of them a channel, or of other texts."""
    channels, numbers = transformer.get("in_channels"), latent_channels(vae) * cells
    if channels != numbers or list(text_widths) != [words]:
        refuse(
            f"{what} of {channels} channels and texts {words} wide, with {numbers} numbers in "
            f"{cells} latent cell{'s' * (cells > 1)} and a text encoder "
            f"{' and '.join(map(str, text_widths)) or 'missing'}"
        )
