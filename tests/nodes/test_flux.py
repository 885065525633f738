"""ComfyUI's Flux tapped: blocks whose one fused attention is of words and picture together."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("executor")

POSITIONS = ({"ada": [2, 3]}, {}, {"ada": [4], "ink": [1, 6, 7]})
KEYS = ((0, "ada"), (2, "ada"), (2, "ink"))
SIZE = (8, 12)  # latent cells, of which two a side are one place
BLOCKS = ["double_blocks.0", "double_blocks.1", "single_blocks.0", "single_blocks.1"]


@pytest.fixture
def model(make):
    return make.flux()


@pytest.fixture
def network(model) -> nn.Module:
    return model.model.diffusion_model


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents, levels, context and pooled text."""
    random = torch.Generator().manual_seed(3)
    latents, context, pooled = (
        torch.randn(shape, generator=random) for shape in ((3, 4, *SIZE), (3, 9, 32), (3, 32))
    )
    return latents, torch.tensor([0.1, 0.5, 0.9]), context, pooled


@pytest.fixture
def tapped(pack, network):
    return pack("nodes._comfy.attention").TappedComfy.of(network)


def run(network: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    """A pass as the sampler makes it."""
    latents, levels, context, pooled = inputs
    return network(latents, levels, context=context, y=pooled, transformer_options={})


def test_a_layer_is_a_block(pack, network):
    attention = pack("magicapture.attention")
    assert list(attention.cross_attentions(network)) == BLOCKS
    assert list(attention.self_attentions(network)) == BLOCKS
    assert attention.select(network) == attention.select_own(network) == BLOCKS[:2]


def test_recording_changes_nothing_and_maps_are_the_softmax(pack, network, tapped, inputs):
    attention = pack("magicapture.attention")
    expected = run(network, inputs)
    with attention.captured(tapped, sites=BLOCKS) as capture:
        with capture.recording():
            assert torch.equal(run(network, inputs), expected)
        seen = {site: capture.seen(site) for site in BLOCKS}
        maps = capture.maps(POSITIONS, SIZE)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    assert [one.layer for one in maps] == BLOCKS
    for one in maps:
        of = seen[one.layer]
        assert of.size == (4, 6) and of.columns() == 9 and of.key.shape == (3, 2, 9 + 24, 16)
        assert one.factor == 2 and one.keys == KEYS
        logits = torch.einsum("bhnd,bhld->bhnl", of.query, of.key) / 4  # 16 wide
        scores = logits.softmax(-1).mean(1)[:, 9:]
        for values, (row, name) in zip(one.values, KEYS, strict=True):
            wanted = scores[row][:, POSITIONS[row][name]].sum(-1)
            torch.testing.assert_close(values.flatten(), wanted)


def test_the_attention_is_the_one_that_the_block_computes(network, tapped, inputs):
    """Values and all: what the softmax averages is what comes out."""
    exact = []

    def explicit(attention, compute):
        logits = attention.query @ attention.key.mT / 4
        exact.append((logits.softmax(-1) @ attention.value, compute(attention)))
        return exact[-1][0]

    with tapped.tapped(explicit, BLOCKS):
        out = run(network, inputs)
    assert len(exact) == len(BLOCKS)
    for ours, theirs in exact:
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out, run(network, inputs), rtol=1e-3, atol=1e-4)


def test_maps_are_those_of_diffusers_on_the_same_weights(pack, make, model, tapped, inputs):
    attention, parts = pack("magicapture.attention"), pack("nodes._comfy.parts")
    passes, conditioning = pack("magicapture.backbones.passes"), pack("magicapture.backbone")
    theirs, network = make.flux_twin(model), model.model.diffusion_model
    latents, levels, context, pooled = inputs
    twin = attention.TappedTorch.of(theirs)
    told = conditioning.Conditioning(context, {"pooled": pooled}, POSITIONS)
    every = list(attention.cross_attentions(theirs))
    with attention.captured(twin, sites=every) as capture:
        with capture.recording():
            output = passes.flux_pass(theirs, latents, levels, told, torch.float32)
        expected = {one.layer: one for one in capture.maps(POSITIONS, SIZE)}
    with attention.captured(tapped, sites=BLOCKS) as capture:
        with capture.recording():
            torch.testing.assert_close(run(network, inputs), output, rtol=1e-3, atol=1e-4)
        found = {one.layer: one for one in capture.maps(POSITIONS, SIZE)}
    named = parts.network_parts(model)
    for block, layer in zip(BLOCKS, every, strict=True):
        [fused] = [name for name in named if name in (f"{block}.img_attn.qkv", f"{block}.linear1")]
        assert named[fused][0].name == f"{layer}.to_q"
        assert (found[block].factor, found[block].keys) == (expected[layer].factor, KEYS)
        torch.testing.assert_close(found[block].values, expected[layer].values)
    other = found[BLOCKS[0]].values
    assert not any(torch.allclose(found[block].values, other) for block in BLOCKS[1:])


def test_latents_that_are_no_whole_patches_are_padded(pack, network, tapped, inputs):
    attention = pack("magicapture.attention")
    latents = inputs[0][..., :7, :11]
    with attention.captured(tapped) as capture:
        with capture.recording():
            run(network, (latents, *inputs[1:]))
        maps = capture.maps(POSITIONS, (7, 11))
    assert {one.values.shape for one in maps} == {(3, 4, 6)}


def test_a_picture_with_others_beside_it_has_no_map(pack, network, tapped, inputs):
    """Reference latents (Kontext) lie behind the picture's own places."""
    attention = pack("magicapture.attention")
    latents, levels, context, pooled = inputs
    with attention.captured(tapped) as capture:
        with capture.recording():
            network(latents, levels, context=context, y=pooled, ref_latents=[latents])
        with pytest.raises(pack("magicapture.errors").InputError, match="tiles"):
            capture.maps(POSITIONS, SIZE)
