"""LoRA injection: what it computes, and that it leaves no trace."""

from __future__ import annotations

import copy
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from magicapture.errors import InputError, MagiCaptureError, UnsupportedModelError
from magicapture.lora import (
    LoraWeights,
    applied,
    check_peft,
    injected,
    target_names,
    text_target_names,
)

BLOCKS = 10  # transformer blocks of the tiny UNet: 3 levels down, the middle, 3 x 2 up


@pytest.fixture
def unet(tiny: SimpleNamespace) -> nn.Module:
    return tiny.unet()


@pytest.fixture
def run() -> Any:
    """Run a UNet on the same numbers."""
    latent, context = torch.randn(2, 4, 16, 16), torch.randn(2, 7, 32)

    def run(unet: nn.Module) -> Tensor:
        dtype = next(unet.parameters()).dtype
        return unet(latent.to(dtype), torch.tensor([7, 400]), context.to(dtype)).sample

    return run


def random_state(model: nn.Module, names: list[str], ranks: list[int]) -> dict[str, LoraWeights]:
    state = {}
    for index, name in enumerate(names):
        weight = model.get_submodule(name).weight
        (rows, columns), rank = weight.flatten(1).shape, ranks[index % len(ranks)]
        down, up = torch.randn(rank, columns) / 4, torch.randn(rows, rank) / 4
        state[name] = LoraWeights(down, up, alpha=1.0 + index % 3)
    return state


