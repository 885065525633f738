"""What the tests of families with phrases and joint attention share: rows, passes, trainings."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._families import near, prompts, seeded

SHORT = "a photo of <ada> woman"
LONG = f"{SHORT} in the rain, who reads a book under a red umbrella beside an old tree by the sea"
TEXTS = (SHORT, LONG, SHORT)
"""Of fewer words than 32, of more, and again of fewer, so that two rows run together."""
LEVELS = (0.3, 0.8, 0.5)
SIZE = (8, 12)  # of the latents; 24 places


def noise(backbone: Any, seed: int = 2) -> Tensor:
    """Three rows of latents (3,C,h,w)."""
    return seeded(3, backbone.latent_channels, *SIZE, seed=seed)


def recorded(pack, backbone, phrases, *taps: Any) -> SimpleNamespace:
    """One pass of all rows with the attention of layer 1 recorded, and another without taps."""
    attention = pack("magicapture.attention")
    noisy, levels = noise(backbone), torch.tensor(LEVELS)
    parts: list[Any] = []

    def keep(one: Any, run: Any) -> Tensor:
        out = run(one)
        parts.append((one, out))
        return out

    with backbone.training(None), torch.no_grad(), ExitStack() as scope:
        told = backbone.encode_prompts(prompts(pack, *TEXTS), phrases)
        plain = backbone.predict(noisy, levels, told)
        network = backbone.attention
        capture = scope.enter_context(attention.captured(network))
        for tap in (*taps, keep):
            scope.enter_context(network.tapped(tap, capture.sites))
        with capture.recording():
            found = backbone.predict(noisy, levels, told)
        sites = capture.recorded()
        (maps,) = capture.maps(told.positions, SIZE)
        with capture.recording():
            backbone.predict(noisy, levels, told)
        spread = capture.spread(seeded(3, 2, 4, 6, seed=7))
    return SimpleNamespace(
        told=told, plain=plain, found=found, sites=sites, maps=maps, parts=parts, spread=spread
    )


def losses_and_gradients(pack, backbone, state, phrases, blocks: int = 0) -> SimpleNamespace:
    """Of reconstruction and refocusing together, at a LoRA in the network; zeros where none comes.

    blocks: how many there are that are checkpointed; 0 checkpoints none.
    """
    lora, attention = pack("magicapture.lora"), pack("magicapture.attention")
    with torch.inference_mode(False), torch.enable_grad(), ExitStack() as scope:
        noisy, target = noise(backbone), noise(backbone, seed=3)
        scope.enter_context(backbone.training(None))
        modules = list(backbone.checkpointed_modules()) if blocks else []
        assert len(modules) == blocks
        injected = scope.enter_context(lora.injected(backbone.unet, list(state), 2))
        injected.load(state)
        scope.enter_context(pack("magicapture.checkpointing").checkpointed(modules))
        told = backbone.encode_prompts(prompts(pack, *TEXTS), phrases)
        capture = scope.enter_context(attention.captured(backbone.attention))
        with capture.recording():
            prediction = backbone.predict(noisy, torch.tensor(LEVELS), told)
        maps = capture.maps(told.positions, SIZE)
        weight = torch.linspace(0, 1, 24).view(4, 6)
        held = torch.stack([(one.values * weight).square().sum() for one in maps]).sum()
        mse = (prediction - target).square().mean()
        (mse + 100 * held).backward()
        pairs = zip(*[iter(injected.parameters())] * 2, strict=True)
        grads = {
            name: tuple(torch.zeros_like(p) if p.grad is None else p.grad for p in (down, up))
            for name, (down, up) in zip(injected.state(), pairs, strict=True)
        }
        return SimpleNamespace(losses=[mse.item(), held.item()], lora=grads)


def check_bfloat16(pack, backbone, phrases) -> None:
    """In bfloat16 a prediction is nearly the same, in float32; the model is as it was."""
    noisy, levels = noise(backbone), torch.tensor(LEVELS)
    name, found = backbone.fingerprint(), []
    for dtype in (None, torch.bfloat16):
        with backbone.training(dtype), torch.no_grad():
            told = backbone.encode_prompts(prompts(pack, *TEXTS), phrases)
            found.append(backbone.predict(noisy, levels, told))
    exact, close = found
    assert close.dtype == torch.float32
    assert 0 < (close - exact).abs().mean() < 0.05 * exact.abs().mean()
    assert backbone.fingerprint() == name


def check_bias(pack, ours, theirs, phrases, width: int) -> None:
    """A held phrase is an explicit mask in each row's own columns, whichever rows run together.

    width: of an attention's heads.
    """
    bias, focus = pack("magicapture.refocusing.bias"), pack("magicapture.refocusing.focus")
    with ours.training(None), torch.no_grad():
        told = ours.encode_prompts(prompts(pack, *TEXTS), phrases)
    rows = [(focus.Focus("ada", "subject", tuple(of["ada"])),) for of in told.positions]
    regions = torch.zeros(3, 1, *SIZE)
    for row in range(3):
        regions[row, :, : 2 + 2 * row, :6] = 1
    holding = bias.holding(rows, regions, 3.0)
    own, other = (recorded(pack, backbone, phrases, holding) for backbone in (ours, theirs))
    assert not torch.allclose(own.plain, own.found)
    near(own.found, other.found)
    cells, _ = bias.bias_parts(rows, F.avg_pool2d(regions, 2), 3.0, 64)
    for one, out in own.parts[:2]:
        logits = one.query @ one.key.mT / width**0.5
        for place, row in enumerate(one.index):
            columns = told.positions[row]["ada"]
            logits[place, :, one.cells, columns] += cells[row, :, :1]
        torch.testing.assert_close(out, logits.softmax(-1) @ one.value, rtol=1e-4, atol=1e-5)


def lora_of(pack, backbone, size: float) -> dict[str, Any]:
    """A LoRA in all layers that may have one, by the names of ComfyUI's."""
    lora, layers = pack("magicapture.lora"), pack("magicapture.parts")
    named = layers.names_of(backbone.parts_of(backbone.unet))
    state = {}
    for i, name in enumerate(lora.target_names(backbone.unet, "all_linear", "transformer", named)):
        rows, columns = backbone.unet.get_submodule(name).weight.shape
        pair = (size * seeded(*s, seed=i) for s in ((2, columns), (rows, 2)))
        state[name] = lora.LoraWeights(*pair, 2.0)
    return state


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return module.state_dict(keep_vars=True)


