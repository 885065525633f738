"""A LoRA for a transformer with joint attention: from the layers to files and back, by others too.

The real classes: diffusers' FluxTransformer2DModel and transformers' CLIPTextModel.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from peft import LoraConfig, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from magicapture.adapters import Adapter, load_adapter, save_adapter
from magicapture.adapters.forms import held
from magicapture.backbones import DiffusersBackbone
from magicapture.config import LoraSettings, Phase, Rates
from magicapture.errors import InputError, UnsupportedModelError
from magicapture.families import FAMILIES
from magicapture.lora import LoraWeights, applied, target_names, text_target_names
from magicapture.sampling import adapted
from magicapture.tokens import Concept
from magicapture.training.loras import Loras

WIDTH = 32  # of the tiny text encoder
DOUBLE, SINGLE = "transformer_blocks.0", "single_transformer_blocks.0"


def tiny_flux(heads: int = 2, size: int = 8) -> FluxTransformer2DModel:
    """Two double and two single blocks, heads * size wide."""
    torch.manual_seed(4)
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=8,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=size,
        num_attention_heads=heads,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(size // 4, size // 4, size // 2),
        guidance_embeds=False,
    )
    return model.eval()


wide_flux = partial(tiny_flux, heads=4, size=64)
"""As wide as the family's own, by which files of other programs are told."""


def drawn(model: nn.Module) -> Tensor:
    """What the transformer makes of the same numbers."""
    random = torch.Generator().manual_seed(1)
    shapes = {"hidden_states": (1, 9, 8), "encoder_hidden_states": (1, 5, WIDTH)}
    shapes |= {"pooled_projections": (1, WIDTH), "img_ids": (9, 3), "txt_ids": (5, 3)}
    inputs = {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}
    with torch.no_grad():
        return model(**inputs, timestep=torch.tensor([0.5])).sample


def read(encoder: nn.Module) -> Tensor:
    """What the text encoder makes of the same words."""
    with torch.no_grad():
        return encoder(torch.arange(77)[None]).last_hidden_state


def random_lora(model: nn.Module, names: list[str], part: str) -> dict[str, LoraWeights]:
    """Ranks 2 and 3 in turn, alpha 1.5: alpha / rank is 3/4, and 1/2."""
    random = partial(torch.randn, generator=torch.Generator().manual_seed(8))
    lora = {}
    for index, name in enumerate(names):
        rows, columns = model.get_submodule(name).weight.shape
        layer = f"text_model.{name}" if name.startswith("encoder.") else name
        down, up = random(2 + index % 2, columns) / 4, random(rows, 2 + index % 2) / 4
        lora[f"{part}.{layer}"] = LoraWeights(down, up, 1.5)
    return lora


class Joint(DiffusersBackbone):
    """As much of a backbone as a LoRA asks for: the networks, and what files call their layers."""

    def __init__(self, transformer: nn.Module, encoder: nn.Module, tokenizer: Any) -> None:
        self.family = "doll_flux"
        self._unet, self._text_encoders = transformer, {"clip_l": encoder}
        self.tokenizers = {"clip_l": tokenizer}


@pytest.fixture
def joint(tiny: Any, tokenizer: Any) -> Joint:
    return Joint(tiny_flux(), tiny.text_encoder(), tokenizer)


@pytest.fixture
def doll(joint: Joint) -> Adapter:
    """A LoRA in every linear layer of the blocks and in the text encoder, and one token."""
    flux, encoder = joint.unet, joint.text_encoders["clip_l"]
    names = target_names(flux, "all_linear", "transformer")
    lora = random_lora(flux, names, "transformer")
    lora |= random_lora(encoder, text_target_names(encoder), "clip_l")
    tokens = {"ada": {"clip_l": torch.randn(2, WIDTH)}}
    return Adapter(lora, tokens, "doll_flux", None, (Concept("ada", "subject"),), {"steps": "7"})


def test_targets_are_what_the_picture_asks_of_the_words_all_attention_or_every_layer() -> None:
    flux = tiny_flux()

    def inner(targets: Any) -> tuple[list[str], list[str]]:
        names = target_names(flux, targets, "transformer")
        assert {name.replace("blocks.1.", "blocks.0.") for name in names} == {
            name for name in names if "blocks.0." in name
        }
        both = [
            [n.removeprefix(f"{block}.") for n in names if n.startswith(f"{block}.")]
            for block in (DOUBLE, SINGLE)
        ]
        assert len(names) == 2 * sum(map(len, both))
        return sorted(both[0]), sorted(both[1])

    asked = [f"attn.{p}" for p in ("add_k_proj", "add_v_proj", "to_q")]
    single = [f"attn.to_{p}" for p in "kqv"]
    assert inner("cross") == (asked, single)
    assert inner("cross_kv") == (asked[:2], ["attn.to_k", "attn.to_v"])
    text = [f"attn.{p}" for p in ("add_k_proj", "add_q_proj", "add_v_proj", "to_add_out")]
    attention = [*text, *(f"attn.to_{p}" for p in ("k", "out.0", "q", "v"))]
    assert inner("cross_and_self") == (sorted(attention), single)
    mlps = [f"{ff}.net.{n}" for ff in ("ff", "ff_context") for n in ("0.proj", "2")]
    assert inner("all_linear") == (
        sorted([*attention, *mlps]),
        sorted([*single, "proj_mlp", "proj_out"]),
    )
    with pytest.raises(UnsupportedModelError, match=r"UNet .*FluxTransformer2DModel.*Diffusion XL"):
        target_names(flux, "cross")


