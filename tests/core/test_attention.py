"""Attention capture against diffusers' explicit attention, under LoRA, autocast, checkpointing."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from magicapture.attention import (
    Attention,
    AttentionCapture,
    TappedTorch,
    captured,
    cross_attentions,
    last_blocks,
    select,
    self_attentions,
)
from magicapture.checkpointing import checkpointed
from magicapture.errors import InputError, UnsupportedModelError
from magicapture.losses.equations import refocusing
from magicapture.tokens import Layout, TokenVectors, splice

POSITIONS = ({"ada": [2, 3]}, {}, {"ada": [4], "ink": [1, 6, 7]})
KEYS = ((0, "ada"), (2, "ada"), (2, "ink"))
SIZE = (12, 10)


@pytest.fixture
def unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=24,
        attention_head_dim=4,
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    ).requires_grad_(False)


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Latents, timesteps and a context that takes a gradient."""
    context = torch.randn(3, 9, 24).requires_grad_()
    return torch.randn(3, 4, *SIZE), torch.tensor([10, 500, 900]), context


def with_lora(model: nn.Module) -> list[nn.Parameter]:
    """Inject a LoRA whose effect is not zero; return its parameters."""
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["to_q", "to_k"]), model)
    lora = [p for name, p in model.named_parameters() if "lora_" in name]
    for p in lora:
        nn.init.normal_(p, std=0.2)
    return lora