def merged(model: nn.Module, state: dict[str, LoraWeights], scale: float = 1.0) -> nn.Module:
    """The independent reference: W + scale * alpha / r * up @ down, in a copy."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, of in state.items():
            weight = model.get_submodule(name).weight
            weight += (scale * of.alpha / of.rank * of.up @ of.down).reshape(weight.shape)
    return model


def snapshot(model: nn.Module) -> dict[str, Any]:
    return {
        "modules": [(name, id(module), module.training) for name, module in model.named_modules()],
        "flags": [(name, p.requires_grad, id(p)) for name, p in model.named_parameters()],
        "state": list(model.state_dict()),
        "attributes": set(vars(model)),
        "random": torch.get_rng_state().tolist(),
    }


def test_targets_are_the_layers_that_their_names_say(unet: nn.Module) -> None:
    found = {
        t: target_names(unet, t) for t in ("cross_kv", "cross", "cross_and_self", "all_linear")
    }
    assert {t: len(names) for t, names in found.items()} == {
        "cross_kv": 2 * BLOCKS,
        "cross": 4 * BLOCKS,
        "cross_and_self": 8 * BLOCKS,
        "all_linear": 10 * BLOCKS,
    }
    block = "mid_block.attentions.0.transformer_blocks.0"
    inner = [n.removeprefix(f"{block}.") for n in found["all_linear"] if n.startswith(block)]
    attention = ["to_q", "to_k", "to_v", "to_out.0"]
    assert sorted(inner) == sorted(
        [f"attn{n}.{p}" for n in (1, 2) for p in attention] + ["ff.net.0.proj", "ff.net.2"]
    )
    assert all(".attn2." in name for name in found["cross"])
    assert all(name.endswith(("to_k", "to_v")) for name in found["cross_kv"])


def test_text_targets_are_the_attention_projections(tiny: SimpleNamespace) -> None:
    names = text_target_names(tiny.text_encoder())
    assert len(names) == 2 * 4
    assert all(name.split(".")[-2] == "self_attn" for name in names)


def test_only_linear_layers_are_targets() -> None:
    model = nn.Module()
    model.attn2 = nn.Module()
    model.attn2.to_q, model.attn2.to_k = nn.Conv2d(4, 4, 1), nn.Linear(4, 4)
    assert target_names(model, "cross") == ["attn2.to_k"]


def test_a_model_without_attention_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="Stable Diffusion"):
        target_names(nn.Sequential(nn.Linear(2, 2)), "cross")


@pytest.mark.parametrize("targets", ["cross", "all_linear"])
def test_output_equals_that_of_merged_weights(unet: nn.Module, run: Any, targets: Any) -> None:
    state = random_state(unet, target_names(unet, targets), ranks=[1, 3, 4])
    with torch.no_grad():
        plain, expected, half = run(unet), run(merged(unet, state)), run(merged(unet, state, 0.5))
        with applied(unet, state) as lora:
            assert (run(unet) - expected).abs().max() < 1e-5
            lora.scale = 0.5
            assert (run(unet) - half).abs().max() < 1e-5
            assert not any(parameter.requires_grad for parameter in lora.parameters())
        with applied(unet, state, 0.5) as lora:
            assert lora.scale == 0.5
            assert (run(unet) - half).abs().max() < 1e-5
    assert (expected - plain).abs().max() > 1e-2


def test_text_encoder_output_equals_that_of_merged_weights(tiny: SimpleNamespace) -> None:
    encoder, ids = tiny.text_encoder(), torch.randint(0, 49406, (2, 77))
    state = random_state(encoder, text_target_names(encoder), ranks=[2])
    expected = merged(encoder, state)(ids).last_hidden_state
    with applied(encoder, state):
        assert (encoder(ids).last_hidden_state - expected).abs().max() < 1e-5
    assert (encoder(ids).last_hidden_state - expected).abs().max() > 1e-2


def test_a_1x1_convolution_takes_a_lora_of_matrices(unet: nn.Module, run: Any) -> None:
    names = [n for n, m in unet.named_modules() if n.endswith("proj_in")]
    assert isinstance(unet.get_submodule(names[0]), nn.Conv2d)
    state = random_state(unet, names, ranks=[2])
    with torch.no_grad(), applied(unet, state) as lora:
        assert (run(unet) - run(merged_outside(unet, lora, state))).abs().max() < 1e-5
        assert torch.equal(lora.state()[names[0]].down, state[names[0]].down)


def merged_outside(unet: nn.Module, lora: Any, state: dict[str, LoraWeights]) -> nn.Module:
    """The merged reference, made while the model holds the LoRA."""
    bare = copy.deepcopy(unet)
    for name in state:
        parent, _, child = name.rpartition(".")
        setattr(bare.get_submodule(parent), child, bare.get_submodule(name).base_layer)
    return merged(bare, state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fresh_lora_changes_nothing_and_trains_in_float32(
    unet: nn.Module, run: Any, dtype: torch.dtype
) -> None:
    unet.to(dtype).requires_grad_(False)
    expected = run(unet)
    with injected(unet, target_names(unet, "cross"), rank=2) as lora:
        output = run(unet)
        assert torch.equal(output, expected) and output.dtype == dtype
        output.float().square().mean().backward()
        assert len(lora.parameters()) == 2 * 4 * BLOCKS
        assert {p.dtype for p in lora.parameters()} == {torch.float32}
        ups = lora.parameters()[1::2]
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in ups)
    assert not any(p.requires_grad for p in unet.parameters())


def test_alpha_over_rank_scales(unet: nn.Module, run: Any) -> None:
    names = target_names(unet, "cross_kv")
    with torch.no_grad(), injected(unet, names, rank=4, alpha=1.0) as lora:
        for parameter in lora.parameters():
            parameter.normal_()
        state, output = lora.state(), run(unet)
    assert all(of.alpha == 1.0 and of.rank == 4 for of in state.values())
    assert (output - run(merged(unet, state))).abs().max() < 1e-5


def test_initial_values_repeat_with_the_seed_alone(unet: nn.Module) -> None:
    names, states = target_names(unet, "cross"), []
    for seed in (3, 3, 4):
        torch.rand(1)  # the global state differs from run to run
        with injected(unet, names, rank=2, seed=seed) as lora:
            states.append(lora.state())
    first, again, other = (torch.cat([w.down.flatten() for w in s.values()]) for s in states)
    assert torch.equal(first, again) and not torch.equal(first, other)
    bound = max(1 / w.down.shape[1] ** 0.5 for w in states[0].values())
    assert 0 < first.abs().max() <= bound
    assert all(not w.up.any() for w in states[0].values())


def test_everything_is_restored(unet: nn.Module, run: Any) -> None:
    unet.conv_in.requires_grad_(False)  # a mixture of flags
    before, output = snapshot(unet), run(unet)
    with injected(unet, target_names(unet, "all_linear"), rank=2) as lora:
        assert snapshot(unet)["random"] == before["random"]
        for parameter in lora.parameters():
            parameter.data.fill_(0.1)
        assert not torch.equal(run(unet), output)
    assert snapshot(unet) == before
    assert torch.equal(run(unet), output)


def test_everything_is_restored_after_an_exception(unet: nn.Module, run: Any) -> None:
    before, output = snapshot(unet), run(unet)
    with pytest.raises(KeyboardInterrupt), injected(unet, target_names(unet, "cross"), rank=2):
        raise KeyboardInterrupt
    assert snapshot(unet) == before
    assert torch.equal(run(unet), output)


@pytest.mark.parametrize("inference", [True, False])
def test_weights_made_under_inference_mode_are_restored(inference: bool) -> None:
    with torch.inference_mode():
        model = nn.Module()
        model.to_q = nn.Linear(4, 4)
    before = snapshot(model)
    with torch.inference_mode(inference), injected(model, ["to_q"], rank=2):
        assert not model.to_q.base_layer.weight.requires_grad
    assert snapshot(model) == before


def test_everything_is_restored_when_injection_fails_halfway(unet: nn.Module) -> None:
    before = snapshot(unet)
    names = [*target_names(unet, "cross"), "conv_norm_out"]  # PEFT wraps no GroupNorm
    with pytest.raises(ValueError, match="GroupNorm"), injected(unet, names, rank=2):
        pass
    assert snapshot(unet) == before


def test_only_the_named_layers_are_wrapped() -> None:
    inner = nn.Module()
    inner.to_q = nn.Linear(4, 4)
    model = nn.Module()
    model.inner, model.to_q = inner, nn.Linear(4, 4)
    with injected(model, ["to_q"], rank=1) as lora:
        assert type(model.inner.to_q) is nn.Linear
        assert list(lora.state()) == ["to_q"]
    state = {"to_q": LoraWeights(torch.ones(1, 4), torch.ones(4, 1), 1.0)}
    state["inner.to_q"] = LoraWeights(torch.ones(3, 4), torch.ones(4, 3), 5.0)
    with applied(model, state) as lora:
        assert {name: (of.rank, of.alpha) for name, of in lora.state().items()} == {
            "to_q": (1, 1.0),
            "inner.to_q": (3, 5.0),
        }


def test_strength_zero_is_bit_equal_and_keeps_what_trains(unet: nn.Module, run: Any) -> None:
    output = run(unet)
    with injected(unet, target_names(unet, "cross"), rank=2) as lora:
        for parameter in lora.parameters():
            parameter.data.normal_()
        strong, frozen = run(unet), lora.parameters()[0].requires_grad_(False)
        lora.scale = 0
        assert torch.equal(run(unet), output)
        lora.scale = 1
        assert torch.equal(run(unet), strong)
        assert not frozen.requires_grad
        assert all(p.requires_grad for p in lora.parameters()[1:])
        lora.scale = 0
        lora.parameters()[1].data.fill_(torch.nan)  # not even multiplied by zero
        assert torch.equal(run(unet), output)


def test_loading_keeps_the_parameters_that_an_optimiser_holds(unet: nn.Module) -> None:
    names = target_names(unet, "cross")
    state = random_state(unet, names, ranks=[2])
    state = {name: LoraWeights(of.down, of.up, 2.0) for name, of in state.items()}
    with injected(unet, names, rank=2) as lora:
        held = [id(p) for p in lora.parameters()]
        lora.load(state)
        assert [id(p) for p in lora.parameters()] == held
        for name, of in lora.state().items():
            assert torch.equal(of.down, state[name].down) and torch.equal(of.up, state[name].up)


def test_what_does_not_fit_is_refused_before_anything_changes(unet: nn.Module) -> None:
    names = target_names(unet, "cross")
    good = {
        name: LoraWeights(w.down, w.up, 2.0) for name, w in random_state(unet, names, [2]).items()
    }
    name = names[-1]
    wrong = {
        "expect": {**good, name: LoraWeights(torch.ones(2, 99), good[name].up, 2.0)},
        "another rank": {**good, name: random_state(unet, [name], [3])[name]},
        "differ in 1 layers": {n: good[n] for n in names[:-1]},
    }
    with injected(unet, names, rank=2) as lora:
        before = lora.state()
        for message, state in wrong.items():
            with pytest.raises(InputError, match=message):
                lora.load(state)
        for n, of in lora.state().items():
            assert torch.equal(of.down, before[n].down)


def test_a_layer_that_is_not_there_is_named(unet: nn.Module) -> None:
    state = {"input_blocks.1.1.proj": LoraWeights(torch.ones(1, 4), torch.ones(4, 1), 1.0)}
    with pytest.raises(InputError, match=r"input_blocks\.1\.1\.proj"), applied(unet, state):
        pass


def test_a_model_that_holds_a_lora_is_refused(unet: nn.Module) -> None:
    names = target_names(unet, "cross")
    with injected(unet, names, rank=2):
        again = injected(unet, names, rank=2)
        with pytest.raises(UnsupportedModelError, match="already holds"), again:
            pass
        assert hasattr(unet.get_submodule(names[0]), "base_layer")


def test_an_empty_lora_changes_nothing(unet: nn.Module) -> None:
    before = snapshot(unet)
    with applied(unet, {}) as lora:
        assert snapshot(unet) == before
        assert lora.parameters() == [] and lora.state() == {}


def test_weights_whose_ranks_differ_are_refused() -> None:
    with pytest.raises(InputError, match=r"\(rank, in\)"):
        LoraWeights(torch.ones(2, 4), torch.ones(4, 3), 1.0)


def test_delta_is_the_merged_update() -> None:
    weights = LoraWeights(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]]), alpha=0.5)
    assert torch.equal(weights.delta(), torch.tensor([[1.5, 3.0], [2.0, 4.0]]))


@pytest.fixture
def old_torchao(tmp_path, monkeypatch):
    """A torchao that peft raises ImportError for, as some other pack may have brought it."""
    from peft.import_utils import is_torchao_available

    (tmp_path / "torchao").mkdir()
    (tmp_path / "torchao" / "__init__.py").touch()
    facts = tmp_path / "torchao-0.1.dist-info" / "METADATA"
    facts.parent.mkdir()
    facts.write_text("Metadata-Version: 2.1\nName: torchao\nVersion: 0.1\n")
    monkeypatch.syspath_prepend(tmp_path)
    is_torchao_available.cache_clear()
    with pytest.raises(ImportError, match="torchao"):
        is_torchao_available()
    yield
    monkeypatch.undo()
    is_torchao_available.cache_clear()


def test_a_lora_beside_an_old_torchao(old_torchao) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(2), nn.Linear(9, 2))
    state = random_state(model, ["0", "2"], [2])
    x = torch.randn(1, 3, 3, 3)
    with torch.no_grad():
        expected = merged(model, state)(x)
        with applied(model, state):
            torch.testing.assert_close(model(x), expected)
    check_peft.cache_clear()
    check_peft()


def test_a_peft_that_does_not_work_is_told_before_any_work(monkeypatch) -> None:
    check_peft.cache_clear()
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MagiCaptureError, match="pip install -U peft"):
        check_peft()