def test_a_transformer_has_no_layers_of_a_unet(tiny: Any) -> None:
    with pytest.raises(UnsupportedModelError, match=r"transformer .*UNet2D.*paperdoll transformer"):
        target_names(tiny.unet(), "cross", "transformer")


def test_a_run_names_its_lora_by_the_family(joint: Joint) -> None:
    """The rates keep their names: the transformer's is "unet"."""
    loras = Loras(joint, LoraSettings(rank=2, targets="cross"), seed=0)
    with loras.injected(Phase(rates=Rates(unet=1e-3, text_encoder=1e-3))) as groups:
        assert {group: len(of) for group, of in groups.items()} == {
            "unet": 2 * 2 * (3 + 3),
            "text_encoder": 2 * 2 * 4,
        }
    weights = loras.weights()
    assert f"transformer.{DOUBLE}.attn.add_k_proj" in weights
    assert {key.partition(".")[0] for key in weights} == {"transformer", "clip_l"}
    assert Adapter(weights, {}, "doll_flux").part("transformer").keys() == set(
        target_names(joint.unet, "cross", "transformer")
    )


def test_what_is_saved_is_read_back(doll: Adapter, tmp_path: Path, same: Callable) -> None:
    files = save_adapter(doll, tmp_path, tmp_path, "portrait")
    tensors = load_file(files.lora)
    assert len(tensors) == 2 * len(doll.lora)
    for key, weights in doll.lora.items():
        name = key.replace("clip_l.", "text_encoder.")
        assert torch.equal(tensors[f"{name}.lora_A.weight"], weights.down)
        up = weights.up * (1.5 / weights.rank)
        assert torch.equal(tensors[f"{name}.lora_B.weight"], up)
    same(load_adapter(files.lora, [tmp_path]), files.adapter)
    same(held(doll), files.adapter)
    assert all(of.alpha == of.rank for of in files.adapter.lora.values())
    assert torch.equal(load_file(files.embeddings[0])["emb_params"], doll.tokens["ada"]["clip_l"])
    with safe_open(files.lora, "pt") as file:
        told = file.metadata()
    assert told["magicapture.family"] == "doll_flux"
    assert told["modelspec.architecture"] == "magicapture-doll-flux/lora"
    assert told["ss_base_model_version"] == "magicapture_doll_flux"
    assert told["ss_network_alpha"] == told["ss_network_dim"]


def test_a_bundle_is_read_back(doll: Adapter, tmp_path: Path, same: Callable) -> None:
    files = save_adapter(doll, tmp_path, tmp_path, "portrait", bundle=True)
    same(load_adapter(files.lora), held(doll))


def test_diffusers_draws_with_the_file_what_we_draw(
    doll: Adapter, joint: Joint, tiny: Any, tmp_path: Path
) -> None:
    flux, encoder = joint.unet, joint.text_encoders["clip_l"]
    plain = drawn(flux), read(encoder)
    with adapted(joint, doll):
        ours = drawn(flux), read(encoder)
    assert torch.equal(drawn(flux), plain[0]) and torch.equal(read(encoder), plain[1])

    tensors = load_file(save_adapter(doll, tmp_path, tmp_path, "portrait").lora)
    other, reader = tiny_flux(), tiny.text_encoder()
    other.load_lora_adapter(dict(tensors), prefix="transformer")
    FluxPipeline.load_lora_into_text_encoder(
        dict(tensors), None, reader, prefix="text_encoder", adapter_name="ada"
    )
    for before, mine, theirs in zip(plain, ours, (drawn(other), read(reader)), strict=True):
        assert (mine - theirs).abs().max() < 1e-5 * mine.abs().max()
        assert (mine - before).abs().max() > 0.1 * before.abs().max()


def trained_elsewhere(model: nn.Module, **changes: Any) -> dict[str, Tensor]:
    """A LoRA of PEFT's in the model, with random numbers; its weights by PEFT's names."""
    targets = ["to_q", "add_k_proj", "proj_mlp"]
    config = LoraConfig(**{"r": 2, "lora_alpha": 1, "target_modules": targets, **changes})
    inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape) / 4
    return get_peft_model_state_dict(model)


@pytest.mark.parametrize("told", [False, True])
def test_what_diffusers_saves_is_read(tmp_path: Path, told: bool) -> None:
    """alpha stands in the metadata of newer files, else it is the rank."""
    theirs = wide_flux()
    layers = trained_elsewhere(theirs, lora_alpha=1 if told else 2)
    stated = {"transformer_lora_adapter_metadata": theirs.peft_config["default"].to_dict()}
    FluxPipeline.save_lora_weights(
        tmp_path, transformer_lora_layers=layers, **(stated if told else {})
    )
    adapter = load_adapter(tmp_path / "pytorch_lora_weights.safetensors")
    assert adapter.family == "doll_flux" and adapter.recipe is None
    assert {of.alpha for of in adapter.lora.values()} == {1 if told else 2}
    mine = wide_flux()
    with applied(mine, adapter.part("transformer")):
        assert (drawn(mine) - drawn(theirs)).abs().max() < 1e-5 * drawn(theirs).abs().max()


