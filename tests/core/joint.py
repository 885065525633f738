"""What the tests of families with joint attention share: a bias, gradients, a whole training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from magicapture.adapters import Adapter
from magicapture.attention import captured
from magicapture.checkpointing import checkpointed
from magicapture.lora import LoraWeights, injected, target_names
from magicapture.refocusing.bias import bias_parts, holding
from magicapture.refocusing.focus import Focus
from magicapture.tokens import Phrase, Prompt, TokenVectors
from magicapture.training import Stepped, Trainer, TrainingJob, Warned

NOTHING = TokenVectors({})
ADA = TokenVectors({}, {"ada": Phrase("ada lovel", "woman")})
SIZE = (8, 12)  # of the latents; 24 places
PHRASES = {"ada-1": "ada lovel", "oil-1": "sfumat"}


def prompts(*texts: str) -> list[Prompt]:
    return [Prompt(text) for text in texts]


@torch.no_grad()
def check_bias(backbone: Any, texts: Sequence[str], site: str) -> None:
    """What one layer makes of a held phrase is the softmax under an explicit mask."""
    told = backbone.encode_prompts(prompts(*texts), ADA)
    noisy, levels = torch.randn(2, 4, *SIZE), torch.tensor([0.3, 0.7])
    rows = [(Focus("ada", "subject", tuple(of["ada"])),) for of in told.positions]
    regions = torch.zeros(2, 1, *SIZE)
    regions[..., :4, :6] = 1
    seen = {}

    def spy(attention: Any, run: Any) -> Tensor:
        seen["in"], seen["out"] = attention, run(attention)
        return seen["out"]

    network = backbone.attention
    with network.tapped(holding(rows, regions, 3.0), [site]), network.tapped(spy, [site]):
        held = backbone.predict(noisy, levels, told)
    assert not torch.allclose(held, backbone.predict(noisy, levels, told))
    of = seen["in"]
    cells, words = bias_parts(rows, torch.nn.functional.avg_pool2d(regions, 2), 3.0, of.columns())
    logits = of.query @ of.key.mT / 4
    logits = logits.masked_fill(~of.mask, float("-inf"))
    logits[:, :, of.cells, of.words] += (cells @ words.mT)[:, None]
    torch.testing.assert_close(seen["out"], logits.softmax(-1) @ of.value, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def check_bfloat16(backbone: Any, texts: Sequence[str], levels: Sequence[float]) -> None:
    """In bfloat16 a prediction is nearly the same, and comes in float32."""
    noisy, found = torch.randn(2, 4, *SIZE), []
    for dtype in (None, torch.bfloat16):
        with backbone.training(dtype):
            told = backbone.encode_prompts(prompts(*texts), ADA)
            found.append(backbone.predict(noisy, torch.tensor(levels), told))
    exact, near = found
    assert near.dtype == torch.float32
    assert 0 < (near - exact).abs().mean() < 0.05 * exact.abs().mean()


def lora_of(backbone: Any) -> dict[str, LoraWeights]:
    """A LoRA of all linear layers, far from nothing."""
    state, random = {}, torch.Generator().manual_seed(3)
    for name in target_names(backbone.unet, "all_linear", "transformer"):
        rows, columns = backbone.unet.get_submodule(name).weight.shape
        pair = (0.2 * torch.randn(*s, generator=random) for s in ((2, columns), (rows, 2)))
        state[name] = LoraWeights(*pair, 2.0)
    return state


def losses(
    backbone: Any, texts: Sequence[str], state: dict[str, LoraWeights], blocks: int = 0
) -> tuple[Tensor, list[Tensor]]:
    """Of reconstruction and refocusing together, and the gradient at every LoRA matrix.

    blocks: how many are computed again, all there are or none.
    """
    noisy, target = (
        torch.randn(2, 4, *SIZE, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        for i in (1, 2)
    )
    with backbone.training(None), injected(backbone.unet, list(state), 2) as lora:
        lora.load(state)
        again = list(backbone.checkpointed_modules()) if blocks else []
        assert len(again) == blocks
        with checkpointed(again), captured(backbone.attention) as capture:
            told = backbone.encode_prompts(prompts(*texts), ADA)
            with capture.recording():
                found = backbone.predict(noisy, torch.tensor([0.3, 0.7]), told)
            (maps,) = capture.maps(told.positions, SIZE)
            weight = torch.linspace(0, 1, 24).view(4, 6)
            loss = (found - target).square().mean() + 100 * (maps.values * weight).square().sum()
            if torch.is_grad_enabled():
                loss.backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in lora.parameters()]
        return loss.detach(), grads


def check_gradient(backbone: Any, texts: Sequence[str], blocks: int) -> set[str]:
    """The gradient is that of central differences, also where all blocks are computed again.

    The step is large since rotary embeddings round to float32. Returns the layers whose LoRA has
    no gradient.
    """
    for module in backbone.modules.values():
        module.double()
    state = lora_of(backbone)
    _, gradient = losses(backbone, texts, state)
    _, again = losses(backbone, texts, state, blocks)
    for one, two in zip(gradient, again, strict=True):
        torch.testing.assert_close(one, two)
    random = torch.Generator().manual_seed(4)
    direction = [torch.randn(g.shape, generator=random) for g in gradient]
    ends = []
    with torch.no_grad():
        for step in (5e-3, -5e-3):
            pairs = zip(*[iter(direction)] * 2, strict=True)
            moved = {
                name: replace(w, down=w.down + step * down, up=w.up + step * up)
                for (name, w), (down, up) in zip(state.items(), pairs, strict=True)
            }
            ends.append(losses(backbone, texts, moved)[0])
    expected = (ends[0] - ends[1]) / 1e-2
    found = sum((g * d).sum() for g, d in zip(gradient, direction, strict=True))
    torch.testing.assert_close(found.double(), expected.double(), rtol=5e-3, atol=1e-5)
    return {name for name, up in zip(state, gradient[1::2], strict=True) if not up.any()}


def spelled(job: TrainingJob) -> TrainingJob:
    """The job with phrases for both of its concepts."""
    subject, style = (
        replace(of, concept=replace(of.concept, vectors=0, phrase=PHRASES[of.concept.name]))
        for of in job.learnables
    )
    return replace(job, subject=subject, style=style)


def trained_by_every_loss(
    job: TrainingJob, backbone: Any, embedder: Any
) -> tuple[Adapter, list[str]]:
    """The adapter of a whole training, and its warnings; the base model is as it was."""
    seen: set[str] = set()
    heard: list[str] = []

    def listener(event: object) -> None:
        if isinstance(event, Stepped):
            seen.update(event.losses)
        if isinstance(event, Warned):
            heard.append(event.text)

    before = {
        part: {name: value.clone() for name, value in module.state_dict().items()}
        for part, module in backbone.modules.items()
    }
    with Trainer.open(job, backbone, embedder=embedder, listener=listener) as trainer:
        adapter = trainer.run()
    for part, module in backbone.modules.items():
        after = module.state_dict()
        assert before[part].keys() == after.keys()
        assert all(torch.equal(value, after[name]) for name, value in before[part].items())
    assert seen == {"source", "style", "composed", "attention", "identity"}
    return adapter, heard