def explicit_attention(unet: UNet2DConditionModel, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Every cross-attention layer's softmax (B,heads,N,L), as diffusers' plain processor has it."""
    found: dict[str, Tensor] = {}
    for name, layer in cross_attentions(unet).items():
        layer.set_processor(AttnProcessor())
        scores = layer.get_attention_scores

        def keep(*args: Tensor, name: str = name, scores=scores, heads=layer.heads) -> Tensor:
            probabilities = scores(*args)
            found[name] = probabilities.unflatten(0, (-1, heads))
            return probabilities

        layer.get_attention_scores = keep
    unet(*inputs)
    return found


@pytest.mark.parametrize("lora", [False, True])
def test_maps_equal_explicit_softmax(unet, inputs, lora) -> None:
    if lora:
        with_lora(unet)
    with captured(TappedTorch.of(unet), cross_attentions(unet)) as capture:
        with capture.recording():
            unet(*inputs)
        layers = capture.maps(POSITIONS, SIZE)
    expected = explicit_attention(unet, inputs)
    assert {m.layer for m in layers} == set(expected)
    for maps in layers:
        assert maps.keys == KEYS
        assert maps.values.dtype == torch.float32
        h, w = {1: (12, 10), 2: (6, 5)}[maps.factor]
        attention = expected[maps.layer].mean(1).unflatten(1, (h, w))
        for values, (row, name) in zip(maps.values, KEYS, strict=True):
            reference = attention[row, ..., POSITIONS[row][name]].sum(-1)
            torch.testing.assert_close(values, reference, atol=1e-6, rtol=0)


def attention(query: Tensor, key: Tensor, **further) -> Attention:
    return Attention("here", query, key, key, None, **further)


@pytest.mark.parametrize("scale", [None, 0.3])
def test_shares_equal_their_definition(scale) -> None:
    query = torch.randn(2, 2, 5, 3, dtype=torch.float64)
    key = torch.randn(2, 2, 4, 3, dtype=torch.float64)
    mask = torch.randn(2, 1, 5, 4, dtype=torch.float64)
    columns = torch.zeros(2, 4, 2)
    columns[0, [1, 3], 0], columns[1, 2, 1] = 1, 1
    values = attention(query, key, scale=scale, mask=mask).shares(columns)
    for b in range(2):
        for n in range(5):
            shares = torch.zeros(4, dtype=torch.float64)
            for head in range(2):
                logits = (key[b, head] @ query[b, head, n]) * (scale or 3**-0.5) + mask[b, 0, n]
                shares += logits.exp() / logits.exp().sum() / 2
            expected = (shares @ columns[b].double()).float()
            torch.testing.assert_close(values[b, n], expected, atol=1e-6, rtol=0)


def test_a_mask_of_truths_hides_where_it_is_false() -> None:
    query, key = torch.randn(2, 1, 2, 5, 3)
    shown = torch.tensor([True, True, False, True, False])
    scores = attention(query, key, mask=shown.expand(1, 1, 5, 5)).scores()
    torch.testing.assert_close(scores[..., shown], attention(query, key[:, :, shown]).scores())
    assert scores[..., ~shown].abs().max() == 0


def test_half_precision_and_autocast_still_give_float32_maps() -> None:
    query, key = torch.randn(2, 2, 2, 30, 8).bfloat16()
    columns = torch.eye(30)[None, :, :3].expand(2, -1, -1)
    expected = attention(query.float(), key.float()).shares(columns)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attention(query, key).shares(columns), expected)


def test_outputs_are_bit_equal_with_and_without_capture(unet, inputs) -> None:
    plain = unet(*inputs).sample
    with captured(TappedTorch.of(unet)) as capture, capture.recording():
        watched = unet(*inputs).sample
    assert torch.equal(plain, watched)


def attention_gradients(unet, lora, inputs) -> list[Tensor]:
    """The gradients of L_attn alone on the LoRA and on the context."""
    with captured(TappedTorch.of(unet), factors=(2,)) as capture:
        with capture.recording():
            unet(*inputs)
        layers = capture.maps(POSITIONS, SIZE)
        inside = torch.zeros(3, 1, *SIZE)
        inside[..., 3:9, 2:7] = 1
        loss = torch.stack([refocusing(m.values, inside) for m in layers]).sum()
        gradients = torch.autograd.grad(loss, [*lora, inputs[2]], allow_unused=True)
        with pytest.raises(InputError, match="No attention was recorded"):
            capture.maps(POSITIONS, SIZE)  # the recomputation above was not recorded
    return [torch.zeros(()) if g is None else g for g in gradients]


@pytest.mark.parametrize("kind", ["diffusers", "ours"])
def test_gradient_is_the_same_under_checkpointing(unet, inputs, kind) -> None:
    unet.train()
    lora = with_lora(unet)
    plain = attention_gradients(unet, lora, inputs)
    calls: list[int] = []
    layer = cross_attentions(unet)[select(unet)[1]]
    layer.to_q.register_forward_hook(lambda *_: calls.append(1))
    if kind == "diffusers":
        unet.enable_gradient_checkpointing()
        scope = nullcontext()
    else:
        scope = checkpointed([*unet.down_blocks, *unet.up_blocks])
    with scope:
        recomputed = attention_gradients(unet, lora, inputs)
    assert len(calls) == 2, "the layer was not recomputed, so this test shows nothing"
    for a, b in zip(plain, recomputed, strict=True):
        assert torch.equal(a, b)
    # Everything up to the last mapped layer is reached: its own q and k, and all before it.
    names = [name for name, _ in unet.named_parameters() if "lora_" in name]
    mapped = [i for i, name in enumerate(names) if "down_blocks.1" in name and "attn2" in name]
    assert mapped and all(plain[i].abs().sum() > 0 for i in mapped)
    assert plain[-1].abs().sum() > 0


def test_gradient_reaches_the_token_vectors(unet, inputs) -> None:
    vectors = TokenVectors({n: {"clip_l": torch.randn(2, 24)} for n in ("ada", "ink")})
    slots = {2: ("ada", 0), 3: ("ada", 1)}, {}, {4: ("ada", 0), 1: ("ink", 0), 6: ("ink", 1)}
    columns = {"ada": [2, 3]}, {}, {"ink": [1, 6], "ada": [4]}
    layouts = [Layout((0,) * 9, *of) for of in zip(slots, columns, strict=True)]
    context = splice(inputs[2].detach(), layouts, vectors, "clip_l")
    with captured(TappedTorch.of(unet), factors=(2,)) as capture:
        with capture.recording():
            unet(inputs[0], inputs[1], context)
        layers = capture.maps([layout.columns for layout in layouts], SIZE)
    torch.stack([refocusing(m.values, torch.zeros(3, 1, *SIZE)) for m in layers]).sum().backward()
    for parameter in vectors.parameters():
        assert torch.all(parameter.grad.abs().sum(-1) > 0)


def test_only_the_asked_layers_are_mapped(unet, inputs) -> None:
    assert not [name for name in select(unet) if "mid_block" in name]
    assert set(select(unet, middle=True)) == set(cross_attentions(unet))
    assert all(name.endswith("attn1") for name in self_attentions(unet))
    with captured(TappedTorch.of(unet), factors=(1,)) as capture:
        with capture.recording():
            unet(*inputs)
        layers = capture.maps(POSITIONS, SIZE)
    assert len(layers) == 3
    assert {(m.factor, m.values.shape) for m in layers} == {(1, (3, 12, 10))}


def test_rows_without_tokens_give_no_maps(unet, inputs) -> None:
    with captured(TappedTorch.of(unet)) as capture:
        with capture.recording():
            unet(*inputs)
        assert capture.maps([{}, {}, {}], SIZE) == []


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def pre_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) for module in model.modules())


def test_nothing_is_left_behind_after_an_exception(unet, inputs) -> None:
    with pytest.raises(KeyError), captured(TappedTorch.of(unet)) as capture, capture.recording():
        unet(*inputs)
        assert hooks(unet) == len(select(unet))
        raise KeyError("cancelled")
    assert hooks(unet) == pre_hooks(unet) == 0
    with pytest.raises(InputError):
        capture.maps(POSITIONS, SIZE)


def test_a_pass_stops_silently_behind_the_layer_it_is_wanted_until(unet, inputs) -> None:
    layers, ended = list(cross_attentions(unet)), []
    network = TappedTorch.of(unet)
    unet.conv_out.register_forward_hook(lambda *_: ended.append(1))
    whole, early = AttentionCapture(network, layers), AttentionCapture(network, layers)
    until = select(unet)[1]
    with whole.recording():
        unet(*inputs)
    with whole.recording(), early.recording(until=until):  # the outer one keeps what it saw
        unet(*inputs)
    assert ended == [1]
    seen = layers[: layers.index(until) + 1]
    assert [m.layer for m in early.maps(POSITIONS, SIZE)] == seen
    # The last one set is called first, and stopped before the other saw its layer.
    assert [m.layer for m in whole.maps(POSITIONS, SIZE)] == seen[:-1]
    # A stop passes through recordings inside that it does not belong to.
    with early.recording(until=until), whole.recording():
        unet(*inputs)
    assert early.has(until) and ended == [1]
    assert hooks(unet) - 1 == 0


def test_what_a_layer_attended_to_can_be_taken_once(unet, inputs) -> None:
    name, layer = next(iter(self_attentions(unet).items()))
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    capture = AttentionCapture(TappedTorch.of(unet), [name])
    with capture.recording():
        unet(*inputs)
    handle.remove()
    found = capture.take(name)
    for projection, heads in ((layer.to_q, found.query), (layer.to_v, found.value)):
        assert torch.equal(projection(seen[0]), heads.transpose(1, 2).flatten(2))
    assert found.size == SIZE and found.site == name
    with pytest.raises(UnsupportedModelError, match="compiled or patched"):
        capture.take(name)


def test_a_tap_changes_what_a_layer_puts_out(unet, inputs) -> None:
    """The last one set is called first; what a tap computes itself is no attention of the layer."""
    network, name = TappedTorch.of(unet), next(iter(cross_attentions(unet)))
    order: list[str] = []

    def doubled(attention: Attention, run) -> Tensor:
        order.append("doubled")
        nn.functional.scaled_dot_product_attention(*[attention.query] * 3)
        return 2 * run(attention)

    def watching(attention: Attention, run) -> Tensor:
        order.append("watching")
        return run(attention)

    given: list[Tensor] = []
    layer = unet.get_submodule(name)
    layer.to_out[0].register_forward_pre_hook(lambda _, args: given.append(args[0]))
    unet(*inputs)
    with network.tapped(watching, [name]), network.tapped(doubled, [name]):
        unet(*inputs)
    torch.testing.assert_close(given[1], 2 * given[0])
    assert order == ["doubled", "watching"]
    assert TappedTorch.of(unet) is network


def test_a_layer_without_fused_attention_is_an_error(unet, inputs) -> None:
    """Not silently nothing: diffusers' plain processor multiplies matrices."""
    name = select(unet)[0]
    unet.get_submodule(name).set_processor(AttnProcessor())
    with (
        captured(TappedTorch.of(unet)) as capture,
        pytest.raises(UnsupportedModelError, match=f"{name}.*without PyTorch's"),
        capture.recording(),
    ):
        unet(*inputs)
    assert hooks(unet) == pre_hooks(unet) == 0


def test_merged_or_tiled_attention_is_known_as_such(unet, inputs) -> None:
    name = next(iter(self_attentions(unet)))
    layer = unet.get_submodule(name)
    capture = AttentionCapture(TappedTorch.of(unet), [name])

    def merge(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][:, ::2], *args[1:])

    def unmerge(_: nn.Module, args: object, out: Tensor) -> Tensor:
        return out.repeat_interleave(2, dim=1)

    merged = layer.register_forward_pre_hook(merge), layer.register_forward_hook(unmerge)
    with merged[0], merged[1], capture.recording():
        unet(*inputs)
    assert capture.seen(name).size is None
    with pytest.raises(InputError, match="merges or tiles"):
        capture.maps(POSITIONS, SIZE)


