"""Adapters over the tiny models, with random weights of several ranks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from magicapture.adapters.adapter import Adapter
from magicapture.lora import LoraWeights, applied, target_names, text_target_names
from magicapture.recipes import recipe
from magicapture.tokens import Concept


@pytest.fixture
def make_adapter(tiny: SimpleNamespace) -> Callable[..., Adapter]:
    """Build an adapter for the tiny UNet and text encoder: make_adapter(targets, family=...).

    Ranks alternate, as do the alphas if two are given; each call draws other numbers.
    """
    generator = torch.Generator().manual_seed(11)
    random = partial(torch.randn, generator=generator)

    def lora(model: nn.Module, names: list[str], part: str, alphas: Any) -> dict[str, LoraWeights]:
        state = {}
        for index, name in enumerate(names):
            rows, columns = model.get_submodule(name).weight.shape
            rank, alpha = 2 + index % 2, alphas[index % len(alphas)]
            layer = f"text_model.{name}" if name.startswith("encoder.") else name
            weights = LoraWeights(random(rank, columns) / 4, random(rows, rank) / 4, alpha)
            state[f"{part}.{layer}"] = weights
        return state

    def make(targets: Any = "cross", *, alphas: Any = (1.5,), **changes: Any) -> Adapter:
        unet, encoder = tiny.unet(), tiny.text_encoder()
        parts: dict[str, Any] = {
            "lora": lora(unet, target_names(unet, targets), "unet", alphas)
            | lora(encoder, text_target_names(encoder), "clip_l", alphas),
            "tokens": {"ada": {"clip_l": random(2, 32)}, "film": {"clip_l": random(1, 32)}},
            "family": "sd1",
            "recipe": recipe("paper"),
            "concepts": (Concept("ada", "subject", "woman", 2), Concept("film", "style", "woman")),
            "info": {"base": "tiny.safetensors", "steps": "12", "seed": "7"},
        }
        return Adapter(**{**parts, **changes})

    return make


@pytest.fixture
def adapter(make_adapter: Callable[..., Adapter]) -> Adapter:
    """A LoRA on cross-attention and the text encoder, two tokens, the paper's recipe."""
    return make_adapter()


@pytest.fixture
def same() -> Callable[[Adapter, Adapter], None]:
    """Assert that two adapters are bit-equal."""

    def same(one: Adapter, other: Adapter) -> None:
        assert one.lora.keys() == other.lora.keys()
        for key, weights in one.lora.items():
            assert torch.equal(weights.down, other.lora[key].down), key
            assert torch.equal(weights.up, other.lora[key].up), key
            assert weights.alpha == other.lora[key].alpha, key
        assert one.tokens.keys() == other.tokens.keys()
        for name, vectors in one.tokens.items():
            assert vectors.keys() == other.tokens[name].keys()
            assert all(torch.equal(vectors[e], other.tokens[name][e]) for e in vectors)
        for fact in ("family", "recipe", "concepts", "info"):
            assert getattr(one, fact) == getattr(other, fact), fact

    return same


@pytest.fixture
def pipeline(tiny: SimpleNamespace, tokenizer: Any) -> Any:
    """A tiny Stable Diffusion pipeline of diffusers'."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae=tiny.vae("kl"),
        text_encoder=tiny.text_encoder(),
        tokenizer=copy.deepcopy(tokenizer),  # loading an embedding adds words to it
        unet=tiny.unet(),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture
def xl_pipeline(tiny: SimpleNamespace, tokenizer: Any) -> Any:
    """A tiny Stable Diffusion XL pipeline of diffusers'."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
    from transformers import CLIPTextModelWithProjection

    second = tiny.text_encoder(hidden_act="gelu").config
    return StableDiffusionXLPipeline(
        vae=tiny.vae("kl"),
        text_encoder=tiny.text_encoder(),
        text_encoder_2=CLIPTextModelWithProjection(second).eval(),
        tokenizer=copy.deepcopy(tokenizer),
        tokenizer_2=copy.deepcopy(tokenizer),
        unet=tiny.unet(
            down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * 2),
            up_block_types=(*("CrossAttnUpBlock2D",) * 2, "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 3),
            use_linear_projection=True,
            cross_attention_dim=64,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=32 + 6 * 8,
        ),
        scheduler=EulerDiscreteScheduler(),
    )


@pytest.fixture
def outputs() -> Callable[[Any, Any], tuple[torch.Tensor, torch.Tensor]]:
    """What a UNet and a text encoder make of the same numbers."""
    latent, context = torch.randn(1, 4, 16, 16), torch.randn(1, 7, 32)
    ids = torch.randint(0, 49406, (1, 77))

    def outputs(unet: Any, encoder: Any) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            prediction = unet(latent, torch.tensor([50]), context).sample
            return prediction, encoder(ids).last_hidden_state

    return outputs


# -- files of other programs, written by their own code from models of SD 1's widths -----------

TARGETS = {"unet": ("attn2.to_k", "attn2.to_v"), "text_encoder": ("q_proj", "v_proj")}


def models(tiny: SimpleNamespace) -> dict[str, Any]:
    """A UNet and a text encoder of width 768, by diffusers' names of them."""
    encoder = {"vocab_size": 100, "hidden_size": 768, "bos_token_id": 98, "eos_token_id": 99}
    return {
        "unet": tiny.unet(cross_attention_dim=768),
        "text_encoder": tiny.text_encoder(**encoder, pad_token_id=99),
    }


def config_for(part: str, **changes: Any) -> Any:
    """A LoRA of PEFT's, rank 2 and alpha 1, in a part's TARGETS."""
    from peft import LoraConfig

    return LoraConfig(**{"r": 2, "lora_alpha": 1, "target_modules": TARGETS[part], **changes})


def randomised(model: nn.Module) -> nn.Module:
    """The model with random numbers in its LoRA."""
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape) / 4
    return model


def put_out(unet: Any, encoder: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What the two models make of the same numbers."""
    random = torch.Generator().manual_seed(3)
    latent, context = (torch.randn(*s, generator=random) for s in ((1, 4, 16, 16), (1, 7, 768)))
    with torch.no_grad():
        prediction = unet(latent, torch.tensor([50]), context).sample
        return prediction, encoder(torch.arange(77)[None]).last_hidden_state


def drawn_with(adapter: Adapter, tiny: SimpleNamespace) -> tuple[torch.Tensor, torch.Tensor]:
    """What the models put out with an adapter that was read."""
    plain = models(tiny)
    names = {name for name, _ in plain["text_encoder"].named_modules()}
    text = adapter.part("clip_l").items()
    own = {n if n in names else n.removeprefix("text_model."): of for n, of in text}
    with applied(plain["unet"], adapter.part("unet")), applied(plain["text_encoder"], own):
        return put_out(*plain.values())


@pytest.fixture
def foreign(tiny: SimpleNamespace) -> SimpleNamespace:
    """The functions above."""
    return SimpleNamespace(
        TARGETS=TARGETS,
        models=partial(models, tiny),
        config_for=config_for,
        randomised=randomised,
        put_out=put_out,
        drawn_with=partial(drawn_with, tiny=tiny),
    )