def apart(pack, backbone, state: dict[str, Any]) -> dict[str, Any]:
    """A LoRA's weights by diffusers' names."""
    split, parts = pack("magicapture.parts").split, backbone.parts_of(backbone.unet)
    return {name: own for n, of in state.items() for name, own in split(of, parts[n]).items()}


def adapter_of(pack, backbone) -> Any:
    """An adapter of a phrase, its LoRA far from nothing."""
    state = apart(pack, backbone, lora_of(pack, backbone, 0.2))
    concept = pack("magicapture.tokens").Concept(
        "ada", "subject", "woman", vectors=0, phrase="ada lovel"
    )
    lora = {f"transformer.{name}": weights for name, weights in state.items()}
    return pack("magicapture.adapters").Adapter(lora, {}, backbone.family, None, (concept,))


def train(pack, backbone, steps: int = 4) -> SimpleNamespace:
    """A short training with every loss, and its warnings.

    The model comes out with the very same tensors.
    """
    config, training = pack("magicapture.config"), pack("magicapture.training")
    recipe = pack("magicapture.recipes").recipe("magicapture")
    recipe = pack("magicapture.recipes").with_steps(recipe, steps)
    first, last = recipe.phases
    last = replace(last, rates=config.Rates(tokens=1e-3, unet=1e-3, text_encoder=1e-3))
    recipe = replace(recipe, phases=(first, last), resolution=64)
    networks = {"net": backbone.unet, **backbone.text_encoders}
    before = {part: state_of(m) for part, m in networks.items()}
    losses: set[str] = set()
    told: list[str] = []

    def listener(event: Any) -> None:
        if isinstance(event, training.Stepped):
            losses.update(event.losses)
        if isinstance(event, training.Warned):
            told.append(event.text)

    with torch.inference_mode(False):
        pair = pack("magicapture.paperdoll.pairs").make_pair(1_000_000, 1_000_099, poses=1)
        job = pack("magicapture.demo.example").doll_job(pair, recipe)
        embedder = pack("magicapture.paperdoll.readers").ConvEmbedder().eval()
        with training.Trainer.open(job, backbone, embedder=embedder, listener=listener) as trainer:
            adapter = trainer.run()
    after = {part: state_of(m) for part, m in networks.items()}
    for part, state in before.items():
        assert state.keys() == after[part].keys()
        assert all(value is after[part][name] for name, value in state.items())
    return SimpleNamespace(adapter=adapter, losses=losses, told=told)


