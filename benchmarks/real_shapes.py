"""Base models of their real shapes whose weights take no memory, for what is counted from shapes.

A network's tensors are made without being written to, so that the system gives them no pages: they
mean nothing, and `magicapture.planning.rehearse` reads their shapes alone. Vectors of words, whose
size decides a learning rate, are random.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from random_models import FULL, XL, FaceEmbedder, Size, build, clip_tokenizer
from torch import nn

from magicapture.backbones import DiffusersBackbone
from magicapture.schedule import FlowLevels, Schedule

_DTYPE = torch.bfloat16
_META = torch.device("meta")
_SIXTEEN = {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
"""The autoencoder of Flux.1 and Z-Image beside Stable Diffusion's, `FULL.vae`."""


@dataclass(frozen=True)
class Shape:
    """A base model. make: builds it. side: of its pictures, in pixels."""

    title: str
    side: int
    make: Callable[[], DiffusersBackbone]


def unwritten(module: nn.Module) -> nn.Module:
    """A module without values, moved to the CPU and not written to."""
    module.to(_DTYPE).to_empty(device="cpu")
    return module.eval().requires_grad_(False)


def _encoder(network: Any) -> nn.Module:
    """A text encoder with vectors of words."""
    unwritten(network)
    nn.init.normal_(network.get_input_embeddings().weight)
    return network


def embedder() -> FaceEmbedder:
    """A face recognition model about as dear as ArcFace's."""
    with _META:
        network = FaceEmbedder(FULL.embedder_width)
    network.to_empty(device="cpu")
    return network


def stable_diffusion(size: Size) -> DiffusersBackbone:
    """Stable Diffusion of a size."""
    backbone = build(size, _META, _DTYPE)
    for name, module in backbone.modules.items():
        (_encoder if name in backbone.text_encoders else unwritten)(module)
    return backbone


def flux1() -> DiffusersBackbone:
    """Flux.1 dev: 19 double blocks, 38 single ones, T5 XXL and CLIP."""
    from diffusers import FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    with _META:
        network = FluxTransformer2DModel(guidance_embeds=True)
        clip = CLIPTextModel(CLIPTextConfig(vocab_size=49408, **FULL.text))
        t5 = T5EncoderModel(
            T5Config(
                d_model=4096,
                d_ff=10240,
                num_layers=24,
                num_heads=64,
                feed_forward_proj="gated-gelu",
            )
        )
    encoders = {"clip_l": clip, "t5xxl": t5}
    return _transformer(network, encoders, {"clip_l": clip_tokenizer(), "t5xxl": _t5_words()})


def zimage() -> DiffusersBackbone:
    """Z-Image: 30 layers, 3,840 wide, and Qwen3 4B."""
    from diffusers import ZImageTransformer2DModel
    from transformers import Qwen3Config, Qwen3Model

    with _META:
        network = ZImageTransformer2DModel()
        qwen = Qwen3Model(
            Qwen3Config(
                hidden_size=2560,
                intermediate_size=9728,
                num_hidden_layers=36,
                num_attention_heads=32,
                num_key_value_heads=8,
                head_dim=128,
            )
        )
    return _transformer(network, {"qwen3_4b": qwen}, {"qwen3_4b": _qwen_words()})


def _transformer(
    network: Any, encoders: Mapping[str, Any], tokenizers: Mapping[str, Any]
) -> DiffusersBackbone:
    """With the autoencoder that Flux.1 and Z-Image share, and a tiny decoder."""
    from diffusers import AutoencoderKL, AutoencoderTiny

    with _META:
        vae = AutoencoderKL(**_SIXTEEN, **FULL.vae, scaling_factor=0.3611, shift_factor=0.1159)
        decoder = AutoencoderTiny(latent_channels=16)
    return DiffusersBackbone(
        unet=unwritten(network),
        vae=unwritten(vae),
        text_encoders={key: _encoder(encoder) for key, encoder in encoders.items()},
        tokenizers=tokenizers,
        schedule=Schedule(FlowLevels(shift=3.0), "flow"),
        decoder=unwritten(decoder),
    )


def _t5_words() -> Any:
    """T5's tokenizer of letters alone: texts are filled up to the same length."""
    from tokenizers import Tokenizer
    from tokenizers.models import Unigram
    from tokenizers.pre_tokenizers import Metaspace
    from tokenizers.processors import TemplateProcessing
    from transformers import T5TokenizerFast

    signs = ("<pad>", "</s>", "<unk>", "\u2581", *",.-", *map(chr, range(97, 123)))
    words = Tokenizer(Unigram([(sign, -1.0) for sign in signs], unk_id=2))
    words.pre_tokenizer = Metaspace()
    words.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return T5TokenizerFast(
        tokenizer_object=words, eos_token="</s>", pad_token="<pad>", unk_token="<unk>", extra_ids=0
    )


def _qwen_words() -> Any:
    """Qwen's tokenizer without merges, a sign a byte: some four times as many as its own."""
    from transformers import Qwen2Tokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    vocabulary = {sign: i for i, sign in enumerate(bytes_to_unicode().values())}
    with TemporaryDirectory() as folder:
        tokenizer = Qwen2Tokenizer(
            vocab=vocabulary,
            merges=[],
            additional_special_tokens=["<|im_start|>", "<|im_end|>"],
            eos_token="<|im_end|>",
            pad_token="<|endoftext|>",
        )
        tokenizer.save_pretrained(folder)
        return Qwen2Tokenizer.from_pretrained(Path(folder))


SHAPES = {
    "sd1": Shape("Stable Diffusion 1.5", 512, lambda: stable_diffusion(FULL)),
    "sdxl": Shape("Stable Diffusion XL", 1024, lambda: stable_diffusion(XL)),
    "flux1": Shape("Flux.1 dev", 1024, flux1),
    "zimage": Shape("Z-Image", 1024, zimage),
}
