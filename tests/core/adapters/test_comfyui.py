"""Stock ComfyUI takes our files: every key, the same numbers, the embeddings by name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from magicapture.adapters import save_adapter
from magicapture.adapters.adapter import ENCODERS, Adapter
from magicapture.lora import LoraWeights, target_names, text_target_names
from magicapture.paperdoll import networks

pytestmark = pytest.mark.comfyui

FAMILIES = ("sd1", "sd2", "sdxl", "doll_flux")
SCRIPT = Path(__file__).with_name("comfyui_script.py")


def full_size(family: str) -> Adapter:
    """A LoRA of rank 1 over every layer of a real model's names and sizes."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    if family == "doll_flux":
        with torch.device("meta"):
            flux, encoder = networks.transformer(), networks.text_encoder(100, 99)
        names = target_names(flux, "all_linear", "transformer")
        parts = {"transformer": (flux, names), "clip_l": (encoder, text_target_names(encoder))}
        return Adapter(_ones(parts), {}, family)
    changes: dict[str, Any] = {
        "sd1": {"cross_attention_dim": 768},
        "sd2": {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20)},
        "sdxl": {
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 2),
            "up_block_types": (*("CrossAttnUpBlock2D",) * 2, "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
        },
    }[family]
    texts = {"sd1": [(768, 12)], "sd2": [(1024, 23)], "sdxl": [(768, 12), (1280, 32)]}[family]
    with torch.device("meta"):
        unet = UNet2DConditionModel(**changes, use_linear_projection=family != "sd1")
        encoders = {
            key: CLIPTextModelWithProjection(
                CLIPTextConfig(
                    hidden_size=width,
                    num_hidden_layers=depth,
                    intermediate_size=4 * width,
                    num_attention_heads=width // 64,
                )
            )
            for key, (width, depth) in zip(ENCODERS[family], texts, strict=True)
        }
    parts = {"unet": (unet, target_names(unet, "all_linear"))}
    parts |= {key: (encoder, text_target_names(encoder)) for key, encoder in encoders.items()}
    return Adapter(_ones(parts), {}, family)


def _ones(parts: dict[str, tuple[Any, list[str]]]) -> dict[str, LoraWeights]:
    lora = {}
    for part, (model, names) in parts.items():
        for name in names:
            rows, columns = model.get_submodule(name).weight.shape
            layer = f"text_model.{name}" if name.startswith("encoder.") else name
            lora[f"{part}.{layer}"] = LoraWeights(torch.ones(1, columns), torch.ones(rows, 1), 1.0)
    return lora


TWO = {"clip_l": torch.randn(2, 768), "clip_g": torch.randn(2, 1280)}
TOKENS = {"sd1": {"ada": {"clip_l": TWO["clip_l"]}}, "sdxl": {"ada": TWO}}


@pytest.fixture(scope="module")
def answers(comfyui_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What ComfyUI's own code, in a process of its own, makes of files of every kind."""
    folder = tmp_path_factory.mktemp("files")
    requests: dict[str, dict[str, Any]] = {"difference": {"folder": str(folder)}}
    for family in FAMILIES:
        file = save_adapter(full_size(family), folder, folder, family).lora
        requests[f"unloaded {family}"] = {"family": family, "file": str(file)}
    for family, tokens in TOKENS.items():
        place = folder / family
        save_adapter(Adapter({}, tokens, family), place, place, "lora")
        for key, vectors in tokens["ada"].items():
            request = {"folder": str(place), "name": "ada", "width": vectors.shape[1], "key": key}
            requests[f"embedding {family} {key}"] = request
    listed = [{"what": name.split()[0], **request} for name, request in requests.items()]
    done = subprocess.run(
        [sys.executable, SCRIPT, comfyui_path, json.dumps(listed)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(requests, json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_no_key_is_left_unloaded(answers: dict[str, Any], family: str) -> None:
    answer, layers = answers[f"unloaded {family}"], len(full_size(family).lora)
    assert answer == {
        "messages": [],
        "layers": layers,
        "tensors": (2 if family == "doll_flux" else 3) * layers,
    }


def test_stock_patching_gives_the_same_numbers(answers: dict[str, Any]) -> None:
    answer = answers["difference"]
    # W + BA is rounded to float32 once more than W x + B A x: some 1e-6 of the output's size.
    assert answer["stock"] < 1e-4 * answer["effect"]
    assert answer["effect"] > 0.05 * answer["size"]


@pytest.mark.parametrize("family", TOKENS)
def test_embeddings_are_found_by_name(answers: dict[str, Any], family: str) -> None:
    for key, vectors in TOKENS[family]["ada"].items():
        answer = answers[f"embedding {family} {key}"]
        assert answer["shape"] == list(vectors.shape)
        assert answer["sum"] == pytest.approx(vectors.double().sum().item(), rel=1e-12)
