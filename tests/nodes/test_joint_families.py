"""Families of joint attention in ComfyUI: the numbers of diffusers, stock loaders, a training."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.nodes._families import (
    CLIPS,
    KINDS,
    Kind,
    flux2_vae_twin,
    make_flux2_vae,
    make_klein,
    make_taef2,
    near,
    prompts,
    qwen_twin,
    seeded,
    t5_twin,
    tiny_vae_twin,
)
from tests.nodes.joint import check_stock_loaders, held, saved, shares_of, train

pytestmark = pytest.mark.usefixtures("executor")

SHORT = "a photo of <ada> woman"
LONG = f"{SHORT} in the rain, who reads a book under a red umbrella"
TEXTS = (SHORT, LONG, SHORT)
LEVELS = (0.3, 0.8, 0.5)
PLACES = (4, 6)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture
def models(request: pytest.FixtureRequest, kind: Kind, tiny_kind) -> Any:
    return tiny_kind(next(name for name, other in KINDS.items() if other is kind))


@pytest.fixture
def ours(pack, models) -> Any:
    return pack.comfy.ComfyBackbone(models.model, models.clip, models.vae)


@pytest.fixture
def theirs(pack, make, kind: Kind, models, comfyui: Path) -> Any:
    """The diffusers backbone of the same weights."""
    with torch.inference_mode(False), torch.no_grad():
        if kind.key == "t5xxl":
            encoder, words = t5_twin(models.clip, comfyui)
        else:
            encoder, words = qwen_twin(models.clip, comfyui, {**make.qwen, **CLIPS["klein"].qwen})
        twin = flux2_vae_twin if kind.cell == 1 else tiny_vae_twin
        return pack("magicapture.backbones").DiffusersBackbone(
            unet=kind.twin(models.model),
            vae=twin(pack, models.vae),
            text_encoders={kind.key: encoder},
            tokenizers={kind.key: words},
            schedule=pack("nodes._comfy.models").schedule_of(models.model),
        )


def token(pack, kind: Kind) -> Any:
    """ "ada" as the family says it: two vectors, or a phrase."""
    tokens = pack("magicapture.tokens")
    with torch.inference_mode(False):
        if kind.vectors:
            return tokens.TokenVectors({"ada": {kind.key: 3 * seeded(2, 48, seed=1)}})
        return tokens.TokenVectors({}, {"ada": tokens.Phrase("ada lovel", "woman")})


def told(pack, kind: Kind, backbone, texts=TEXTS, vectors=None) -> Any:
    """Prompts encoded; in diffusers without Chroma's filling, which ComfyUI leaves out."""
    vectors = token(pack, kind) if vectors is None else vectors
    found = backbone.encode_prompts(prompts(pack, *texts), vectors)
    if "length" not in found.extra or type(backbone).__name__ == "ComfyBackbone":
        return found
    return replace(found, extra={"length": found.extra["length"] - int(kind.family == "chroma")})


def noise(kind: Kind, seed: int = 2, rows: int = 3) -> Tensor:
    return seeded(rows, kind.channels, *(kind.cell * side for side in PLACES), seed=seed)


def test_prompts_and_predictions_are_those_of_diffusers(pack, kind, ours, theirs) -> None:
    assert ours.family == theirs.family == kind.family
    assert ours.schedule.prediction == "flow"
    levels = ours.schedule.levels
    assert levels.shift == pytest.approx(2.718281828**kind.mu, rel=1e-4)
    assert levels.shift_of_draws == pytest.approx(3 if kind.cell == 1 else levels.shift)
    noisy, levels = noise(kind), torch.tensor(LEVELS)
    with ours.training(None), theirs.training(None), torch.no_grad():
        own, other = (told(pack, kind, b) for b in (ours, theirs))
        assert own.positions == other.positions and own.positions[0]["ada"] != []
        lengths = own.extra.get("length", torch.full((3,), 512)).tolist()
        if "length" in own.extra:
            assert lengths == other.extra["length"].tolist() and lengths[0] < lengths[1]
        for one, two, length in zip(own.context, other.context, lengths, strict=True):
            near(one[:length], two[:length])
        near(*(b.predict(noisy, levels, c) for b, c in ((ours, own), (theirs, other))))


