"""An adapter applied without files does in stock nodes what its files would do."""

from __future__ import annotations

from dataclasses import replace

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


LAYERS = {
    "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k": 64,  # twice as wide
    "clip_l.text_model.encoder.layers.1.self_attn.q_proj": 32,
}


@pytest.fixture
def adapter_of(pack):
    """Build an adapter: adapter_of(tokens, lora=True, family=...)."""

    def build(vectors=None, lora=False, family="sd1"):
        weights = {}
        if lora:
            generator = torch.Generator().manual_seed(5)
            kind = pack("magicapture.lora").LoraWeights
            for name, out in LAYERS.items():
                down, up = (
                    torch.randn(shape, generator=generator) for shape in ((2, 32), (out, 2))
                )
                weights[name] = kind(down, up, 2.0)
        return pack("magicapture.adapters").Adapter(weights, vectors or {}, family)

    return build


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
def test_tokens_are_found_without_files(pack, make, either, adapter_of, text):
    plain = encoding(either.clip, text)
    family = pack("nodes._comfy.models").family_of(either.model)
    adapter = adapter_of(tokens(), family=family)
    _, clip = pack.comfy.apply_adapter(either.model, either.clip, adapter)
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


def test_files_are_still_found_and_own_tokens_come_first(pack, make, tiny, adapter_of):
    file = make.embeddings / "filed.safetensors"
    save_file({"emb_params": torch.ones(1, 32)}, file)
    try:
        from_file = encoding(tiny.clip, "embedding:filed")
        _, clip = pack.comfy.apply_adapter(tiny.model, tiny.clip, adapter_of(tokens()))
        assert torch.equal(encoding(clip, "embedding:filed"), from_file)
        own = {"filed": {"clip_l": -torch.ones(1, 32)}}
        _, clip = pack.comfy.apply_adapter(tiny.model, clip, adapter_of(own))
        assert not torch.equal(encoding(clip, "embedding:filed"), from_file)
    finally:
        file.unlink()


def test_two_adapters_are_both_known(pack, tiny, adapter_of):
    first, second = ({name: of} for name, of in tokens().items())
    _, once = pack.comfy.apply_adapter(tiny.model, tiny.clip, adapter_of(first))
    _, twice = pack.comfy.apply_adapter(tiny.model, once, adapter_of(second))
    text = "embedding:neo embedding:noir-2"
    _, both = pack.comfy.apply_adapter(tiny.model, tiny.clip, adapter_of(tokens()))
    assert torch.equal(encoding(twice, text), encoding(both, text))


def test_a_clip_without_embedding_folders_knows_the_tokens(pack, tiny, adapter_of, monkeypatch):
    monkeypatch.setattr(tiny.clip.tokenizer.clip_l, "embedding_directory", None)
    _, clip = pack.comfy.apply_adapter(tiny.model, tiny.clip, adapter_of(tokens()))
    assert not torch.equal(encoding(clip, "embedding:neo"), encoding(tiny.clip, "embedding:neo"))


def test_the_picture_is_that_of_stock_lora_loading(pack, tiny, adapter_of, ksample, caplog):
    import folder_paths

    import nodes

    before = ksample(tiny)
    file = f"{folder_paths.get_folder_paths('loras')[0]}/own.safetensors"
    adapter = adapter_of(tokens(), lora=True)
    save_file(pack("magicapture.adapters").to_kohya(adapter), file)
    model, clip = nodes.LoraLoader().load_lora(tiny.model, tiny.clip, "own.safetensors", 0.8, 0.5)
    stock = ksample(type(tiny)(model, clip, tiny.vae))

    model, clip = pack.comfy.apply_adapter(tiny.model, tiny.clip, adapter, 0.8, 0.5)
    own = ksample(type(tiny)(model, clip, tiny.vae))
    assert torch.equal(own, stock)
    assert not torch.equal(own, before)
    assert torch.equal(before, ksample(tiny)), "the models that came in have changed"
    assert "NOT LOADED" not in caplog.text and "lora key not loaded" not in caplog.text


