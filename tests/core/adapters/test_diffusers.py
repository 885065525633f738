"""diffusers' form: what its own `save_lora_weights` writes is read; and it takes our embeddings."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, StableDiffusionPipeline
from peft import inject_adapter_in_model
from peft.utils import get_peft_model_state_dict

from magicapture.adapters import load_adapter, save_adapter
from magicapture.adapters.adapter import Adapter
from magicapture.adapters.diffusers import to_diffusers
from magicapture.lora import LoraWeights
from magicapture.parts import Part, split


@pytest.mark.parametrize("told", [False, True])
def test_what_diffusers_saves_is_read(tmp_path: Path, foreign: SimpleNamespace, told: bool) -> None:
    """Its keys have no alpha: it stands in the metadata of newer files, else it is the rank."""
    parts, layers, configs = foreign.models(), {}, {}
    for part, model in parts.items():
        config = foreign.config_for(part, lora_alpha=1 if told else 2)
        inject_adapter_in_model(config, model)
        layers[f"{part}_lora_layers"] = get_peft_model_state_dict(foreign.randomised(model))
        configs[f"{part}_lora_adapter_metadata"] = model.peft_config["default"].to_dict()
    StableDiffusionPipeline.save_lora_weights(tmp_path, **layers, **(configs if told else {}))
    adapter = load_adapter(tmp_path / "pytorch_lora_weights.safetensors")
    assert adapter.family == "sd1"
    theirs = foreign.put_out(*parts.values())
    for mine, own in zip(foreign.drawn_with(adapter), theirs, strict=True):
        assert (mine - own).abs().max() < 1e-5


def test_a_pipeline_takes_the_embeddings(adapter: Adapter, tmp_path: Path, pipeline: Any) -> None:
    path = save_adapter(adapter, tmp_path, tmp_path, "portrait").embeddings[0]
    pipeline.load_textual_inversion(path, token="<ada>")
    prompt = pipeline.maybe_convert_prompt("a photo of <ada>", pipeline.tokenizer)
    ids = pipeline.tokenizer(prompt).input_ids[4:-1]
    table = pipeline.text_encoder.get_input_embeddings().weight
    assert torch.equal(table[ids], adapter.tokens["ada"]["clip_l"])


def test_its_flux_takes_the_parts_of_fused_layers() -> None:
    """What its own loader makes of the file is what adding the rows of B A to the weights does."""
    torch.manual_seed(0)
    flux = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=8,
        axes_dims_rope=(2, 2, 4),
    ).eval()
    fused = {
        16 * 3: [f"transformer_blocks.0.attn.to_{p}" for p in "qkv"],
        16 * 7: [f"single_transformer_blocks.0.{n}" for n in ("attn.to_q", "attn.to_k")]
        + [f"single_transformer_blocks.0.{n}" for n in ("attn.to_v", "proj_mlp")],
    }
    layers, by_hand = {}, copy.deepcopy(flux)
    for rows, names in fused.items():
        starts = range(0, 16 * len(names), 16)
        stops = (*starts[1:], rows)
        parts = [Part(n, slice(*cut)) for n, *cut in zip(names, starts, stops, strict=True)]
        lora = LoraWeights(torch.randn(4, 16), torch.randn(rows, 4), 2.0)
        layers |= split(lora, parts)
        for part in parts:
            by_hand.get_submodule(part.name).weight.data += (0.5 * lora.up @ lora.down)[part.rows]

    def drawn(model: FluxTransformer2DModel) -> torch.Tensor:
        random = torch.Generator().manual_seed(1)
        shapes = {"hidden_states": (1, 9, 4), "encoder_hidden_states": (1, 5, 12)}
        shapes |= {"pooled_projections": (1, 8), "img_ids": (9, 3), "txt_ids": (5, 3)}
        inputs = {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}
        with torch.no_grad():
            return model(**inputs, timestep=torch.tensor([0.5])).sample

    plain, expected = drawn(flux), drawn(by_hand)
    file = to_diffusers({f"transformer.{name}": of for name, of in layers.items()})
    assert len(file) == 2 * 7
    flux.load_lora_adapter(file, prefix="transformer")
    assert (drawn(flux) - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (plain - expected).abs().max() > 0.1 * expected.abs().max()
