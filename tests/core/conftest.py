"""Tiny models of the real classes, with random weights and CLIP's own tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    AutoencoderTiny,
    DDIMScheduler,
    FluxTransformer2DModel,
    Krea2Transformer2DModel,
    QwenImageTransformer2DModel,
    UNet2DConditionModel,
    ZImageTransformer2DModel,
)
from tokenizers import Tokenizer
from tokenizers.decoders import Metaspace as MetaspaceDecoder
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLModel,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from magicapture.backbones import DiffusersBackbone
from magicapture.backbones.clip_tokenizer import write_tokenizer
from magicapture.backbones.support import BETAS
from magicapture.dino import Dino, load_dino
from magicapture.schedule import DiscreteLevels, FlowLevels, Prediction, Schedule

WIDTH = 32


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    """CLIP's tokenizer, all 49,408 words."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return CLIPTokenizer.from_pretrained(folder)


def random_weights(network: Any, *, norms: bool = True) -> Any:
    """The network, frozen, its weights far from a fresh one's; those of norms too, if they may."""
    for name, parameter in network.named_parameters():
        if norms or "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.15)
    return network.eval().requires_grad_(False)


def tiny_unet(**changes: Any) -> UNet2DConditionModel:
    """A UNet of three levels, each with cross-attention; 0.5 M parameters."""
    torch.manual_seed(0)
    config = {
        "sample_size": 16,
        "block_out_channels": (32, 32, 32),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3,
        "up_block_types": ("CrossAttnUpBlock2D",) * 3,
        "layers_per_block": 1,
        "attention_head_dim": 4,
        "cross_attention_dim": WIDTH,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**{**config, **changes}).eval()


def tiny_text_encoder(kind: Any = CLIPTextModel, **changes: Any) -> Any:
    """A CLIP text encoder of two layers over CLIP's words."""
    torch.manual_seed(1)
    config = {
        "vocab_size": 49408,
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "projection_dim": WIDTH,
        "hidden_act": "quick_gelu",
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": 49407,
    }
    return kind(CLIPTextConfig(**{**config, **changes})).eval()


def tiny_vae(kind: str = "tiny", **changes: Any) -> AutoencoderKL | AutoencoderTiny:
    """A VAE with 8 pixels to a latent cell: "kl" (AutoencoderKL) or "tiny" (AutoencoderTiny)."""
    torch.manual_seed(2)
    channels = (8, 8, 8, 8)
    if kind == "tiny":
        config: dict[str, Any] = {
            "encoder_block_out_channels": channels,
            "decoder_block_out_channels": channels,
            "num_encoder_blocks": (1, 1, 1, 1),
            "num_decoder_blocks": (1, 1, 1, 1),
        }
        return AutoencoderTiny(**{**config, **changes}).eval()
    config = {
        "block_out_channels": channels,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "norm_num_groups": 4,
        "latent_channels": 4,
    }
    return AutoencoderKL(**{**config, **changes}).eval()


def tiny_xl() -> SimpleNamespace:
    """The networks of Stable Diffusion XL: two encoders, and a UNet that is told the size.

    clip_l is 32 wide, clip_g 48 with a pooled output of 24; the first level has no attention, the
    second one block a stack and the third three.
    """
    encoders = {
        "clip_l": tiny_text_encoder(num_hidden_layers=3),
        "clip_g": tiny_text_encoder(
            CLIPTextModelWithProjection,
            hidden_size=48,
            num_hidden_layers=3,
            projection_dim=24,
            hidden_act="gelu",
            pad_token_id=0,
        ),
    }
    unet = tiny_unet(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 3),
        use_linear_projection=True,
        cross_attention_dim=32 + 48,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24 + 6 * 8,
    )
    return SimpleNamespace(unet=unet, text_encoders=encoders)


def tiny_t5() -> T5EncoderModel:
    """A T5 encoder of two layers, 48 wide, over the words of `t5_tokenizer`."""
    torch.manual_seed(4)
    config = T5Config(
        vocab_size=len(T5_WORDS),
        d_model=48,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        is_gated_act=True,
    )
    return T5EncoderModel(config).eval()


T5_WORDS = (
    *("<pad>", "</s>", "<unk>", "\u2581", "\u2581a", "\u2581photo", "\u2581of", "\u2581woman"),
    *("\u2581person", "\u2581in", "\u2581the", "\u2581style", ",", ".", *map(chr, range(97, 123))),
)


def t5_tokenizer(folder: Path) -> Any:
    """T5's tokenizer with a few words, written as a folder of a model has it, and read again."""
    words = Tokenizer(
        Unigram([(word, -1.0 - 0.1 * i) for i, word in enumerate(T5_WORDS)], unk_id=2)
    )
    words.pre_tokenizer = Metaspace()
    words.decoder = MetaspaceDecoder()
    words.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    folder.mkdir(parents=True, exist_ok=True)
    words.save(str(folder / "tokenizer.json"))
    names = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "extra_ids": 0}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return T5TokenizerFast.from_pretrained(folder)


