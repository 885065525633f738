"""A checkpoint as users load it: detected by ComfyUI, fp16, with the text encoder at full size."""

from __future__ import annotations

import pytest
import torch

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("executor")]


def test_a_loaded_checkpoint_trains_and_stays_as_it_is(pack, checkpoint, ksample):
    import nodes

    parts = nodes.CheckpointLoaderSimple().load_checkpoint(checkpoint)
    loaded = type("Loaded", (), dict(zip(("model", "clip", "vae"), parts, strict=True)))
    picture = ksample(loaded, steps=1)
    tokens = pack("magicapture.tokens")
    backbone = pack.comfy.ComfyBackbone(*parts)
    assert backbone.family == "sd1" and backbone.downscale == 8
    with torch.inference_mode(False):
        start = backbone.word_vectors("clip_l", "woman")
        assert start.shape == (1, 768)
        vectors = tokens.TokenVectors({"ada": {"clip_l": start}})
    before = [p for m in (backbone.unet, parts[1].cond_stage_model) for p in m.parameters()]
    with backbone.training(None):
        conditioning = backbone.encode_prompts([tokens.Prompt("a photo of <ada>")], vectors)
        noisy = torch.randn(1, 4, 8, 8)
        prediction = backbone.predict(noisy, torch.tensor([100]), conditioning)
        x0 = backbone.schedule.to_x0(prediction, noisy, torch.tensor([100]))
        backbone.decode(x0).square().mean().backward()
    assert vectors.get("ada", "clip_l").grad.norm() > 0
    after = [p for m in (backbone.unet, parts[1].cond_stage_model) for p in m.parameters()]
    assert all(a is b for a, b in zip(before, after, strict=True))
    assert torch.equal(picture, ksample(loaded, steps=1))


def test_a_checkpoint_without_text_encoder_or_vae_is_named(pack, checkpoint, tiny):
    """What the stock loader returns for the parts that a file lacks."""
    import folder_paths
    from safetensors.torch import load_file, save_file

    import nodes

    path = folder_paths.get_full_path("checkpoints", checkpoint)
    state = load_file(path)
    unet = {name: value for name, value in state.items() if name.startswith("model.")}
    save_file(unet, path.replace("small", "unet_only"))
    model, clip, vae = nodes.CheckpointLoaderSimple().load_checkpoint("unet_only.safetensors")
    error = pack("magicapture.errors").InputError
    with pytest.raises(error, match="'clip'"):
        pack.comfy.ComfyBackbone(model, clip, vae)
    with pytest.raises(error, match="'vae'"):
        pack.comfy.ComfyBackbone(model, make_wide(tiny), vae)


def make_wide(tiny):
    """The tiny CLIP, passed off as one of the checkpoint's width."""
    encoder = tiny.clip.cond_stage_model.clip_l.transformer
    encoder.set_input_embeddings(torch.nn.Embedding(1, 768))
    return tiny.clip
