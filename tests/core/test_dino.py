"""DINO from every file it comes in, against an independent vision transformer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from magicapture.dino import load_dino
from magicapture.errors import InputError, StorageError
from magicapture.faces.find import best, files, inventory, places

MEAN = torch.tensor((0.485, 0.456, 0.406))[:, None, None]
STD = torch.tensor((0.229, 0.224, 0.225))[:, None, None]


def reference(weights: dict[str, Tensor], images: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """[CLS] and the last layer's keys, by the formulas of the vision transformer."""
    w = weights
    width = w["cls_token"].shape[-1]
    x = F.conv2d((images - MEAN) / STD, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], 8)
    x = x.flatten(2).mT
    x = torch.cat([w["cls_token"].expand(len(x), -1, -1), x], dim=1) + w["pos_embed"]
    keys = x
    for i in range(2):
        b = f"blocks.{i}."

        def scale(name: str, values: Tensor, b: str = b) -> Tensor:
            return values * w[f"{b}{name}.gamma"] if f"{b}{name}.gamma" in w else values

        h = F.layer_norm(x, (width,), w[f"{b}norm1.weight"], w[f"{b}norm1.bias"], 1e-6)
        q, k, v = F.linear(h, w[f"{b}attn.qkv.weight"], w[f"{b}attn.qkv.bias"]).chunk(3, -1)
        keys = k
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        a = ((q @ k.mT) / (width // heads) ** 0.5).softmax(-1) @ v
        a = a.transpose(1, 2).flatten(2)
        x = x + scale("ls1", F.linear(a, w[f"{b}attn.proj.weight"], w[f"{b}attn.proj.bias"]))
        h = F.layer_norm(x, (width,), w[f"{b}norm2.weight"], w[f"{b}norm2.bias"], 1e-6)
        h = F.gelu(F.linear(h, w[f"{b}mlp.fc1.weight"], w[f"{b}mlp.fc1.bias"]))
        x = x + scale("ls2", F.linear(h, w[f"{b}mlp.fc2.weight"], w[f"{b}mlp.fc2.bias"]))
    x = F.layer_norm(x, (width,), w["norm.weight"], w["norm.bias"], 1e-6)
    return x[:, 0], keys[:, 1:]


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("width", [64, 128])
def test_torch_hubs_file_is_seen_with_as_its_formulas_say(second, width, tiny, tmp_path):
    weights, images = tiny.dino_weights(width, second=second), torch.rand(2, 3, 32, 32)
    torch.save(weights, tmp_path / "a.pth")
    seen = load_dino(tmp_path / "a.pth")(images)
    look, keys = reference(weights, images, heads=width // 64)
    torch.testing.assert_close(seen.look, look, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(seen.keys, keys, atol=1e-4, rtol=1e-4)
    assert seen.keys.shape == (2, 16, width)


@pytest.mark.parametrize(("model", "config"), [(ViTModel, ViTConfig), (Dinov2Model, Dinov2Config)])
def test_transformers_folder_and_file(model, config, tmp_path):
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 128}
    made = model(config(**shape, num_attention_heads=4, image_size=32, patch_size=8)).eval()
    made.save_pretrained(tmp_path)
    images = torch.rand(1, 3, 32, 32)
    expected = made((images - MEAN) / STD).last_hidden_state[:, 0]
    for path in (tmp_path, tmp_path / "model.safetensors"):  # the config beside it tells the rest
        torch.testing.assert_close(load_dino(path)(images).look, expected, atol=1e-5, rtol=1e-5)
    # The names that the running transformers gives its own parameters, as well.
    save_file(made.state_dict(), tmp_path / "own.safetensors")
    seen = load_dino(tmp_path / "own.safetensors")(images)
    torch.testing.assert_close(seen.look, expected, atol=1e-5, rtol=1e-5)


def test_pictures_of_another_size_and_a_large_model(tiny, tmp_path):
    torch.save(
        tiny.dino_weights(patch=14, grid=37, second=True), tmp_path / "v2.pth"
    )  # DINOv2's 518 px
    large = load_dino(tmp_path / "v2.pth")
    assert (large.side, large.grid) == (224, (16, 16))
    assert large(torch.rand(1, 3, 100, 100)).keys.shape == (1, 256, 64)
    torch.save(tiny.dino_weights(patch=16, grid=24), tmp_path / "v1.pth")  # 384 px
    assert load_dino(tmp_path / "v1.pth")(torch.rand(1, 3, 64, 64)).keys.shape == (1, 196, 64)


def test_the_gradient_reaches_the_picture(dino):
    image, way = torch.rand(1, 3, 40, 40), torch.randn(1, 3, 40, 40)
    image.requires_grad_(True)
    dino(image).look.sum().backward()
    with torch.no_grad():
        ahead, behind = (dino(image + step * way).look.sum() for step in (1e-3, -1e-3))
    assert float((image.grad * way).sum()) == pytest.approx(float(ahead - behind) / 2e-3, rel=1e-2)
    assert all(p.grad is None for p in dino.parameters())
    assert not dino.network.get_submodule(dino._key)._forward_hooks


def test_what_is_no_dino_is_refused(tiny, tmp_path):
    weights = tiny.dino_weights()
    save_file({"visual.proj": torch.zeros(3, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="does not hold a DINO"):
        load_dino(tmp_path / "other.safetensors")
    torch.save({**weights, "register_tokens": torch.zeros(1, 4, 64)}, tmp_path / "registers.pth")
    with pytest.raises(InputError, match="unknown, such as register_tokens"):
        load_dino(tmp_path / "registers.pth")
    weights.pop("blocks.1.mlp.fc2.bias")
    torch.save(weights, tmp_path / "cut.pth")
    with pytest.raises(InputError, match=r"lacks 1 of its weights"):
        load_dino(tmp_path / "cut.pth")
    with pytest.raises(StorageError):
        load_dino(tmp_path / "none.pth")


def test_it_is_found_and_listed(tiny, tmp_path):
    folder = tmp_path / "dino"
    folder.mkdir()
    assert "missing  dino_vitbase8_pretrain.pth in models/dino" in inventory(places(tmp_path))
    with pytest.raises(StorageError, match=r"no DINO model\. Put dino_vitbase8_pretrain.pth"):
        best("dino", places(tmp_path))
    torch.save(tiny.dino_weights(), folder / "dino_deitsmall8_pretrain.pth")
    save_file(tiny.dino_weights(), folder / "mine.safetensors")
    save_file({"decoder.weight": torch.zeros(1)}, folder / "other.safetensors")
    where = places(tmp_path)
    assert best("dino", where).name == "dino_deitsmall8_pretrain.pth"
    assert list(files("dino", where)) == ["dino_deitsmall8_pretrain.pth", "mine.safetensors"]
    assert "found    dino_deitsmall8_pretrain.pth" in inventory(where)


def test_the_config_beside_it_is_read_as_data(tiny, tmp_path: Path) -> None:
    save_file(tiny.dino_weights(128), tmp_path / "model.safetensors")
    for heads, text in ((1, json.dumps({"num_attention_heads": 1})), (2, "{}")):
        (tmp_path / "config.json").write_text(text)
        assert load_dino(tmp_path).network.config.num_attention_heads == heads