def tiny_flux(**changes: Any) -> FluxTransformer2DModel:
    """A transformer of Flux.1 dev's kind: two double blocks and two single ones, 32 wide."""
    torch.manual_seed(5)
    config: dict[str, Any] = {
        "patch_size": 1,
        "in_channels": 16,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 48,
        "pooled_projection_dim": WIDTH,
        "axes_dims_rope": (4, 6, 6),
        "guidance_embeds": True,
    }
    network = FluxTransformer2DModel(**{**config, **changes})
    return random_weights(network)


QWEN_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"
)
"""What Qwen3's chat template makes of a user's message."""


def qwen_tokenizer(folder: Path) -> Any:
    """Qwen's tokenizer without its merges but for a few words, read from a folder as a model's."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    words = ("user", "assistant", "Ġphoto", "Ġof", "Ġwoman", "Ġstyle", "Ġin", "Ġthe")
    vocabulary = {sign: i for i, sign in enumerate(bytes_to_unicode().values())}
    merges: list[tuple[str, str]] = []
    for word in words:
        for end in range(2, len(word) + 1):
            if (piece := word[:end]) not in vocabulary:
                vocabulary[piece] = len(vocabulary)
                merges.append((word[: end - 1], word[end - 1]))
    folder.mkdir(parents=True, exist_ok=True)
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=merges,
        additional_special_tokens=list(special[1:]),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    tokenizer.chat_template = QWEN_TEMPLATE
    tokenizer.save_pretrained(folder)
    return Qwen2Tokenizer.from_pretrained(folder)


def tiny_qwen(**changes: Any) -> Qwen3Model:
    """A Qwen3 of three layers, 48 wide, over the words of `qwen_tokenizer`."""
    torch.manual_seed(6)
    config: dict[str, Any] = {
        "vocab_size": 320,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    }
    network = Qwen3Model(Qwen3Config(**{**config, **changes}))
    return random_weights(network, norms=False)


def tiny_zimage(**changes: Any) -> ZImageTransformer2DModel:
    """A transformer of Z-Image's kind: four layers of two heads, 32 wide."""
    torch.manual_seed(7)
    config: dict[str, Any] = {
        "in_channels": 4,
        "dim": 32,
        "n_layers": 4,
        "n_refiner_layers": 1,
        "n_heads": 2,
        "n_kv_heads": 2,
        "cap_feat_dim": 48,
        "axes_dims": [4, 6, 6],
        "axes_lens": [256, 32, 32],
    }
    network = ZImageTransformer2DModel(**{**config, **changes})
    return random_weights(network)


def tiny_qwen_vl(**changes: Any) -> Qwen2_5_VLForConditionalGeneration:
    """A Qwen2.5-VL of three layers, 48 wide, over the words of `qwen_tokenizer`; it can see."""
    torch.manual_seed(8)
    words: dict[str, Any] = {
        "vocab_size": 320,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1000000.0,
            "mrope_section": [2, 2, 2],
        },
    }
    eyes = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": 48,
    }
    config = Qwen2_5_VLConfig(text_config={**words, **changes}, vision_config=eyes)
    network = Qwen2_5_VLForConditionalGeneration(config)
    return random_weights(network, norms=False)


def tiny_qwen_image(**changes: Any) -> QwenImageTransformer2DModel:
    """A transformer of Qwen-Image's kind: four blocks of two heads, 32 wide."""
    torch.manual_seed(9)
    config: dict[str, Any] = {
        "in_channels": 16,
        "out_channels": 4,
        "num_layers": 4,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 48,
        "axes_dims_rope": (4, 6, 6),
    }
    network = QwenImageTransformer2DModel(**{**config, **changes})
    return random_weights(network)


def tiny_qwen3_vl(**changes: Any) -> Qwen3VLModel:
    """A Qwen3-VL of 36 layers, as many as Krea 2 reads, 32 wide; it can see."""
    torch.manual_seed(11)
    words: dict[str, Any] = {
        "vocab_size": 320,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 36,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5000000.0,
            "mrope_section": [4, 2, 2],
        },
    }
    eyes = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": 32,
        "deepstack_visual_indexes": [0],
    }
    network = Qwen3VLModel(Qwen3VLConfig(text_config={**words, **changes}, vision_config=eyes))
    return random_weights(network, norms=False)


