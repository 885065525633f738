"""Files of other kinds are named as what they are, and files of other families as theirs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from magicapture.adapters import Adapter, load_adapter
from magicapture.backbones import DiffusersBackbone
from magicapture.errors import InputError
from magicapture.sampling import adapted

BLOCK = "mid_block.attentions.0.transformer_blocks.0"
FLAT = "lora_unet_" + BLOCK.replace(".", "_")


def pair(key: str, width: int = 768, out: int = 8) -> dict[str, torch.Tensor]:
    """lora_down and lora_up of rank 2."""
    return {
        f"{key}.lora_down.weight": torch.ones(2, width),
        f"{key}.lora_up.weight": torch.ones(out, 2),
    }


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("lora_unet_double_blocks_0_img_attn_proj.lora_down.weight", "Flux"),
        ("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", "Flux"),
        ("lora_transformer_single_transformer_blocks_0_attn_to_q.lora_up.weight", "Flux"),
        ("diffusion_model.single_blocks.3.linear1.lora_A.weight", "Flux"),
        ("lora_unet_joint_blocks_0_context_block_attn_qkv.lora_down.weight", "Diffusion 3"),
        ("lora_te3_encoder_block_0_layer_0_SelfAttention_k.alpha", "Diffusion 3"),
        ("transformer.transformer_blocks.0.attn.to_q.lora_A.weight", "a transformer"),
        ("diffusion_model.blocks.0.cross_attn.k.lora_A.weight", "Wan"),
        ("lora_unet__blocks_0_cross_attn_k.lora_down.weight", "Wan"),
        ("lora_prior_unet_down_blocks_0_1.lora_down.weight", "Cascade"),
        ("lycoris_down_blocks_0_attentions_0_proj_in.lora_down.weight", "LyCORIS"),
        (f"{FLAT}_attn2_to_k.hada_w1_a", "LoHa"),
        (f"{FLAT}_attn2_to_k.lokr_w1", "LoKr"),
        (f"{FLAT}_attn2_to_k.dora_scale", "DoRA"),
        (f"unet.{BLOCK}.attn2.to_k.lora_magnitude_vector", "DoRA"),
        (f"{FLAT}_attn2_to_k.oft_blocks", "OFT"),
        (f"{FLAT}_attn2_to_k.a1.weight", "GLoRA"),
        (f"{FLAT}_attn2_to_k.on_input", r"\(IA\)3"),
        (f"{FLAT}_attn2_to_k.diff", "full-rank"),
        (f"{FLAT}_proj_in.lora_mid.weight", "Tucker"),
        ("down_blocks.0.motion_modules.0.temporal_transformer.to_q.lora_A.weight", "AnimateDiff"),
        ("model.diffusion_model.out.2.weight", "whole checkpoint"),
        ("control_model.input_blocks.0.0.weight", "ControlNet"),
        ("lllite_unet_input_blocks_4_1.down.0.weight", "ControlNet"),
        ("image_proj.proj.weight", "IP-Adapter"),
        ("decoder.conv_in.weight", "VAE"),
        ("time_embedding.linear_1.weight", "UNet"),
        ("text_model.encoder.layers.0.self_attn.q_proj.weight", "text encoder"),
        ("t5base", "not CLIP"),
        ("qwen3_4b", "not CLIP"),
    ],
)
def test_each_kind_has_a_name(tmp_path: Path, key: str, what: str) -> None:
    path = tmp_path / "a.safetensors"
    for others in ({}, pair(f"{FLAT}_attn2_to_k")):  # among a LoRA's layers as well
        save_file({**others, key: torch.ones(2, 8)}, path)
        with pytest.raises(
            InputError, match=rf"a\.safetensors is an? .*{what}.*it holds"
        ) as caught:
            load_adapter(path)
        assert key in str(caught.value)


@pytest.mark.parametrize(
    "key",
    [
        f"{FLAT}_attn2_to_k",
        f"unet.{BLOCK}.attn2.to_k",
        "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k",
    ],
)
def test_loras_for_stable_diffusion_are_none_of_them(tmp_path: Path, key: str) -> None:
    save_file(pair(key), tmp_path / "a.safetensors")
    assert list(load_adapter(tmp_path / "a.safetensors").lora) == [f"unet.{BLOCK}.attn2.to_k"]


TEXT = "text_model_encoder_layers_0_self_attn_q_proj"
XL_TEXT = {**pair(f"lora_te1_{TEXT}", 768), **pair(f"{FLAT}_attn2_to_k", 2048)}


@pytest.mark.parametrize(
    ("tensors", "metadata", "family"),
    [
        (pair(f"{FLAT}_attn2_to_v", 768), {}, "sd1"),
        (pair(f"{FLAT}_attn2_to_v", 1024), {}, "sd2"),
        (pair(f"{FLAT}_attn2_to_v", 2048), {}, "sdxl"),
        (XL_TEXT, {}, "sdxl"),  # the text encoder's 768 comes first
        (pair(f"lora_te_{TEXT}", 768), {}, "sd1"),
        (pair(f"lora_te_{TEXT}", 1024), {}, "sd2"),
        (pair(f"lora_te1_{TEXT}", 768), {}, "sdxl"),
        (pair(f"lora_te2_{TEXT}", 1280), {}, "sdxl"),
        (pair(f"lora_te_{TEXT}", 768), {"ss_base_model_version": "sdxl_base_v1-0"}, "sdxl"),
        (pair(FLAT.replace("_blocks_0", "_blocks_7") + "_attn1_to_q", 1280), {}, "sdxl"),
        (pair(f"{FLAT}_attn1_to_q", 1280), {"ss_base_model_version": "sd_v1"}, "sd1"),
        (
            pair(f"{FLAT}_attn1_to_q", 1280),
            {"modelspec.architecture": "stable-diffusion-v2-768-v/lora"},
            "sd2",
        ),
    ],
)
def test_a_foreign_lora_tells_its_family(
    tmp_path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str], family: str
) -> None:
    save_file(tensors, tmp_path / "a.safetensors", metadata)
    assert load_adapter(tmp_path / "a.safetensors").family == family


def test_a_lora_that_fits_several_families_is_refused(tmp_path: Path) -> None:
    save_file(pair(f"{FLAT}_attn1_to_q", 1280), tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"Stable Diffusion 1\.x.*Stable Diffusion 2\.x"):
        load_adapter(tmp_path / "a.safetensors")


def test_a_lora_of_two_families_is_refused(tmp_path: Path) -> None:
    mixed = {**pair(f"{FLAT}_attn2_to_k", 768), **pair(f"{FLAT}_attn2_to_v", 1024)}
    save_file(mixed, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"mixes base models.*1\.x.*1024 for Stable Diffusion 2"):
        load_adapter(tmp_path / "a.safetensors")


L, G = torch.ones(2, 768), torch.ones(2, 1280)
XL_NEEDS = "The token 'ada' has vectors for {}; Stable Diffusion XL needs clip_l and clip_g"


@pytest.mark.parametrize(
    ("width", "embedding", "message"),
    [
        (768, {"emb_params": torch.ones(1, 1024)}, r"mixes base models.*1\.x.*Diffusion 2\.x"),
        (768, {"clip_l": L, "clip_g": G}, r"mixes base models.*1\.x.*Diffusion XL"),
        (1024, {"emb_params": L}, r"mixes base models.*2\.x.*Diffusion 1\.x or .*XL"),
        (1024, {"clip_l": L, "clip_g": G}, r"mixes base models.*2\.x.*Diffusion XL"),
        (2048, {"emb_params": torch.ones(1, 1024)}, r"mixes base models.*XL.*Diffusion 2\.x"),
        (2048, {"emb_params": L}, XL_NEEDS.format("clip_l")),
        (2048, {"clip_l": L}, XL_NEEDS.format("clip_l")),
        (2048, {"clip_g": G}, XL_NEEDS.format("clip_g")),
    ],
)
def test_embeddings_of_another_family_than_the_loras_are_refused(
    tmp_path: Path, width: int, embedding: dict[str, torch.Tensor], message: str
) -> None:
    lora = pair(f"{FLAT}_attn2_to_k", width)
    save_file(lora, tmp_path / "a.safetensors")
    save_file(embedding, tmp_path / "ada.safetensors")
    with pytest.raises(InputError, match=rf"a\.safetensors.*{message}"):
        load_adapter(tmp_path / "a.safetensors", [tmp_path / "ada.safetensors"])
    bundle = {f"bundle_emb.ada.{key}": of for key, of in embedding.items()}
    save_file({**lora, **bundle}, tmp_path / "b.safetensors")
    with pytest.raises(InputError, match=rf"b\.safetensors.*{message}"):
        load_adapter(tmp_path / "b.safetensors")


@pytest.mark.parametrize(
    ("embedding", "message"),
    [
        ({"clip_g": G}, XL_NEEDS.format("clip_g")),
        ({"clip_l": L, "clip_g": L.clone()}, r"width 768 for clip_g; expected 1280 \(.*XL\)"),
        ({"clip_l": L, "clip_g": G[:1].clone()}, "1 for clip_g and 2 for clip_l; expected as many"),
        ({"emb_params": G}, r"width 1280 for clip_l; expected 768 \(.*1\.x.*1024 \(.*2\.x"),
    ],
)
def test_half_an_embedding_is_no_embedding(
    tmp_path: Path, embedding: dict[str, torch.Tensor], message: str
) -> None:
    save_file(embedding, tmp_path / "ada.safetensors")
    with pytest.raises(InputError, match=rf"ada\.safetensors.*{message}"):
        load_adapter(tmp_path / "ada.safetensors")


def test_a_lora_that_was_read_is_refused_by_a_base_model_of_another_family(
    tmp_path: Path, backbone: DiffusersBackbone
) -> None:
    """By name, before layers or sizes are looked at."""
    for family, width, name in (("sd2", 1024, r"2\.x"), ("sdxl", 2048, "XL")):
        save_file(pair(f"{FLAT}_attn2_to_k", width), tmp_path / "a.safetensors")
        adapter = load_adapter(tmp_path / "a.safetensors")
        match = rf"is for Stable Diffusion {name} and the base model is Stable Diffusion 1\.x"
        with pytest.raises(InputError, match=match), adapted(backbone, adapter):
            pytest.fail("the LoRA was applied")
        sd1 = Adapter({}, {}, "sd1")
        with pytest.raises(InputError, match=rf"1\.x and the base model is .* {name}"):
            sd1.check_family(family)
