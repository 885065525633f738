"""Layers of ComfyUI's networks and the layers that files have for them."""

from __future__ import annotations

import hashlib

import pytest
import torch

pytestmark = pytest.mark.usefixtures("executor")


def numbers(*shape, start):
    """Numbers that every machine makes alike."""
    count = torch.Size(shape).numel()
    return ((torch.arange(count) * 7 + start) % 64 - 32).float().reshape(shape) / 256


@pytest.mark.parametrize(
    ("family", "golden"),
    [
        ("sd1", "b1359ba458110146a40674cee6bdc850eec8105aa9d37a9e80eb015513b410be"),
        ("sd2", "115dee189e6433e5e16629014ac1bed74bf5fa3fcc5868758207f53fe0d2f8cc"),
    ],
)
def test_a_runs_file_is_that_of_old(pack, tiny, tiny_sd2, tmp_path, monkeypatch, family, golden):
    """Byte for byte as it was before layers had parts."""
    monkeypatch.setattr(pack("magicapture.adapters.metadata"), "__version__", "golden")
    models = tiny if family == "sd1" else tiny_sd2
    backbone = pack.comfy.ComfyBackbone(models.model, models.clip, models.vae)
    lora, adapters = pack("magicapture.lora"), pack("magicapture.adapters")
    encoder = backbone.text_encoders["clip_l"]
    parts = {
        "unet": (backbone.unet, lora.target_names(backbone.unet, "all_linear")),
        "clip_l": (encoder, lora.text_target_names(encoder)),
    }
    state = {}
    for part, (module, names) in parts.items():
        state[part] = {}
        for index, name in enumerate(names):
            rows, columns = module.get_submodule(name).weight.shape
            down, up = numbers(2, columns, start=index), numbers(rows, 2, start=index + 1)
            state[part][name] = down, up, 3.0
    settings = pack("magicapture.config").LoraSettings()
    loras = pack("magicapture.training.loras").Loras(backbone, settings, seed=0)
    loras.load_state_dict(state)
    adapter = adapters.Adapter(loras.weights(), {}, family)
    path = adapters.save_adapter(adapter, tmp_path, tmp_path, "golden").lora
    assert hashlib.sha256(path.read_bytes()).hexdigest() == golden