def test_prompts_are_those_of_stock_nodes(pack, kind, ours, models) -> None:
    """The plain words, alone and beside longer ones; T5TokenizerOptions is heard."""
    import nodes

    nothing = pack("magicapture.tokens").TokenVectors({})
    texts = ("a photo of a woman", "a photo, of a woman in\nthe rain", "")
    clips = [(models.clip, ours)]
    if kind.key == "t5xxl":
        for options in ({"min_padding": 1}, {"min_length": 9}):
            clip = models.clip.clone()
            for name, value in options.items():
                clip.set_tokenizer_option(f"t5xxl_{name}", value)
            clips.append((clip, pack.comfy.ComfyBackbone(models.model, clip, models.vae)))
            assert clips[-1][1].fingerprint() != ours.fingerprint()
    for clip, backbone in clips:
        with backbone.training(None), torch.no_grad():
            found = backbone.encode_prompts(prompts(pack, *texts), nothing)
        for row, text in enumerate(texts):
            ((context, _),) = nodes.CLIPTextEncode().encode(clip, text)[0]
            length = int(found.extra["length"][row]) if "length" in found.extra else 512
            near(found.context[row : row + 1, :length], context)
            line = backbone.layout(kind.key, prompts(pack, text)[0], nothing)
            assert list(line.ids) == [one[0] for one in clip.tokenize(text)[kind.key][0]]


def test_latents_are_those_of_diffusers(pack, kind, ours, theirs) -> None:
    """There and back; gradients reach the latents."""
    images = torch.rand(1, 3, 64, 96)
    with torch.inference_mode(False), ours.training(None), theirs.training(None):
        own, other = (b.encode(images.clone()) for b in (ours, theirs))
        assert ours.downscale == theirs.downscale == 16 // kind.cell
        if kind.cell == 1:  # TAESD's latents are not scaled in the same way there
            near(own, other)
        latents = noise(kind, rows=1).requires_grad_()
        found = []
        for backbone in (ours, theirs):
            picture = backbone.decode(latents)
            (gradient,) = torch.autograd.grad(picture.square().sum(), latents)
            assert gradient.any()
            found.append((picture.detach(), gradient))
        if kind.cell == 1:
            for one, two in zip(*found, strict=True):
                near(one, two, 1e-3)


def test_kleins_tiny_decoder_is_a_fast_one(pack, tiny_kind) -> None:
    """Over latents of the published size; the identity loss goes back through it."""
    models = tiny_kind("klein")
    with torch.inference_mode():
        model, vae, taef2 = make_klein(channels=128), make_flux2_vae(128), make_taef2()
    backbone = pack.comfy.ComfyBackbone(model, models.clip, vae, taef2)
    assert backbone.has_fast_decoder and backbone.latent_channels == 128
    with torch.inference_mode(False), backbone.training(None):
        latents = seeded(1, 128, 2, 3).requires_grad_()
        picture = backbone.decode_fast(latents)
        assert picture.shape == (1, 3, 32, 48)
        (gradient,) = torch.autograd.grad(picture.square().sum(), latents)
        step = 1e-3 * gradient / gradient.norm()
        with torch.no_grad():
            ends = [backbone.decode_fast(at).double().square().sum() for at in
                    (latents + step, latents - step)]  # fmt: skip
        slope = float(ends[0] - ends[1]) / 2e-3
        assert slope == pytest.approx(float(gradient.norm()), rel=2e-2)
    with pytest.raises(pack("magicapture.errors").UnsupportedModelError, match="'fast_decoder'"):
        pack.comfy.ComfyBackbone(models.model, models.clip, models.vae, taef2)


