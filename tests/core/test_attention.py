"""Attention capture against diffusers' explicit attention, under LoRA, autocast, checkpointing."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from magicapture.attention import (
    AttentionCapture,
    captured,
    cross_attentions,
    last_blocks,
    select,
    self_attentions,
    token_attention,
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
    with captured(unet, cross_attentions(unet)) as capture:
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


def test_token_attention_equals_its_definition() -> None:
    query, key = torch.randn(2, 5, 6, dtype=torch.float64), torch.randn(2, 4, 6).double()
    columns = torch.zeros(2, 4, 2)
    columns[0, [1, 3], 0], columns[1, 2, 1] = 1, 1
    values = token_attention(query, key, columns, heads=2)
    for b in range(2):
        for n in range(5):
            shares = torch.zeros(4, dtype=torch.float64)
            for head in range(2):
                q, k = query[b, n, 3 * head :][:3], key[b, :, 3 * head :][:, :3]
                weights = [float(torch.exp((q * row).sum() / 3**0.5)) for row in k]
                shares += torch.tensor(weights).double() / sum(weights) / 2
            expected = (shares @ columns[b].double()).float()
            torch.testing.assert_close(values[b, n], expected, atol=1e-6, rtol=0)


def test_half_precision_and_autocast_still_give_float32_maps() -> None:
    query, key = torch.randn(2, 2, 30, 16).bfloat16()
    columns = torch.eye(30)[None, :, :3].expand(2, -1, -1)
    expected = token_attention(query.float(), key.float(), columns, heads=2)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(token_attention(query, key, columns, heads=2), expected)


def test_outputs_are_bit_equal_with_and_without_capture(unet, inputs) -> None:
    plain = unet(*inputs).sample
    with captured(unet) as capture, capture.recording():
        watched = unet(*inputs).sample
    assert torch.equal(plain, watched)


def attention_gradients(unet, lora, inputs) -> list[Tensor]:
    """The gradients of L_attn alone on the LoRA and on the context."""
    with captured(unet, factors=(2,)) as capture:
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
    layouts = [Layout((0,) * 9, of) for of in slots]
    context = splice(inputs[2].detach(), layouts, vectors, "clip_l")
    with captured(unet, factors=(2,)) as capture:
        with capture.recording():
            unet(inputs[0], inputs[1], context)
        layers = capture.maps([layout.positions() for layout in layouts], SIZE)
    torch.stack([refocusing(m.values, torch.zeros(3, 1, *SIZE)) for m in layers]).sum().backward()
    for parameter in vectors.parameters():
        assert torch.all(parameter.grad.abs().sum(-1) > 0)


def test_only_the_asked_layers_are_mapped(unet, inputs) -> None:
    assert not [name for name in select(unet) if "mid_block" in name]
    assert set(select(unet, middle=True)) == set(cross_attentions(unet))
    assert all(name.endswith("attn1") for name in self_attentions(unet))
    with captured(unet, factors=(1,)) as capture:
        with capture.recording():
            unet(*inputs)
        layers = capture.maps(POSITIONS, SIZE)
    assert len(layers) == 3
    assert {(m.factor, m.values.shape) for m in layers} == {(1, (3, 12, 10))}


def test_rows_without_tokens_give_no_maps(unet, inputs) -> None:
    with captured(unet) as capture:
        with capture.recording():
            unet(*inputs)
        assert capture.maps([{}, {}, {}], SIZE) == []


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_nothing_is_left_behind_after_an_exception(unet, inputs) -> None:
    with pytest.raises(KeyError), captured(unet) as capture, capture.recording():
        unet(*inputs)
        assert hooks(unet) == 2 * len(select(unet))
        raise KeyError("cancelled")
    assert hooks(unet) == 0
    with pytest.raises(InputError):
        capture.maps(POSITIONS, SIZE)


def test_a_pass_stops_silently_behind_the_layer_it_is_wanted_until(unet, inputs) -> None:
    layers, ended = cross_attentions(unet), []
    unet.conv_out.register_forward_hook(lambda *_: ended.append(1))
    whole, early = AttentionCapture(layers), AttentionCapture(layers)
    until = select(unet)[1]
    with whole.recording():
        unet(*inputs)
    with whole.recording(), early.recording(until=until):  # the outer one keeps what it saw
        unet(*inputs)
    assert ended == [1]
    seen = list(layers)[: list(layers).index(until) + 1]
    assert [m.layer for m in early.maps(POSITIONS, SIZE)] == seen
    assert [m.layer for m in whole.maps(POSITIONS, SIZE)] == seen
    # A stop passes through recordings inside that it does not belong to.
    with early.recording(until=until), whole.recording():
        unet(*inputs)
    assert early.has(until) and ended == [1]
    assert hooks(unet) - 1 == 0


def test_any_projections_can_be_recorded_and_taken_once(unet, inputs) -> None:
    name, layer = next(iter(self_attentions(unet).items()))
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    capture = AttentionCapture({name: layer}, projections=("to_k", "to_v"))
    with capture.recording():
        unet(*inputs)
    handle.remove()
    key, value = capture.take(name)
    assert torch.equal(key, layer.to_k(seen[0])) and torch.equal(value, layer.to_v(seen[0]))
    with pytest.raises(UnsupportedModelError, match="compiled or patched"):
        capture.take(name)


def test_an_exception_drops_what_was_recorded(unet, inputs) -> None:
    capture = AttentionCapture(cross_attentions(unet))
    with pytest.raises(KeyError), capture.recording():
        unet(*inputs)
        raise KeyError("cancelled")
    assert not any(capture.has(name) for name in capture.layers) and hooks(unet) == 0


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
    with captured(unet) as capture:
        with_lora(unet)
        with capture.recording():
            unet(*inputs)
        late = capture.maps(POSITIONS, SIZE)
    expected = explicit_attention(unet, inputs)[late[0].layer].mean(1)
    reference = expected[0, :, [2, 3]].sum(-1)
    torch.testing.assert_close(late[0].values[0].flatten(), reference, atol=1e-6, rtol=0)


def test_errors_say_what_was_expected(unet, inputs) -> None:
    with (
        pytest.raises(UnsupportedModelError, match="Stable Diffusion"),
        captured(nn.Linear(2, 2)),
    ):
        pass
    with pytest.raises(UnsupportedModelError, match="nowhere"), captured(unet, ["nowhere"]):
        pass
    for positions, size, factors, message in (
        (POSITIONS[:2], SIZE, None, "3 rows"),
        (POSITIONS, (99, 7), None, "queries"),
        (POSITIONS, SIZE, (4,), r"maps asked for, of 4 .*; it has 1, 2\. .*refocus\.factors"),
    ):
        with captured(unet, factors=factors) as capture:
            with capture.recording():
                unet(*inputs)
            with pytest.raises(InputError, match=message):
                capture.maps(positions, size)


@pytest.fixture
def comfy_unet(comfyui: Path) -> nn.Module:
    """ComfyUI's own UNet, tiny, with random weights."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    unet = UNetModel(
        image_size=16,
        in_channels=4,
        model_channels=32,
        out_channels=4,
        num_res_blocks=1,
        channel_mult=(1, 2),
        transformer_depth=[1, 1],
        transformer_depth_middle=1,
        transformer_depth_output=[1, 1, 1, 1],
        num_heads=4,
        context_dim=24,
        use_spatial_transformer=True,
        dtype=torch.float32,
        device="cpu",
        operations=comfy.ops.disable_weight_init,
    )
    for p in unet.parameters():
        nn.init.normal_(p, std=0.1)
    return unet.requires_grad_(False)