def test_what_peft_saves_is_read(tmp_path: Path) -> None:
    theirs = wide_flux()
    layers = trained_elsewhere(theirs)
    folder = tmp_path / "transformer"
    folder.mkdir()
    save_file(
        {f"base_model.model.{key}": of.contiguous() for key, of in layers.items()},
        folder / "adapter_model.safetensors",
    )
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 1}))
    for place in (tmp_path, folder):
        adapter = load_adapter(place)
        assert adapter.family == "doll_flux"
        assert {of.alpha for of in adapter.lora.values()} == {1}
    mine = wide_flux()
    with applied(mine, adapter.part("transformer")):
        assert (drawn(mine) - drawn(theirs)).abs().max() < 1e-5 * drawn(theirs).abs().max()


def test_the_familys_width_is_that_of_its_network() -> None:
    from magicapture.paperdoll.networks import transformer

    with torch.device("meta"):
        model = transformer()
    assert model.transformer_blocks[0].attn.to_q.in_features == FAMILIES["doll_flux"].hidden


# -- what is refused -----------------------------------------------------------------------------


def pair(key: str, width: int) -> dict[str, Tensor]:
    return {
        f"{key}.lora_A.weight": torch.ones(2, width),
        f"{key}.lora_B.weight": torch.ones(8, 2),
    }


@pytest.mark.parametrize(
    "start", ["transformer.", "", "diffusion_model.", "lora_transformer_", "lora_unet_"]
)
@pytest.mark.parametrize("layer", [f"{DOUBLE}.attn.to_q", f"{SINGLE}.attn.to_q"])
def test_a_lora_for_another_transformer_is_refused(tmp_path: Path, start: str, layer: str) -> None:
    """Stable Diffusion 3.5 large is 2432 wide, Flux.1 3072."""
    name = start + (layer.replace(".", "_") if start.endswith("_") else layer)
    save_file(pair(name, 2432), tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"a\.safetensors is a LoRA for .*(Flux|Diffusion 3|Qwen)"):
        load_adapter(tmp_path / "a.safetensors")
    save_file(pair(name, 256), tmp_path / "a.safetensors")
    assert list(load_adapter(tmp_path / "a.safetensors").lora) == [f"transformer.{layer}"]
    save_file(pair(name, 3072), tmp_path / "a.safetensors")
    assert load_adapter(tmp_path / "a.safetensors").family == "flux1"


UNET = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"


def test_a_lora_of_two_networks_is_refused(tmp_path: Path) -> None:
    mixed = {**pair(f"transformer.{DOUBLE}.attn.to_q", 256), **pair(UNET, 768)}
    save_file(mixed, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"mixes base models.*transformer and of unet"):
        load_adapter(tmp_path / "a.safetensors")


def test_our_file_with_another_network_than_its_familys_is_refused(
    doll: Adapter, tmp_path: Path
) -> None:
    for family, tensors, message in (
        ("doll_flux", pair(UNET, 768), r"for the paperdoll transformer, but .* Diffusion 1\.x"),
        ("sd1", pair(f"transformer.{DOUBLE}.attn.to_q", 16), r"1\.x, but .*paperdoll transformer"),
    ):
        path = save_adapter(Adapter({}, {}, family), tmp_path, tmp_path, "portrait").lora
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        save_file(tensors, path, metadata)
        with pytest.raises(InputError, match=message):
            load_adapter(path)
    with pytest.raises(InputError, match=r"weights for 'transformer.*sd1 has the parts unet"):
        dataclasses.replace(doll, family="sd1")


def test_base_models_of_another_family_are_refused(
    doll: Adapter, joint: Joint, backbone: DiffusersBackbone
) -> None:
    match = r"is for the paperdoll transformer and the base model is Stable Diffusion 1\.x"
    with pytest.raises(InputError, match=match), adapted(backbone, doll):
        pytest.fail("the LoRA was applied")
    sd1 = Adapter({UNET: LoraWeights(torch.ones(2, 32), torch.ones(32, 2), 1.0)}, {}, "sd1")
    match = r"is for Stable Diffusion 1\.x and the base model is the paperdoll transformer"
    with pytest.raises(InputError, match=match), adapted(joint, sd1):
        pytest.fail("the LoRA was applied")


def test_a_transformer_without_a_layer_of_the_lora_is_refused(joint: Joint) -> None:
    of = LoraWeights(torch.ones(2, 16), torch.ones(16, 2), 1.0)
    adapter = Adapter({"transformer.transformer_blocks.9.attn.to_q": of}, {}, "doll_flux")
    match = r"transformer has no layer transformer_blocks\.9\.attn"
    with pytest.raises(InputError, match=match), adapted(joint, adapter):
        pytest.fail("the LoRA was applied")