@contextmanager
def saved(pack, make, adapter, name: str) -> Iterator[Path]:
    """The adapter's file where stock loaders look; those of its embeddings beside it go as well."""
    import folder_paths

    for token in adapter.tokens:  # of other tests
        (make.embeddings / f"{token}.safetensors").unlink(missing_ok=True)
    loras = Path(folder_paths.get_folder_paths("loras")[0])
    files = pack("magicapture.adapters").save_adapter(adapter, loras, make.embeddings, name)
    assert len(files.embeddings) == len(adapter.tokens)
    try:
        yield files.lora
    finally:
        for path in (files.lora, *files.embeddings):
            path.unlink()


def check_stock_loaders(pack, models, adapter, file: Path, text: str, ksample, caplog) -> None:
    """Stock LoraLoader leaves out nothing of the file, and draws what Apply Adapter draws."""
    import nodes

    plain = ksample(models, text)
    model, clip = pack.comfy.apply_adapter(models.model, models.clip, adapter)
    own = ksample(replace(models, model=model, clip=clip), text)
    with caplog.at_level(logging.WARNING):
        model, clip = nodes.LoraLoader().load_lora(models.model, models.clip, file.name, 1.0, 1.0)
        stock = ksample(replace(models, model=model, clip=clip), text)
    assert not [r for r in caplog.records if "lora" in r.getMessage().lower()]
    assert torch.equal(stock, own)
    assert (own - plain).abs().max() > 1e-2


def check_file_in_diffusers(pack, ours, theirs, phrases, adapter, file: Path) -> None:
    """Read by diffusers' own loader, the file does what it does here."""
    lora = pack("magicapture.lora")
    noisy, levels = noise(ours), torch.tensor(LEVELS)
    texts, found = prompts(pack, *TEXTS), []
    with torch.inference_mode(False), torch.no_grad():
        state = adapter.state_for("transformer", ours.unet, ours.parts_of(ours.unet))
        with ours.training(None), lora.applied(ours.unet, state):
            found.append(ours.predict(noisy, levels, ours.encode_prompts(texts, phrases)))
        told = theirs.encode_prompts(texts, phrases)
        plain = theirs.predict(noisy, levels, told)
        theirs.unet.load_lora_adapter(str(file))
        found.append(theirs.predict(noisy, levels, told))
        theirs.unet.unload_lora()
    near(*found, share=1e-3)
    assert (found[1] - plain).abs().max() > 1e-2