def test_tokens_of_another_width_are_refused(pack, tiny, adapter_of):
    error = pack("magicapture.errors").InputError
    with pytest.raises(error, match=r"'neo'.*64.*32"):
        pack.comfy.apply_adapter(tiny.model, tiny.clip, adapter_of(tokens(64)))


def test_models_of_other_kinds_are_refused(pack, make, tiny, adapter_of):
    errors = pack("magicapture.errors")
    with pytest.raises(errors.UnsupportedModelError, match="9 input channels"):
        pack.comfy.apply_adapter(make.model(in_channels=9), tiny.clip, adapter_of(tokens()))
    with pytest.raises(errors.InputError, match="'clip'"):
        pack.comfy.apply_adapter(tiny.model, None, adapter_of(tokens()))


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), 1e30])
def test_a_strength_that_a_link_brings_is_checked(pack, tiny, adapter_of, strength):
    apply = pack("nodes.adapters").MagiCaptureApplyAdapter.execute
    error = pack("magicapture.errors").InputError
    with pytest.raises(error, match="Apply Adapter: The LoRA's strength"):
        apply(tiny.model, tiny.clip, adapter_of(tokens(), lora=True), strength)


def test_an_adapter_of_another_family_is_refused_by_name(pack, tiny, tiny_sd2, adapter_of):
    """Stock code would log keys and go on (ComfyUI#4555, OneTrainer#485)."""
    error = pack("magicapture.errors").InputError
    for parts, family, message in (
        (tiny, "sd2", r"for Stable Diffusion 2\.x and .* Stable Diffusion 1\.x"),
        (tiny_sd2, "sd1", r"for Stable Diffusion 1\.x and .* Stable Diffusion 2\.x"),
        (tiny, "sdxl", r"for Stable Diffusion XL and .* Stable Diffusion 1\.x"),
    ):
        with pytest.raises(error, match=message):
            pack.comfy.apply_adapter(parts.model, parts.clip, adapter_of(lora=True, family=family))


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k", (48, 64), r"48\).*32\)"),
        ("unet.down_blocks.3.attentions.0.transformer_blocks.0.attn2.to_k", (32, 64), "not there"),
        ("clip_l.text_model.encoder.layers.11.self_attn.q_proj", (32, 32), "not there"),
    ],
)
def test_layers_that_the_model_lacks_are_refused(pack, tiny, adapter_of, layer, shape, message):
    into, out = shape
    weights = pack("magicapture.lora").LoraWeights(torch.ones(2, into), torch.ones(out, 2), 1.0)
    adapter = pack("magicapture.adapters").Adapter({layer: weights}, {}, "sd1")
    with pytest.raises(pack("magicapture.errors").InputError, match=message):
        pack.comfy.apply_adapter(tiny.model, tiny.clip, adapter)


def saved(pack, adapter, name, **options):
    """Save Adapter's output name and the text under it."""
    out = pack("nodes.adapters").MagiCaptureSaveAdapter.execute(adapter, name, **options)
    return out.args[1], out.ui["text"][0]


def test_a_second_training_leaves_the_first_ones_tokens_to_it(pack, adapter_of):
    """ui.md 2: two LoRAs with the default names of tokens; stock prompts are told theirs."""
    load = pack("nodes.adapters").MagiCaptureLoadAdapter.execute
    one, other = ({"mine": {"clip_l": torch.full((1, 32), value)}} for value in (0.1, 0.2))
    assert saved(pack, adapter_of(one), "col-A.safetensors")[0] == "col-A.safetensors"
    _, text = saved(pack, adapter_of(other), "col-B")
    assert "tokens: embedding:mine-2." in text
    assert "embedding:mine belongs to another LoRA, so this one is embedding:mine-2." in text
    first, second = (load(f"col-{name}.safetensors").args[0] for name in "AB")
    assert torch.equal(first.tokens["mine"]["clip_l"], one["mine"]["clip_l"])
    assert torch.equal(second.tokens["mine-2"]["clip_l"], other["mine"]["clip_l"])

    _, text = saved(pack, adapter_of(other), "col-A")  # trained anew under its own name
    assert "tokens: embedding:mine." in text and "mine.safetensors.bak1" in text