def tiny_krea2(**changes: Any) -> Krea2Transformer2DModel:
    """A transformer of Krea 2's kind: four blocks of four heads in two groups, 64 wide."""
    torch.manual_seed(12)
    config: dict[str, Any] = {
        "in_channels": 16,
        "num_layers": 4,
        "attention_head_dim": 16,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "timestep_embed_dim": 32,
        "text_hidden_dim": 32,
        "text_num_attention_heads": 2,
        "text_num_key_value_heads": 2,
        "text_intermediate_size": 48,
        "axes_dims_rope": (4, 6, 6),
    }
    network = Krea2Transformer2DModel(**{**config, **changes})
    return random_weights(network)


def tiny_film_vae() -> AutoencoderKLQwenImage:
    """A VAE of Qwen-Image's kind, whose four channels have scales of their own."""
    torch.manual_seed(10)
    return (
        AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            latents_mean=[0.1, -0.3, 0.2, 0.0],
            latents_std=[1.5, 0.7, 2.0, 1.0],
        )
        .eval()
        .requires_grad_(False)
    )


def dino_weights(
    width: int = 64, layers: int = 2, patch: int = 8, grid: int = 4, *, second: bool = False
) -> dict[str, torch.Tensor]:
    """Random weights under the names of torch hub's DINO, or of DINOv2; it looks closely."""
    torch.manual_seed(11)
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + grid**2, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    linears = (("attn.qkv", 3, 1), ("attn.proj", 1, 1), ("mlp.fc1", 4, 1), ("mlp.fc2", 1, 4))
    for block in (f"blocks.{i}." for i in range(layers)):
        for name in ("norm1", "norm2"):
            shapes |= {f"{block}{name}.weight": (width,), f"{block}{name}.bias": (width,)}
        for name, to, of in linears:
            shapes |= {f"{block}{name}.weight": (to * width, of * width)}
            shapes |= {f"{block}{name}.bias": (to * width,)}
        if second:
            shapes |= {f"{block}ls1.gamma": (width,), f"{block}ls2.gamma": (width,)}
    if second:
        shapes["mask_token"] = (1, width)
    weights = {name: torch.randn(shape) / 8 for name, shape in shapes.items()}
    return weights | {"patch_embed.proj.weight": 4 * weights["patch_embed.proj.weight"]}


@pytest.fixture
def dino(tmp_path: Path) -> Dino:
    """A tiny DINO read from a file of torch hub's form."""
    file = tmp_path / "dino_vitbase8_pretrain.pth"
    torch.save(dino_weights(), file)
    return load_dino(file)


def noise_schedule(prediction: Prediction = "epsilon") -> Schedule:
    """Stable Diffusion's schedule."""
    return Schedule(DiscreteLevels(DDIMScheduler(**BETAS).alphas_cumprod), prediction)


@pytest.fixture(scope="session")
def tiny() -> SimpleNamespace:
    """The builders of the tiny parts: tiny.unet(...), .text_encoder(...), .vae(kind, ...)."""
    return SimpleNamespace(
        dino_weights=dino_weights,
        unet=tiny_unet,
        text_encoder=tiny_text_encoder,
        vae=tiny_vae,
        schedule=noise_schedule,
        xl=tiny_xl,
        flux=tiny_flux,
        t5=tiny_t5,
        t5_tokenizer=t5_tokenizer,
        qwen=tiny_qwen,
        qwen_tokenizer=qwen_tokenizer,
        zimage=tiny_zimage,
        qwen_vl=tiny_qwen_vl,
        qwen_image=tiny_qwen_image,
        qwen3_vl=tiny_qwen3_vl,
        krea2=tiny_krea2,
        film_vae=tiny_film_vae,
    )


@pytest.fixture
def make_backbone(tokenizer: CLIPTokenizer) -> Callable[..., DiffusersBackbone]:
    """Build a tiny backbone: make_backbone(prediction, vae="kl", unet={...}, ...).

    A dictionary changes a part's config; a module takes the part's place.
    """

    def make(
        prediction: Prediction = "epsilon",
        *,
        vae: Any = "tiny",
        decoder: Any = None,
        unet: Any = None,
        text_encoder: Any = None,
    ) -> DiffusersBackbone:
        return DiffusersBackbone(
            unet=tiny_unet(**(unet or {})) if isinstance(unet, dict | None) else unet,
            vae=tiny_vae(vae) if isinstance(vae, str) else vae,
            text_encoders={"clip_l": tiny_text_encoder(**(text_encoder or {}))},
            tokenizers={"clip_l": tokenizer},
            schedule=noise_schedule(prediction),
            decoder=decoder,
        )

    return make


@pytest.fixture
def backbone(make_backbone: Callable[..., DiffusersBackbone]) -> DiffusersBackbone:
    """A tiny backbone with AutoencoderTiny, predicting epsilon; images of 128 px -> 16x16."""
    return make_backbone()