def check_columns(pack, ours, key: str, clip, adapter) -> None:
    """Encode Prompt marks a phrase's columns of the context, also where it begins the prompt."""
    marks = pack("nodes._comfy.marks")
    for text in (SHORT, "<ada> woman in the rain"):
        (prompt,) = prompts(pack, text)
        line = ours.layout(key, prompt, adapter.vectors())
        conditioning = marks.encode_marked(
            clip, text.replace("<ada>", "ada lovel"), adapter.concepts
        )
        (focus,) = conditioning[0][1][marks.TOKENS]
        assert focus.columns == tuple(line.columns["ada"])
        assert focus.word == focus.columns[-1:]


def held(
    pack, model, draw: Any, site: str, how: dict[str, float], monkeypatch
) -> tuple[Tensor, list[Any], Tensor]:
    """What a stock sampler draws with tokens held to the left upper corner of 64x96 pixels.

    draw: latents of a MODEL. site: a layer that is held. The model is left as it was, and nothing
    is complained of. Returns the latents, the site's attentions, and which cells are inside.
    """
    shown: list[str] = []
    monkeypatch.setattr(pack("nodes._comfy.host"), "show_text", lambda text, _: shown.append(text))
    mask = torch.zeros(1, 1, 64, 96)
    mask[..., :32, :32] = 1
    settings = pack("magicapture.refocusing").RefocusGuidance(**{"threshold": 0.0, **how})
    patched = pack.comfy.refocus(model, settings, mask, None, "7")
    network = model.model.diffusion_model
    before, seen = state_of(network), []

    def tap(one: Any, run: Any) -> Tensor:
        seen.append(one)
        return run(one)

    plain = draw(model)
    tapped = pack("nodes._comfy.attention").TappedComfy.of(network)
    with tapped.tapped(tap, [site]):  # set first: gets what is held
        found = draw(patched)
    assert found.isfinite().all() and (found - plain).abs().max() > 1e-4
    assert torch.equal(draw(patched), found) and torch.equal(draw(model), plain)
    after = state_of(network)
    assert before.keys() == after.keys()
    assert all(value is after[name] for name, value in before.items())
    assert shown == []
    return found, seen, F.avg_pool2d(mask, 16).flatten() == 1


def shares_of(attention: Any) -> Tensor:
    """The softmax of an attention's cells over all it has, mean of heads (B,N,L)."""
    scale = attention.query.shape[-1] ** -0.5 if attention.scale is None else attention.scale
    scores = (attention.query @ attention.key.mT * scale).softmax(-1).mean(1)
    return scores[:, attention.cells]


def check_held(pack, models, adapter, site: str, how: dict[str, float], monkeypatch) -> Tensor:
    """A stock sampler holds the phrase to its region; returns the latents.

    Positive and negative are of two lengths and come in passes of their own. site: a layer that is
    held.
    """
    import nodes

    marks, clip = pack("nodes._comfy.marks"), models.clip
    positive = marks.encode_marked(clip, "a photo of ada lovel woman", adapter.concepts)
    negative = nodes.CLIPTextEncode().encode(clip, "blurred")[0]
    (focus,) = positive[0][1][marks.TOKENS]

    def draw(one: Any) -> Tensor:
        latent = nodes.EmptyLatentImage().generate(96, 64)[0]
        given = (one, 3, 3, 4.0, "euler", "simple", positive, negative, latent)
        return nodes.KSampler().sample(*given)[0]["samples"]

    found, seen, inside = held(pack, models.model, draw, site, how, monkeypatch)
    assert len({one.columns() for one in seen}) == 2  # of the one's words and the other's
    if how["bias"]:
        _check_shares(seen, focus.columns, inside)
    return found


def _check_shares(seen: list[Any], columns: tuple[int, ...], inside: Tensor) -> None:
    """Outside of the region nothing looks at the columns, in the longer of two texts alone."""
    longest = max(one.columns() for one in seen)
    for one in seen:
        own = shares_of(one)[0][:, list(columns)].sum(-1)
        if one.columns() == longest:
            assert own[~inside].max() < 1e-9 and own[inside].min() > 1e-4
        else:
            assert own[~inside].min() > 1e-4