def test_what_was_saved_is_told_and_what_to_do_next(pack, adapter_of, caplog, monkeypatch):
    caplog.set_level("INFO")
    concept = pack("magicapture.tokens").Concept
    adapter = replace(
        adapter_of(tokens(), lora=True),
        concepts=(concept("neo", "subject"), concept("noir-2", "style")),
    )
    shown = []
    monkeypatch.setattr(pack("nodes.adapters"), "show_text", lambda text, node: shown.append(text))
    name, text = saved(pack, adapter, "told")
    assert shown == [text]
    folder = pack.comfy.model_folders("loras")[0]
    assert f"LoRA: {name}; tokens: embedding:neo, embedding:noir-2.\nSaved in {folder} and " in text
    assert "Load LoRA" in text
    assert "Prompt: a photo of embedding:neo person in the embedding:noir-2 style" in text
    assert text in caplog.text


def test_one_file_is_read_again_and_stock_loaders_take_its_lora(
    pack, make, tiny, adapter_of, ksample, caplog
):
    """ComfyUI names the keys that it passes over; the picture is that of the LoRA alone."""
    import nodes

    before = sorted(make.embeddings.iterdir())
    adapter = adapter_of(tokens(), lora=True)
    name, text = saved(pack, adapter, "shared", one_file=True)
    assert sorted(make.embeddings.iterdir()) == before and "Load Adapter" in text
    loaded = pack("nodes.adapters").MagiCaptureLoadAdapter.execute(name).args[0]
    for token, vectors in tokens().items():
        assert torch.equal(loaded.tokens[token]["clip_l"], vectors["clip_l"])

    plain, _ = saved(pack, adapter, "shared-plain")
    drawn = []
    for file in (name, plain):
        caplog.clear()
        model, clip = nodes.LoraLoader().load_lora(tiny.model, tiny.clip, file, 1.0, 1.0)
        drawn.append(ksample(type(tiny)(model, clip, tiny.vae)))
        passed = [m for m in caplog.messages if "lora key not loaded: bundle_emb." in m]
        assert len(passed) == (2 if file == name else 0)
    assert torch.equal(*drawn)


def test_a_sub_folder_is_named_as_stock_loaders_list_it(pack, tiny, adapter_of):
    import folder_paths

    import nodes

    name, _ = saved(pack, adapter_of(lora=True), "people/neo.safetensors")
    assert name in folder_paths.get_filename_list("loras")
    nodes.LoraLoader().load_lora(tiny.model, tiny.clip, name, 1.0, 1.0)
    assert pack("nodes.adapters").MagiCaptureLoadAdapter.execute(name).args[0].lora
    error = pack("magicapture.errors").MagiCaptureError
    for bad in ("../neo", "/neo", "a/../../neo"):
        with pytest.raises(error, match="Save Adapter: "):
            saved(pack, adapter_of(lora=True), bad)


def test_what_the_models_folder_does_not_take_is_saved_with_the_results(
    pack, adapter_of, tmp_path, monkeypatch
):
    import folder_paths

    (tmp_path / "file").write_text("in the folder's place")
    places = ([str(tmp_path / "file")], folder_paths.folder_names_and_paths["loras"][1])
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", places)
    name, text = saved(pack, adapter_of(tokens(), lora=True), "neo")
    elsewhere = pack("nodes._comfy.files").saved_folder()
    assert f"saved in {elsewhere} instead" in text and name == "neo.safetensors"
    assert (elsewhere / "neo.safetensors").is_file()


def test_who_consented_is_kept_and_told_on_the_card(pack, adapter_of):
    adapter = adapter_of(tokens(), lora=True)
    adapter = replace(adapter, info={"steps": "9", "seed": "3"})
    save = pack("nodes.adapters").MagiCaptureSaveAdapter.execute
    card = save(adapter, "agreed", consent="Neo agreed, 2026").args[2]
    assert card.startswith("# agreed\n") and "| consent | Neo agreed, 2026 |" in card
    info = pack("nodes.adapters").MagiCaptureLoadAdapter.execute("agreed.safetensors").args[0].info
    assert info["consent"] == "Neo agreed, 2026" and info["made_with"].startswith("MagiCapture ")
    assert "made with" not in save(adapter, "silent", made_with=False).args[2]
