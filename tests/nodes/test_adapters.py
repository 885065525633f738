"""An adapter applied without files does in stock nodes what its files would do."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

pytestmark = pytest.mark.usefixtures("executor")


def tokens(width: int = 32) -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(4)
    return {
        name: {"clip_l": torch.randn(count, width, generator=generator) * 0.1}
        for name, count in (("neo", 1), ("noir-2", 3))
    }


def lora() -> dict[str, Tensor]:
    """Weights for one layer of the UNet and one of the text encoder, in kohya's form."""
    generator = torch.Generator().manual_seed(5)
    state = {}
    for name in (
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k",
        "lora_te_text_model_encoder_layers_1_self_attn_q_proj",
    ):
        out = 64 if "unet" in name else 32  # the middle block is twice as wide
        state[f"{name}.lora_down.weight"] = torch.randn(2, 32, generator=generator)
        state[f"{name}.lora_up.weight"] = torch.randn(out, 2, generator=generator)
        state[f"{name}.alpha"] = torch.tensor(2.0)
    return state


def encoding(clip, text: str) -> Tensor:
    import nodes

    return nodes.CLIPTextEncode().encode(clip, text)[0][0][0]


@pytest.fixture(params=["sd1", "sd2"])
def either(request, tiny, tiny_sd2):
    return tiny if request.param == "sd1" else tiny_sd2


@pytest.mark.parametrize(
    "text",
    [
        "a photo of embedding:neo person",
        "embedding:neo, in the embedding:noir-2 style",
        "(embedding:noir-2:1.3), and (embedding:neo)",
        "embedding:neo embedding:noir-2\nembedding:neo",
        "embedding:unknown and embedding:neo",
    ],
)
def test_tokens_are_found_without_files(pack, make, either, text):
    plain = encoding(either.clip, text)
    _, clip = pack.comfy.apply_adapter(either.model, either.clip, {}, tokens())
    applied = encoding(clip, text)
    assert not torch.equal(applied, plain)
    assert torch.equal(encoding(either.clip, text), plain), "the CLIP that came in knows them now"

    files = [make.embeddings / f"{name}.safetensors" for name in tokens()]
    try:
        for file in files:
            save_file({"emb_params": tokens()[file.stem]["clip_l"]}, file)
        assert torch.equal(applied, encoding(either.clip, text))
    finally:
        for file in files:
            file.unlink()


def test_files_are_still_found_and_own_tokens_come_first(pack, make, tiny):
    file = make.embeddings / "filed.safetensors"
    save_file({"emb_params": torch.ones(1, 32)}, file)
    try:
        from_file = encoding(tiny.clip, "embedding:filed")
        _, clip = pack.comfy.apply_adapter(tiny.model, tiny.clip, {}, tokens())
        assert torch.equal(encoding(clip, "embedding:filed"), from_file)
        own = {"filed": {"clip_l": -torch.ones(1, 32)}}
        _, clip = pack.comfy.apply_adapter(tiny.model, clip, {}, own)
        assert not torch.equal(encoding(clip, "embedding:filed"), from_file)
    finally:
        file.unlink()


def test_two_adapters_are_both_known(pack, tiny):
    first, second = ({name: of} for name, of in tokens().items())
    _, once = pack.comfy.apply_adapter(tiny.model, tiny.clip, {}, first)
    _, twice = pack.comfy.apply_adapter(tiny.model, once, {}, second)
    text = "embedding:neo embedding:noir-2"
    _, both = pack.comfy.apply_adapter(tiny.model, tiny.clip, {}, tokens())
    assert torch.equal(encoding(twice, text), encoding(both, text))


def test_a_clip_without_embedding_folders_knows_the_tokens(pack, tiny, monkeypatch):
    monkeypatch.setattr(tiny.clip.tokenizer.clip_l, "embedding_directory", None)
    _, clip = pack.comfy.apply_adapter(tiny.model, tiny.clip, {}, tokens())
    assert not torch.equal(encoding(clip, "embedding:neo"), encoding(tiny.clip, "embedding:neo"))


def test_the_picture_is_that_of_stock_lora_loading(pack, tiny, ksample, caplog):
    import folder_paths

    import nodes

    before = ksample(tiny)
    file = f"{folder_paths.get_folder_paths('loras')[0]}/own.safetensors"
    save_file(lora(), file)
    model, clip = nodes.LoraLoader().load_lora(tiny.model, tiny.clip, "own.safetensors", 0.8, 0.5)
    stock = ksample(type(tiny)(model, clip, tiny.vae))

    model, clip = pack.comfy.apply_adapter(tiny.model, tiny.clip, lora(), tokens(), 0.8, 0.5)
    own = ksample(type(tiny)(model, clip, tiny.vae))
    assert torch.equal(own, stock)
    assert not torch.equal(own, before)
    assert torch.equal(before, ksample(tiny)), "the models that came in have changed"
    assert "NOT LOADED" not in caplog.text and "lora key not loaded" not in caplog.text


def test_tokens_of_another_width_are_refused(pack, tiny):
    error = pack("magicapture.errors").InputError
    with pytest.raises(error, match=r"'neo'.*64.*32"):
        pack.comfy.apply_adapter(tiny.model, tiny.clip, {}, tokens(64))


def test_models_of_other_kinds_are_refused(pack, make, tiny):
    errors = pack("magicapture.errors")
    with pytest.raises(errors.UnsupportedModelError, match="9 input channels"):
        pack.comfy.apply_adapter(make.model(in_channels=9), tiny.clip, {}, tokens())
    with pytest.raises(errors.InputError, match="'clip'"):
        pack.comfy.apply_adapter(tiny.model, None, {}, tokens())
