"""The networks' shapes: diffusers' and transformers' own classes, slim."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .tokenizer import LENGTH

if TYPE_CHECKING:
    from diffusers import (
        AutoencoderTiny,
        DDIMScheduler,
        FluxTransformer2DModel,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextModel

TEXT_WIDTH = 128
CHANNELS = 8  # four lose the eyes; stock ComfyUI fits an empty latent to the model's channels


def autoencoder() -> AutoencoderTiny:
    """An untrained autoencoder of TAESD's kind: 8x8 pixels to 8 numbers, pictures -1..1."""
    from diffusers import AutoencoderTiny

    width = (48, 48, 48, 48)
    return AutoencoderTiny(
        encoder_block_out_channels=width,
        decoder_block_out_channels=width,
        num_encoder_blocks=(0, 1, 2, 2),
        num_decoder_blocks=(3, 3, 2, 0),
        latent_channels=CHANNELS,
    )


def unet() -> UNet2DConditionModel:
    """An untrained UNet on 16x16 latents: cross-attention at 16, 8 and (in the middle) 4."""
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import AttnProcessor

    model = UNet2DConditionModel(
        sample_size=16,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        block_out_channels=(64, 128, 192),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=(2, 4, 6),  # heads, by diffusers' old mistake in the name
    )
    # On CPUs the fused kernel's backward costs more than the rest of the network.
    model.set_attn_processor(AttnProcessor())
    return model


def transformer(patch: int = 2) -> FluxTransformer2DModel:
    """An untrained transformer of Flux's class, in which words and picture attend to both.

    patch: cells of the 16x16 latents on a side of one place in the picture; 1 or 2. Its words are
    the text encoder's states (B,48,128), its pooled text that encoder's state at the end (B,128).
    """
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        patch_size=1,  # diffusers' pipelines cut the patches themselves, and so does `patched`
        in_channels=CHANNELS * patch**2,
        num_layers=3,
        num_single_layers=6,
        attention_head_dim=64,
        num_attention_heads=4,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        axes_dims_rope=(16, 24, 24),
        guidance_embeds=False,
    )


def text_encoder(tokens: int, end: int) -> CLIPTextModel:
    """An untrained text encoder for a vocabulary of `tokens` whose end token is `end`."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=tokens,
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        bos_token_id=end - 1,
        eos_token_id=end,
        pad_token_id=end,
    )
    return CLIPTextModel(config)


def schedule() -> DDIMScheduler:
    """Stable Diffusion's noise schedule: 1000 steps, epsilon prediction."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
