"""Refocusing and MagicFace on Stable Diffusion XL in ComfyUI's samplers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

pytestmark = pytest.mark.usefixtures("executor")

TEXT = "a photo of embedding:xlada woman"


@pytest.fixture
def prompts(pack, make, tiny_xl):
    """Positive with the token marked, and negative."""
    import nodes

    concept = pack("magicapture.tokens").Concept("xlada", "subject", "woman", vectors=2)
    with torch.inference_mode(False):
        generator = torch.Generator().manual_seed(1)
        vectors = {
            key: torch.randn(2, width, generator=generator)
            for key, width in (("clip_l", 32), ("clip_g", 48))
        }
        save_file(vectors, make.embeddings / "xlada.safetensors")
    yield (
        pack.comfy.encode_marked(tiny_xl.clip, TEXT, [concept]),
        nodes.CLIPTextEncode().encode(tiny_xl.clip, "blurred")[0],
    )
    (make.embeddings / "xlada.safetensors").unlink()


def draw(model, positive, negative, steps: int = 3) -> Tensor:
    import nodes

    latent = nodes.EmptyLatentImage().generate(64, 64)[0]
    settings = (3, steps, 4.0, "euler", "normal")
    return nodes.KSampler().sample(model, *settings, positive, negative, latent)[0]["samples"]


@pytest.mark.parametrize("given", [True, False], ids=["mask", "found"])
def test_tokens_are_held(pack, tiny_xl, prompts, given) -> None:
    settings = pack("magicapture.refocusing").RefocusGuidance(
        bias=6.0, gradient=0.03, end=0.7, threshold=0.0, factors=(1, 2)
    )
    with torch.inference_mode(False):
        mask = torch.zeros(1, 1, 64, 64)
        mask[..., 16:48, 16:40] = 1
    plain = draw(tiny_xl.model, *prompts)
    used = pack.comfy.UsedRegions()
    model = pack.comfy.refocus(tiny_xl.model, settings, mask if given else None, used)
    held = draw(model, *prompts)
    assert held.isfinite().all() and (held - plain).abs().max() > 1e-4
    assert torch.equal(draw(model, *prompts), held)
    assert torch.equal(draw(tiny_xl.model, *prompts), plain)
    seen = pack.comfy.look(model, prompts[0], {"samples": held}, [0.0, 0.5])
    assert {shown.token for shown in seen} == {"xlada"}
    if not given:
        assert used.steps[1][1].shape == (8, 8)


def test_references_are_seen(pack, tiny_xl) -> None:
    import nodes

    ours = pack("nodes.magicface")
    text = "a man with a hat"
    with torch.inference_mode(False):
        image = torch.rand(1, 64, 64, 3)
    references = ours.MagiCaptureAddMagicFaceReference.execute(
        "man", "a photo of a man", 3.0, image=image, part="whole picture", photo=1
    )[0]
    model, positive, _ = ours.MagiCaptureApplyMagicFace.execute(
        tiny_xl.model,
        tiny_xl.clip,
        tiny_xl.vae,
        references,
        text,
        reference_size=64,
        switch=0.4,
        stop=1.0,
        others=0.9,
        to_foreground=False,
        region_guidance=True,
        reference_seed=0,
    ).args
    negative = nodes.CLIPTextEncode().encode(tiny_xl.clip, "")[0]
    plain = draw(tiny_xl.model, positive, negative)
    changed = draw(model, positive, negative)
    assert changed.isfinite().all() and (changed - plain).abs().max() > 1e-3
    assert torch.equal(draw(replace(tiny_xl).model, positive, negative), plain)