def test_in_bfloat16_it_is_nearly_the_same(pack, kind, ours) -> None:
    name, found = ours.fingerprint(), []
    for dtype in (None, torch.bfloat16):
        with ours.training(dtype), torch.no_grad():
            found.append(ours.predict(noise(kind), torch.tensor(LEVELS), told(pack, kind, ours)))
    exact, close = found
    assert close.dtype == torch.float32 and ours.fingerprint() == name
    assert 0 < (close - exact).abs().mean() < 0.08 * exact.abs().mean()


def recorded(pack, kind, backbone, *taps: Any) -> SimpleNamespace:
    """One pass of all rows with the attention of double block 1 recorded, and one without taps."""
    attention = pack("magicapture.attention")
    noisy, levels, parts = noise(kind), torch.tensor(LEVELS), []

    def keep(one: Any, run: Any) -> Tensor:
        out = run(one)
        parts.append((one, out))
        return out

    with backbone.training(None), torch.no_grad(), ExitStack() as scope:
        heard = told(pack, kind, backbone)
        plain = backbone.predict(noisy, levels, heard)
        network = backbone.attention
        capture = scope.enter_context(attention.captured(network))
        site = attention.select(network.module)[1]
        for tap in (*taps, keep):
            scope.enter_context(network.tapped(tap, [site]))
        with capture.recording():
            found = backbone.predict(noisy, levels, heard)
        maps = capture.maps(heard.positions, noisy.shape[-2:])[-1]
    return SimpleNamespace(told=heard, plain=plain, found=found, maps=maps, parts=parts, site=site)


def test_maps_are_an_explicit_softmax_and_change_nothing(pack, kind, ours, theirs) -> None:
    own, other = (recorded(pack, kind, backbone) for backbone in (ours, theirs))
    block = pack("magicapture.attention").block_of
    assert block(own.site) == block(other.site) == "double_blocks.1"
    assert torch.equal(own.plain, own.found)
    groups = [(0, 2), (1,)] if "length" in own.told.extra else [None]
    assert [one.index for one, _ in own.parts] == groups
    lengths = own.told.extra.get("length", torch.full((3,), 512)).tolist()
    for one, _ in own.parts:
        assert one.size == PLACES
        shares = (one.query @ one.key.mT / 4).softmax(-1).mean(1)[:, one.cells]
        for place, row in enumerate(one.index or range(3)):
            assert one.words == slice(0, lengths[row])
            columns = own.told.positions[row]["ada"]
            expected = shares[place][:, columns].sum(-1)
            torch.testing.assert_close(own.maps.values[row].flatten(), expected)
    near(own.maps.values, other.maps.values)


def test_a_bias_is_an_explicit_mask(pack, kind, ours, theirs) -> None:
    bias, focus = pack("magicapture.refocusing.bias"), pack("magicapture.refocusing.focus")
    with ours.training(None), torch.no_grad():
        heard = told(pack, kind, ours)
    rows = [(focus.Focus("ada", "subject", tuple(of["ada"])),) for of in heard.positions]
    regions = torch.zeros(3, 1, *noise(kind).shape[-2:])
    for row in range(3):
        regions[row, :, : (1 + row) * kind.cell, : 3 * kind.cell] = 1
    holding = bias.holding(rows, regions, 3.0)
    own, other = (recorded(pack, kind, backbone, holding) for backbone in (ours, theirs))
    assert not torch.allclose(own.plain, own.found)
    near(own.found, other.found, 5e-4)
    cells, _ = bias.bias_parts(rows, F.avg_pool2d(regions, kind.cell), 3.0, 512)
    for one, out in own.parts:
        logits = one.query @ one.key.mT / 4
        for place, row in enumerate(one.index or range(3)):
            columns = heard.positions[row]["ada"]
            logits[place, :, one.cells, columns] += cells[row, :, :1]
        torch.testing.assert_close(out, logits.softmax(-1) @ one.value, rtol=1e-4, atol=1e-5)