def test_an_exception_drops_what_was_recorded(unet, inputs) -> None:
    capture = AttentionCapture(TappedTorch.of(unet), cross_attentions(unet))
    with pytest.raises(KeyError), capture.recording():
        unet(*inputs)
        raise KeyError("cancelled")
    assert not any(capture.has(name) for name in capture.sites) and hooks(unet) == 0


def test_the_last_block_of_every_stack(unet) -> None:
    deep = UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=24,
        attention_head_dim=4,
        norm_num_groups=8,
        transformer_layers_per_block=(1, 3),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )
    blocks = last_blocks(deep)
    assert len(blocks) == 6 == len(last_blocks(unet))
    assert [b[-1] for b in blocks] == ["0", "2", "2", "2", "0", "0"]
    assert len(last_blocks(deep, middle=True)) == 7
    assert {f"{block}.attn2" for block in blocks} <= set(cross_attentions(deep))


def test_a_lora_injected_after_capture_began_counts(unet, inputs) -> None:
    with captured(TappedTorch.of(unet)) as capture:
        with_lora(unet)
        with capture.recording():
            unet(*inputs)
        late = capture.maps(POSITIONS, SIZE)
    expected = explicit_attention(unet, inputs)[late[0].layer].mean(1)
    reference = expected[0, :, [2, 3]].sum(-1)
    torch.testing.assert_close(late[0].values[0].flatten(), reference, atol=1e-6, rtol=0)


def test_errors_say_what_was_expected(unet, inputs) -> None:
    line = nn.Linear(2, 2)
    with (
        pytest.raises(UnsupportedModelError, match="supported family"),
        captured(TappedTorch.of(line)),
    ):
        pass
    with (
        pytest.raises(UnsupportedModelError, match="nowhere"),
        captured(TappedTorch.of(unet), ["nowhere"]),
    ):
        pass
    for positions, size, factors, message in (
        (POSITIONS[:2], SIZE, None, "3 rows"),
        (POSITIONS, SIZE, (4,), r"maps asked for, of 4 .*; it has 1, 2\. .*refocus\.factors"),
    ):
        with captured(TappedTorch.of(unet), factors=factors) as capture:
            with capture.recording():
                unet(*inputs)
            with pytest.raises(InputError, match=message):
                capture.maps(positions, size)
