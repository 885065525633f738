"""The LoRA file of a run, byte for byte as it was before layers had parts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from magicapture.adapters import load_adapter, save_adapter
from magicapture.adapters import metadata as metadata_module
from magicapture.adapters.adapter import Adapter
from magicapture.config import LoraSettings
from magicapture.lora import target_names, text_target_names
from magicapture.tokens import Concept
from magicapture.training.loras import Loras

GOLDEN = {
    "sd1": "8173219c2d882d3ac86822b54b9d0565b5f5914eead5feec2d1849626b5ac1e4",
    "sd2": "964c70e2cb738fb7a6c7d6698d42dcf9c334493e17da6ed69b58f11af39680d8",
    "sdxl": "888920264d46fde8debccbdde26ab690e99f1a24f1e81af78a2ebe872c398674",
}
ALPHA = 3.0


def numbers(*shape: int, start: int) -> torch.Tensor:
    """Numbers that every machine makes alike."""
    count = torch.Size(shape).numel()
    return ((torch.arange(count) * 7 + start) % 64 - 32).float().reshape(shape) / 256


@pytest.mark.parametrize("family", GOLDEN)
def test_a_runs_file_is_that_of_old(
    make_backbone: Callable[..., Any],
    xl_backbone: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
) -> None:
    monkeypatch.setattr(metadata_module, "__version__", "golden")
    backbone = make_backbone(unet={"use_linear_projection": family == "sd2"})
    if family == "sdxl":
        backbone = xl_backbone
    parts = {
        "unet": (backbone.unet, target_names(backbone.unet, "all_linear")),
        **{key: (of, text_target_names(of)) for key, of in backbone.text_encoders.items()},
    }
    state = {
        part: {
            name: (
                numbers(2, module.get_submodule(name).in_features, start=index),
                numbers(module.get_submodule(name).out_features, 2, start=index + 1),
                ALPHA,
            )
            for index, name in enumerate(names)
        }
        for part, (module, names) in parts.items()
    }
    loras = Loras(backbone, LoraSettings(), seed=0)
    loras.load_state_dict(state)
    vectors = {
        key: numbers(2, of.config.hidden_size, start=5)
        for key, of in backbone.text_encoders.items()
    }
    adapter = Adapter(
        loras.weights(), {"ada": vectors}, family, None, (Concept("ada", "subject"),), {}
    )
    path = save_adapter(adapter, tmp_path, tmp_path, "golden").lora
    assert hashlib.sha256(path.read_bytes()).hexdigest() == GOLDEN[family]
    for part, values in load_adapter(path, [tmp_path]).lora.items():
        assert torch.equal(values.down, adapter.lora[part].down)
        assert torch.equal(values.up, adapter.lora[part].up)