def losses_and_gradients(pack, kind, backbone, state, checkpointing: bool) -> SimpleNamespace:
    """Of reconstruction and refocusing together, at vectors and a LoRA in the network."""
    lora, attention = pack("magicapture.lora"), pack("magicapture.attention")
    with torch.inference_mode(False), torch.enable_grad(), ExitStack() as scope:
        vectors = token(pack, kind)
        noisy, target = noise(kind), noise(kind, seed=3)
        scope.enter_context(backbone.training(None))
        blocks = list(backbone.checkpointed_modules()) if checkpointing else []
        assert len(blocks) == 4 * checkpointing
        injected = scope.enter_context(lora.injected(backbone.unet, list(state), 2))
        injected.load(state)
        scope.enter_context(pack("magicapture.checkpointing").checkpointed(blocks))
        heard = told(pack, kind, backbone, vectors=vectors)
        capture = scope.enter_context(attention.captured(backbone.attention))
        with capture.recording():
            prediction = backbone.predict(noisy, torch.tensor(LEVELS), heard)
        maps = capture.maps(heard.positions, noisy.shape[-2:])
        weight = torch.linspace(0, 1, 24).view(PLACES)
        held = torch.stack([(one.values * weight).square().sum() for one in maps]).sum()
        mse = (prediction - target).square().mean()
        (mse + 1000 * held).backward()
        pairs = zip(*[iter(injected.parameters())] * 2, strict=True)
        grads = {
            name: (down.grad, up.grad)
            for name, (down, up) in zip(injected.state(), pairs, strict=True)
        }
        of_vectors = [values.grad for values in vectors.parameters()]
        assert len(of_vectors) == kind.vectors
        return SimpleNamespace(losses=[mse.item(), held.item()], vectors=of_vectors, lora=grads)


def fused_lora(pack, backbone, size: float) -> dict[str, Any]:
    """By the names of ComfyUI's layers."""
    lora, layers = pack("magicapture.lora"), pack("magicapture.parts")
    named = layers.names_of(backbone.parts_of(backbone.unet))
    state = {}
    for i, name in enumerate(lora.target_names(backbone.unet, "all_linear", "transformer", named)):
        rows, columns = backbone.unet.get_submodule(name).weight.shape
        pair = (size * seeded(*s, seed=i) for s in ((2, columns), (rows, 2)))
        state[name] = lora.LoraWeights(*pair, 2.0)
    assert len(state) == 2 * 8 + 2 * 2  # qkv, proj and MLP of both streams; linear1 and 2
    return state


def apart(pack, backbone, fused) -> dict[str, Any]:
    layers, parts = pack("magicapture.parts"), backbone.parts_of(backbone.unet)
    return {n: w for name, of in fused.items() for n, w in layers.split(of, parts[name]).items()}


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
def test_the_same_losses_and_gradients_as_in_diffusers(
    pack, kind, ours, theirs, checkpointing
) -> None:
    parts, fused = ours.parts_of(ours.unet), fused_lora(pack, ours, 0.1)
    own = losses_and_gradients(pack, kind, ours, fused, checkpointing)
    other = losses_and_gradients(pack, kind, theirs, apart(pack, ours, fused), checkpointing)
    assert own.losses == pytest.approx(other.losses, rel=1e-3)
    for one, two in zip(own.vectors, other.vectors, strict=True):
        near(one, two, 2e-3)
    for name, (down, up) in own.lora.items():
        near(down, sum(other.lora[part.name][0] for part in parts[name]), 2e-3)
        for part in parts[name]:
            near(up[part.rows or slice(None)], other.lora[part.name][1], 2e-3)


# -- stock nodes ------------------------------------------------------------------------------


@pytest.fixture
def adapter(pack, kind, ours) -> Any:
    """An adapter of "ada", its LoRA far from nothing."""
    tokens = pack("magicapture.tokens")
    split = apart(pack, ours, fused_lora(pack, ours, 0.2))
    found = {f"transformer.{name}": of for name, of in split.items()}
    own = {"ada": {kind.key: 3 * seeded(2, 48)}} if kind.vectors else {}
    phrase = {} if kind.vectors else {"vectors": 0, "phrase": "ada lovel"}
    concept = tokens.Concept("ada", "subject", "woman", **phrase)
    return pack("magicapture.adapters").Adapter(found, own, kind.family, None, (concept,))