@pytest.mark.comfyui
def test_comfyui_unet(comfy_unet, inputs) -> None:
    latents, timesteps, context = inputs
    plain = comfy_unet(latents, timesteps.float(), context=context)
    with captured(comfy_unet, factors=(1, 2)) as capture, capture.recording():
        assert torch.equal(comfy_unet(latents, timesteps.float(), context=context), plain)
    assert len(select(comfy_unet, middle=True)) == len(select(comfy_unet)) + 1

    lora = with_lora(comfy_unet)
    seen: dict[str, Tensor] = {}
    for name, layer in cross_attentions(comfy_unet).items():
        layer.register_forward_pre_hook(
            lambda module, args, kwargs, name=name: seen.update({name: args[0]}), with_kwargs=True
        )
    with captured(comfy_unet) as capture:
        with capture.recording():
            comfy_unet(latents, timesteps.float(), context=context)
        layers = capture.maps(POSITIONS, SIZE)
    assert {m.factor for m in layers} == {1, 2}
    for maps in layers:
        layer = cross_attentions(comfy_unet)[maps.layer]
        q = layer.to_q(seen[maps.layer]).unflatten(-1, (4, -1))
        k = layer.to_k(context).unflatten(-1, (4, -1))
        attention = (torch.einsum("bnhd,blhd->bnhl", q, k) / q.shape[-1] ** 0.5).softmax(-1)
        for values, (row, name) in zip(maps.values, KEYS, strict=True):
            expected = attention[row].mean(1)[:, POSITIONS[row][name]].sum(-1)
            torch.testing.assert_close(values.flatten(), expected, atol=1e-6, rtol=0)
    loss = torch.stack([refocusing(m.values, torch.zeros(3, 1, *SIZE)) for m in layers]).sum()
    gradients = torch.autograd.grad(loss, [*lora, context], allow_unused=True)
    reached = [g is not None and bool(g.abs().sum() > 0) for g in gradients]
    assert reached[-1] and sum(reached) > len(reached) / 2
