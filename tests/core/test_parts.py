"""Fused layers: their LoRA split into the parts' and merged again, by PEFT's own arithmetic."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from torch import Tensor, nn

from magicapture.adapters.diffusers import to_diffusers
from magicapture.errors import InputError
from magicapture.lora import LoraWeights, applied
from magicapture.parts import Part, merge, scaled, split

WIDTH, MLP = 8, 20
ROWS = 3 * WIDTH + MLP
PARTS = (
    Part("to_q", slice(0, 8)),
    Part("to_k", slice(8, 16)),
    Part("to_v", slice(16, 24)),
    Part("proj_mlp", slice(24, 44)),
)
RANK, ALPHA = 3, 1.5


def weights(rows: int = ROWS, rank: int = RANK, alpha: float = ALPHA, seed: int = 1) -> LoraWeights:
    random = torch.Generator().manual_seed(seed)
    down, up = (torch.randn(*s, generator=random) for s in ((rank, WIDTH), (rows, rank)))
    return LoraWeights(down, up, alpha)


def update(of: LoraWeights) -> Tensor:
    """What is added to the layer's weight, in float64."""
    return of.alpha / of.rank * of.up.double() @ of.down.double()


def equal(one: LoraWeights, other: LoraWeights) -> bool:
    pairs = ((one.down, other.down), (one.up, other.up))
    return one.alpha == other.alpha and all(torch.equal(*pair) for pair in pairs)


def test_the_split_file_does_in_split_layers_what_the_lora_does_in_the_fused_one() -> None:
    """ComfyUI's layout and diffusers', each with PEFT's LoRA in its layers."""
    fused = nn.ModuleDict({"linear1": nn.Linear(WIDTH, ROWS)})
    apart = nn.ModuleDict(
        {part.name: nn.Linear(WIDTH, len(range(ROWS)[part.rows])) for part in PARTS}
    )
    for part in PARTS:
        for own, whole in zip(
            apart[part.name].parameters(), fused["linear1"].parameters(), strict=True
        ):
            own.data = whole.data[part.rows].clone()
    x = torch.randn(5, WIDTH)
    with torch.no_grad():
        plain = fused["linear1"](x)
        with applied(fused, {"linear1": weights()}):
            ours = fused["linear1"](x)
        state = split(weights(), PARTS)
        config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(state))
        inject_adapter_in_model(config, apart)
        file = to_diffusers({f"unet.{name}": of for name, of in state.items()})
        own = {name.removeprefix("unet."): tensor for name, tensor in file.items()}
        assert not set_peft_model_state_dict(apart, own).unexpected_keys
        theirs = torch.cat([apart[part.name](x) for part in PARTS], 1)
    assert (ours - theirs).abs().max() < 1e-6 * ours.abs().max()
    assert (ours - plain).abs().max() > 0.1


def test_what_was_split_is_merged_bit_for_bit() -> None:
    assert equal(merge(split(weights(), PARTS), PARTS, ROWS), weights())


def test_one_whole_part_keeps_the_weights_as_they_are() -> None:
    of, whole = weights(), (Part("proj"),)
    assert equal(split(of, whole)["proj"], of)
    assert merge({"proj": of, "other": weights(4)}, whole, ROWS) is of


def test_parts_with_downs_of_their_own_are_stacked() -> None:
    """What other programs train: ranks and alphas of each part's own."""
    found = {
        "to_q": weights(8, 2, 1.0, seed=2),
        "to_v": weights(8, 4, 8.0, seed=3),
        "proj_mlp": weights(20, 1, 0.3, seed=4),
    }
    merged = merge(found, PARTS, ROWS)
    assert merged.rank == merged.alpha == 2 + 4 + 1
    expected = torch.zeros(ROWS, WIDTH, dtype=torch.float64)
    for part in PARTS:
        if part.name in found:
            expected[part.rows] = update(found[part.name])
    assert (update(merged) - expected).abs().max() < 1e-6
    assert merged.up[8:16].abs().max() == 0  # to_k is not in the file


@pytest.mark.parametrize("same", ["down", "alpha"])
def test_one_down_at_two_strengths_is_not_one_lora(same: str) -> None:
    found = split(weights(), PARTS)
    other = weights(8, seed=5)
    found["to_k"] = LoraWeights(
        found["to_k"].down if same == "down" else other.down,
        found["to_k"].up,
        2.5 if same == "down" else ALPHA,
    )
    merged = merge(found, PARTS, ROWS)
    assert merged.rank == 4 * RANK
    for part in PARTS:
        expected = update(found[part.name])
        assert (update(merged)[part.rows] - expected).abs().max() < 1e-6


def test_a_part_of_some_rows_leaves_the_others_alone() -> None:
    middle = (Part("to_k", slice(8, 16)),)
    found = {"to_k": weights(8)}
    merged = merge(found, middle, ROWS)
    assert merged.rank == RANK and merged.up.shape == (ROWS, RANK)
    assert merged.up[:8].abs().max() == merged.up[16:].abs().max() == 0
    assert equal(split(merged, middle)["to_k"], found["to_k"])
    with pytest.raises(InputError, match=r"36 rows.*the first is 0.*to_k \(8:16\)"):
        split(weights(), middle)


def test_sizes_of_another_model_are_refused() -> None:
    for found in ({"to_q": weights(9)}, {"to_q": weights(8), "proj_mlp": weights(21)}):
        with pytest.raises(InputError, match=r"LoRA of (to_q|proj_mlp) .*another kind"):
            merge(found, PARTS, ROWS)
    wide = LoraWeights(torch.ones(2, WIDTH + 1), torch.ones(8, 2), 1.0)
    with pytest.raises(InputError, match=r"to_k .*\(8, 9\).*\(8, 8\)"):
        merge({"to_q": weights(8), "to_k": wide}, PARTS, ROWS)


def test_alpha_goes_into_up() -> None:
    of = scaled(weights())
    assert of.alpha == of.rank == RANK
    assert (update(of) - update(weights())).abs().max() < 1e-6
    assert equal(scaled(of), of)