@pytest.fixture
def file(pack, make, kind, adapter):
    with saved(pack, make, adapter, "joint-test") as path:
        yield path


def said(kind: Kind, text: str) -> str:
    return text.replace("<ada>", "embedding:ada" if kind.vectors else "ada lovel")


def test_stock_loaders_draw_what_apply_adapter_draws(
    pack, make, kind, models, adapter, file, ksample, caplog
) -> None:
    check_stock_loaders(pack, models, adapter, file, said(kind, SHORT), ksample, caplog)
    again = pack("magicapture.adapters").load_adapter(file, [make.embeddings])
    assert again.family == kind.family and again.tokens.keys() == adapter.tokens.keys()


def test_encode_prompt_marks_the_tokens_columns(pack, kind, ours, models, adapter) -> None:
    marks = pack("nodes._comfy.marks")
    _, clip = pack.comfy.apply_adapter(models.model, models.clip, adapter, 0.0, 0.0)
    for text in (SHORT, "<ada> woman in the rain"):
        (prompt,) = prompts(pack, text)
        line = ours.layout(kind.key, prompt, adapter.vectors())
        conditioning = marks.encode_marked(clip, said(kind, text), adapter.concepts)
        (focus,) = conditioning[0][1][marks.TOKENS]
        assert focus.columns == tuple(line.columns["ada"])
        assert len(focus.word) == 1 and focus.word[0] - focus.columns[-1] == kind.vectors
        with ours.training(None), torch.no_grad():
            own = ours.encode_prompts([prompt], adapter.vectors())
        near(own.context, conditioning[0][0])


def test_the_file_does_the_same_in_diffusers(pack, kind, ours, theirs, adapter, file) -> None:
    """Read by diffusers' own loader; here it is merged into the fused layers."""
    lora = pack("magicapture.lora")
    noisy, levels, found = noise(kind), torch.tensor(LEVELS), []
    with torch.inference_mode(False), torch.no_grad():
        state = adapter.state_for("transformer", ours.unet, ours.parts_of(ours.unet))
        with ours.training(None), lora.applied(ours.unet, state):
            found.append(ours.predict(noisy, levels, told(pack, kind, ours)))
        heard = told(pack, kind, theirs)
        plain = theirs.predict(noisy, levels, heard)
        theirs.unet.load_lora_adapter(str(file))
        found.append(theirs.predict(noisy, levels, heard))
    near(*found, share=1e-3)
    assert (found[1] - plain).abs().max() > 1e-2


def test_other_models_are_refused_in_words(pack, kind, tiny, tiny_flux1, models, adapter) -> None:
    errors, backbone = pack("magicapture.errors"), pack.comfy.ComfyBackbone
    refused = errors.UnsupportedModelError
    with pytest.raises(refused, match=f"'clip' holds clip_l, and {kind.title} at 'model' reads"):
        backbone(models.model, tiny.clip, models.vae)
    with pytest.raises(refused, match=f"'clip' holds {kind.key}"):
        backbone(tiny.model, models.clip, tiny.vae)
    with pytest.raises(refused, match=f"{kind.channels} latent|latent channels"):
        backbone(tiny_flux1.model, tiny_flux1.clip, models.vae) if kind.cell == 1 else backbone(
            models.model, models.clip, replace_channels(models.vae)
        )
    with torch.inference_mode():
        wider = kind.model(context_in_dim=96)
    with pytest.raises(refused, match="wide and the model at 'model' expects 96"):
        backbone(wider, models.clip, models.vae)
    other = models.clip.clone()
    other.tokenizer = wrong_tokenizer(kind)
    with pytest.raises(refused, match=rf"another model than {kind.title} .*the type {kind.clip}"):
        backbone(models.model, other, models.vae)
    with pytest.raises(errors.InputError, match=f"for {kind.title} and the base model is"):
        pack.comfy.apply_adapter(tiny.model, tiny.clip, adapter)