@pytest.fixture
def xl_backbone(tokenizer: CLIPTokenizer) -> DiffusersBackbone:
    """A tiny Stable Diffusion XL; images of 128 px -> 16x16."""
    parts = tiny_xl()
    return DiffusersBackbone(
        unet=parts.unet,
        vae=tiny_vae("kl", scaling_factor=0.13025),
        text_encoders=parts.text_encoders,
        tokenizers=dict.fromkeys(parts.text_encoders, tokenizer),
        schedule=noise_schedule(),
    )


@pytest.fixture
def flux_backbone(tokenizer: CLIPTokenizer, tmp_path: Path) -> DiffusersBackbone:
    """A tiny Flux.1 dev; images of 128 px -> 16x16 cells -> 8x8 places."""
    return DiffusersBackbone(
        unet=tiny_flux(),
        vae=tiny_vae("kl", scaling_factor=0.3611, shift_factor=0.1159),
        text_encoders={"clip_l": tiny_text_encoder(), "t5xxl": tiny_t5()},
        tokenizers={"clip_l": tokenizer, "t5xxl": t5_tokenizer(tmp_path / "t5")},
        schedule=Schedule(FlowLevels(shift=3.0), "flow"),
    )


@pytest.fixture
def zimage_backbone(tmp_path: Path) -> DiffusersBackbone:
    """A tiny Z-Image; images of 128 px -> 16x16 cells -> 8x8 places."""
    return DiffusersBackbone(
        unet=tiny_zimage(),
        vae=tiny_vae("kl", scaling_factor=0.3611, shift_factor=0.1159),
        text_encoders={"qwen3_4b": tiny_qwen()},
        tokenizers={"qwen3_4b": qwen_tokenizer(tmp_path / "qwen")},
        schedule=Schedule(FlowLevels(shift=3.0), "flow"),
    )


@pytest.fixture
def qwen_image_backbone(tmp_path: Path) -> DiffusersBackbone:
    """A tiny Qwen-Image; images of 128 px -> 16x16 cells -> 8x8 places."""
    return DiffusersBackbone(
        unet=tiny_qwen_image(),
        vae=tiny_film_vae(),
        text_encoders={"qwen25_7b": tiny_qwen_vl().model.language_model},
        tokenizers={"qwen25_7b": qwen_tokenizer(tmp_path / "qwen")},
        schedule=Schedule(FlowLevels(shift=2.46), "flow"),
    )


@pytest.fixture
def krea2_backbone(tmp_path: Path) -> DiffusersBackbone:
    """A tiny Krea 2; images of 128 px -> 16x16 cells -> 8x8 places."""
    return DiffusersBackbone(
        unet=tiny_krea2(),
        vae=tiny_film_vae(),
        text_encoders={"qwen3vl_4b": tiny_qwen3_vl().language_model},
        tokenizers={"qwen3vl_4b": qwen_tokenizer(tmp_path / "qwen")},
        schedule=Schedule(FlowLevels(shift=3.16), "flow"),
    )


@pytest.fixture
def base(make_backbone: Callable[..., DiffusersBackbone], tmp_path: Path) -> Path:
    """A tiny diffusers folder."""
    return save_base(make_backbone(vae="kl"), tmp_path / "base")


SMALL = {
    "block_out_channels": (32,),
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
}
"""A UNet of one level, for what runs in other processes; its recipes need refocus.factors=[1]."""


@pytest.fixture
def small_base(make_backbone: Callable[..., DiffusersBackbone], tmp_path: Path) -> Path:
    """A diffusers folder whose UNet has one level."""
    return save_base(make_backbone(vae="kl", unet=SMALL), tmp_path / "base")


def save_base(backbone: DiffusersBackbone, folder: Path) -> Path:
    """A backbone as a diffusers folder."""
    backbone.unet.save_pretrained(folder / "unet")
    backbone.vae.save_pretrained(folder / "vae")
    backbone.text_encoders["clip_l"].save_pretrained(folder / "text_encoder")
    backbone.tokenizers["clip_l"].save_pretrained(folder / "tokenizer")
    DDIMScheduler(**BETAS).save_pretrained(folder / "scheduler")
    parts = {
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
    }
    index = {part: ["library", kind] for part, kind in parts.items()}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


_PLANNED = (
    "test_train_then_sample",
    "test_raw_photos_are_enough",
    "test_a_thing_is_trained_without_a_face[alpha]",
)


@pytest.fixture(autouse=True)
def _unplanned(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No rehearsal before `train`, which takes longer than a tiny training; but in few tests."""
    if request.node.name not in _PLANNED and request.path.stem != "test_cli_plan":
        monkeypatch.setattr("magicapture.cli.training.announced", lambda *_: None)