def replace_channels(vae: Any) -> Any:
    return SimpleNamespace(
        first_stage_model=vae.first_stage_model, latent_dim=2, latent_channels=16
    )


def wrong_tokenizer(kind: Kind) -> Any:
    """Of the same text encoder, as another model reads it."""
    if kind.key == "t5xxl":
        from comfy.text_encoders import flux

        return flux.FluxTokenizer()
    from comfy.text_encoders import z_image

    return z_image.ZImageTokenizer()


def test_magicface_refuses_it_in_words(pack, kind, models) -> None:
    magicface = pack("nodes._comfy.magicface")
    with pytest.raises(pack("magicapture.errors").UnsupportedModelError, match="UNets of Stable"):
        magicface.prepare(models.model, models.clip, models.vae, [], "a photo", 64)


def test_a_training_moves_what_it_should_and_leaves_the_model_as_it_was(pack, kind, ours) -> None:
    """Two phases, every loss."""
    done = train(pack, ours, steps=2)
    adapter = done.adapter
    assert {"source", "style", "composed", "attention"} <= done.losses
    assert sum("learns no vectors" in text for text in done.told) == 2 * (not kind.vectors)
    assert adapter.family == kind.family
    keys = {key for of in adapter.tokens.values() for key in of}
    assert keys == ({kind.key} if kind.vectors else set())
    assert {key.partition(".")[0] for key in adapter.lora} == {"transformer"}
    assert all(of.up.any() for of in adapter.lora.values())


# -- refocusing while a stock sampler draws --------------------------------------------------------


@pytest.fixture
def marked(pack, kind, models, adapter) -> SimpleNamespace:
    """A MODEL that knows no adapter, prompts of two lengths, and the marks of the one."""
    import nodes

    _, clip = pack.comfy.apply_adapter(models.model, models.clip, adapter, 0.0, 0.0)
    marks = pack("nodes._comfy.marks")
    positive = marks.encode_marked(clip, said(kind, SHORT), adapter.concepts)
    (focus,) = positive[0][1][marks.TOKENS]
    negative = nodes.CLIPTextEncode().encode(clip, "blurred")[0]
    return SimpleNamespace(
        model=models.model, positive=positive, negative=negative, columns=list(focus.columns)
    )


def latents(kind: Kind) -> dict[str, Tensor]:
    """Of 64x96 pixels, empty."""
    return {"samples": torch.zeros_like(noise(kind, rows=1))}


@pytest.mark.parametrize("how", [{"bias": 30.0}, {"bias": 0.0, "gradient": 0.05, "end": 1.0}])
def test_a_stock_sampler_holds_the_token_to_its_region(
    pack, kind, marked, monkeypatch, how
) -> None:
    import nodes

    def draw(one: Any) -> Tensor:
        prompts = marked.positive, marked.negative
        given = (one, 3, 2, 4.0, "euler", "simple", *prompts, latents(kind))
        return nodes.KSampler().sample(*given)[0]["samples"]

    _, seen, inside = held(pack, marked.model, draw, "double_blocks.1", how, monkeypatch)
    if not how["bias"]:
        return
    longest, held_rows = max(one.columns() for one in seen), 0
    for one in seen:
        for row in shares_of(one)[..., marked.columns].sum(-1) if one.columns() == longest else ():
            if row[~inside].max() < 1e-9:
                held_rows += 1
                assert row[inside].min() > 1e-5
            else:
                assert row[~inside].min() > 1e-5  # of the negative prompt
    assert held_rows == 2


def test_a_finished_picture_is_looked_at(pack, kind, marked) -> None:
    picture = {"samples": noise(kind, rows=1)}
    shares = (0.2, 0.8)
    found = pack.comfy.look(marked.model, marked.positive, picture, shares, seed=1)
    assert {one.share for one in found} == set(shares)
    for one in found:
        assert one.values.shape[-2:] == PLACES and one.values.max() > 0
