"""Refocus Attention and Apply MagicFace beside stock nodes that patch the model or the sampling."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.usefixtures("executor")

TEXT = "a photo of a man with a hat"

BIAS = {"bias": 5.0}
GRADIENT = {"bias": 0.0, "gradient": 0.05, "end": 0.7, "threshold": 0.0}


# -- stock nodes, our nodes, a sampling ---------------------------------------------------------


@pytest.fixture
def stock(monkeypatch) -> Callable[..., Any]:
    """Runs a stock node of comfy_extras, registered as ComfyUI has it; its first output."""
    import nodes

    def run(module: str, node: str, *args: Any, **kwargs: Any) -> Any:
        try:
            kind = getattr(importlib.import_module(f"comfy_extras.nodes_{module}"), node)
        except (ImportError, AttributeError):
            pytest.skip(f"this ComfyUI has no node {node}")
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, node, kind)
        execute = getattr(kind, "execute", None) or getattr(kind(), kind.FUNCTION)
        known = inspect.signature(execute).parameters  # older versions have fewer inputs
        return execute(*args, **{name: kwargs[name] for name in kwargs if name in known})[0]

    return run


@pytest.fixture
def said(pack, monkeypatch) -> list[str]:
    """What is shown under our nodes, each time the whole of it."""
    shown: list[str] = []
    monkeypatch.setattr(pack("nodes._comfy.host"), "show_text", lambda text, _: shown.append(text))
    return shown


@pytest.fixture
def mask() -> Tensor:
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 16:48, 16:40] = 1
    return mask


@pytest.fixture
def prompts(pack, tiny):
    import nodes

    positive = pack.comfy.encode_marked(tiny.clip, TEXT, (), "man", "photo")
    return positive, nodes.CLIPTextEncode().encode(tiny.clip, "blurred")[0]


@pytest.fixture
def refocused(pack):
    settings = pack("magicapture.refocusing").RefocusGuidance

    def refocus(model, region=None, used=None, **how):
        return pack.comfy.refocus(model, settings(**how), region, used, "7")

    return refocus


@pytest.fixture
def faced(pack, tiny):
    """A MODEL with one reference of a man."""
    module = pack("nodes.magicface")
    picture = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    reference = module.MagiCaptureAddMagicFaceReference.execute(
        "man", "a photo of a man", 3.0, "whole picture", 1, picture
    )[0]

    def apply(model, **changes):
        given = {"switch": 0.4, "stop": 1.0, "others": 0.3, "to_foreground": False}
        given |= {"region_guidance": True, "reference_seed": 0, **changes}
        return module.MagiCaptureApplyMagicFace.execute(
            model, tiny.clip, tiny.vae, reference, TEXT, 64, **given
        )[0]

    return apply


def draw(model, positive, negative, sampler="euler", steps=3, cfg=4.0, batch=1, **latent) -> Tensor:
    import nodes

    given = nodes.EmptyLatentImage().generate(64, 64, batch)[0] | latent
    result = nodes.KSampler().sample(
        model, 3, steps, cfg, sampler, "normal", positive, negative, given
    )
    return result[0]["samples"]


def hooks(model) -> int:
    unet = model.model.diffusion_model
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in unet.modules())


def differ(a: Tensor, b: Tensor) -> bool:
    return bool(a.isfinite().all()) and float((a - b).abs().max()) > 1e-4


@pytest.fixture
def slopes(pack, monkeypatch) -> list[tuple[Tensor, float]]:
    """Each loss's slope by autograd, and its length by differences."""
    module, found = pack("nodes._comfy.refocusing"), []
    real = module.descend

    def descend(latents, loss_of, **given):
        with torch.inference_mode(False), torch.enable_grad():
            at = latents.detach().clone().requires_grad_()
            (slope,) = torch.autograd.grad(loss_of(at).sum(), at)
        length = slope.norm()
        direction, step = slope / length, 2e-2 * latents.norm() / latents.numel() ** 0.5
        with torch.inference_mode(False), torch.no_grad():
            at = latents.clone()
            up, down = (loss_of(at + sign * step * direction).double().sum() for sign in (1, -1))
        found.append((slope, float((up - down) / (2 * step))))
        return real(latents, loss_of, **given)

    monkeypatch.setattr(module, "descend", descend)
    return found


def assert_right(slopes: list[tuple[Tensor, float]]) -> None:
    assert slopes
    for slope, by_differences in slopes:
        length = float(slope.norm())
        assert length > 0
        assert by_differences == pytest.approx(length, rel=0.02)


# -- merged, tiled and scaled features ------------------------------------------------------------


@pytest.mark.parametrize("first", ["stock", "ours"])
@pytest.mark.parametrize("given", [True, False])
def test_refocusing_beside_merged_self_attention(
    stock, tiny, prompts, refocused, mask, given, first
) -> None:
    region, how = mask if given else None, {**GRADIENT, "bias": 5.0}
    merging = partial(stock, "tomesd", "TomePatchModel")

    def held(model, ratio):
        if first == "stock":
            return draw(refocused(merging(model, ratio), region, **how), *prompts)
        return draw(merging(refocused(model, region, **how), ratio), *prompts)

    alone = draw(refocused(tiny.model, region, **how), *prompts)
    torch.testing.assert_close(held(tiny.model, 0.0), alone, rtol=1e-4, atol=1e-4)
    merged = draw(stock("tomesd", "TomePatchModel", tiny.model, 0.5), *prompts)
    assert differ(held(tiny.model, 0.5), merged)
    assert hooks(tiny.model) == 0


def test_references_beside_merged_self_attention(stock, pack, tiny, prompts, faced) -> None:
    """They may lay out; regions have no place, which is said at the first step."""
    error = pack("magicapture.errors").UnsupportedModelError
    merged = stock("tomesd", "TomePatchModel", tiny.model, 0.5)
    steps: list[int] = []
    sentence = "^Apply MagicFace: TomePatchModel merges or tiles the picture"
    last = tiny.model.model.diffusion_model.out[2]
    watching = last.register_forward_hook(lambda *_: steps.append(1))
    with watching, pytest.raises(error, match=sentence) as raised:
        draw(faced(merged), *prompts)
    assert type(raised.value).__module__ == "builtins"  # ComfyUI shows no path before the text
    assert not steps, "the references' pass ends before; the picture's was the first"
    assert hooks(tiny.model) == 0
    laid_out = draw(faced(merged, switch=1.0), *prompts)
    assert differ(laid_out, draw(merged, *prompts))


def test_refocusing_beside_tiles(stock, tiny, prompts, refocused, mask) -> None:
    tiled = stock("hypertile", "HyperTile", tiny.model, 32, 2, 0, False)
    plain = draw(tiled, *prompts)
    assert differ(plain, draw(tiny.model, *prompts))
    for region in (mask, None):
        assert differ(
            draw(
                refocused(
                    tiled,
                    region,
                    **GRADIENT,
                ),
                *prompts,
            ),
            plain,
        )
        assert differ(draw(refocused(tiled, region, **BIAS), *prompts), plain)


@pytest.mark.parametrize("switch", [0.4, 1.0])
def test_references_beside_tiles_are_refused_by_name(
    stock, pack, tiny, prompts, faced, switch
) -> None:
    tiled = stock("hypertile", "HyperTile", tiny.model, 32, 2, 0, False)
    error = pack("magicapture.errors").UnsupportedModelError
    with pytest.raises(error, match=r"^Apply MagicFace: HyperTile merges or tiles the picture"):
        draw(faced(tiled, switch=switch), *prompts)


@pytest.fixture
def regions(pack, prompts):
    """Preview MagicFace Regions of a picture; its report."""
    node = pack("nodes.magicface").MagiCapturePreviewMagicFaceRegions

    def preview(model, positive=None):
        latent = {"samples": torch.randn(1, 4, 16, 16)}
        image = torch.rand(1, 128, 128, 3)
        positive = prompts[0] if positive is None else positive
        return node.execute(model, positive, prompts[1], latent, image, 0.6)[2]

    return preview


def flat(make):
    """A UNet whose layers are all as large as the picture, so that all of them are merged."""
    depths = {"transformer_depth": [1], "transformer_depth_output": [1, 1]}
    return make.model(channel_mult=[1], num_res_blocks=[1], **depths)


def test_regions_that_no_layer_shows_name_the_node_in_the_way(
    stock, pack, make, tiny, faced, regions, said
) -> None:
    merging = partial(stock, "tomesd", "TomePatchModel")
    tiling = partial(stock, "hypertile", "HyperTile", tile_size=32, swap_size=1, max_depth=1)
    error = pack("magicapture.errors").UnsupportedModelError
    sentence = "^Preview MagicFace Regions: No regions can be seen: {} merges, tiles"
    for model in (merging(faced(flat(make)), 0.5), faced(merging(flat(make), 0.5))):
        with pytest.raises(error, match=sentence.format("TomePatchModel")):
            regions(model)
    with pytest.raises(error, match=sentence.format("HyperTile")):
        regions(faced(tiling(tiny.model, scale_depth=False)))
    assert all("merges or tiles" in told for told in said)
    assert "man" in regions(faced(merging(tiny.model, 0.5))), "inner layers are left whole"
    assert hooks(tiny.model) == 0


@pytest.mark.parametrize("given", ["area", "range"])
def test_regions_of_a_prompt_that_is_not_drawn_in_the_whole_picture(
    pack, tiny, prompts, faced, regions, given
) -> None:
    import nodes

    if given == "area":
        positive = nodes.ConditioningSetArea().append(prompts[0], 64, 32, 32, 0, 1.0)[0]
    else:
        positive = nodes.ConditioningSetTimestepRange().set_range(prompts[0], 0.9, 1.0)[0]
    with pytest.raises(pack("magicapture.errors").InputError, match="an area or a range of steps"):
        regions(faced(tiny.model), positive)


def shrunk(stock, model, factor=2.0, block=1, end=0.6):
    given = (model, block, factor, 0.0, end, True, "bicubic", "bicubic")
    return stock("model_downscale", "PatchModelAddDownscale", *given)


@pytest.mark.parametrize("how", [BIAS, GRADIENT], ids=["bias", "gradient"])
@pytest.mark.parametrize("given", [True, False])
def test_refocusing_beside_deep_shrink(stock, tiny, prompts, refocused, mask, slopes, given, how):
    region = mask if given else None
    alone = draw(refocused(tiny.model, region, **how), *prompts)
    model = refocused(shrunk(stock, tiny.model, 1.0), region, **how)
    torch.testing.assert_close(draw(model, *prompts), alone, rtol=1e-3, atol=1e-3)
    slopes.clear()
    model = refocused(shrunk(stock, tiny.model), region, **how)
    held = draw(model, *prompts)
    assert differ(held, draw(shrunk(stock, tiny.model), *prompts))
    assert differ(held, alone)
    if how is GRADIENT and given:  # else the region jumps from one side of a difference to another
        assert_right(slopes)


def test_a_look_beside_deep_shrink_has_the_sizes_that_layers_see(pack, stock, tiny, prompts):
    latent = {"samples": draw(tiny.model, *prompts)}
    sizes = [
        {tuple(one.values.shape) for one in pack.comfy.look(model, prompts[0], latent, [0.0])}
        for model in (tiny.model, shrunk(stock, tiny.model))
    ]
    assert sizes == [{(8, 8), (4, 4)}, {(8, 8), (2, 2)}]


def test_references_beside_deep_shrink(stock, tiny, prompts, faced) -> None:
    alone = draw(faced(tiny.model), *prompts)
    torch.testing.assert_close(draw(faced(shrunk(stock, tiny.model, 1.0)), *prompts), alone)
    small = shrunk(stock, tiny.model)
    assert differ(draw(faced(small), *prompts), draw(small, *prompts))


# -- features changed in place --------------------------------------------------------------------


def free_u(stock, model):
    return stock("freelunch", "FreeU_V2", model, 1.3, 1.4, 0.9, 0.2)


def test_a_patch_that_changes_features_in_place_has_its_right_gradient(pack, stock, tiny) -> None:
    """FreeU_V2's own, against differences."""
    (patch,) = free_u(stock, tiny.model).model_options["transformer_options"]["patches"][
        "output_block_patch"
    ]
    apart = pack("nodes._comfy.gradient")._apart(patch)
    with torch.inference_mode(False), torch.enable_grad():
        skip = torch.randn(1, 64, 4, 4)
        features = torch.randn(1, 64, 2, 2, dtype=torch.double, requires_grad=True)
        kept = features * 1
        assert torch.autograd.gradcheck(lambda h: apart(h * 1, skip, {})[0], features)
        apart(kept, skip, {})
        assert torch.equal(kept, features)
        with pytest.raises(RuntimeError, match="inplace operation"):
            patch(features * 1, skip, {})[0].sum().backward()


@pytest.mark.parametrize("save_memory", [False, True])
def test_gradient_beside_free_u(stock, tiny, prompts, refocused, mask, slopes, save_memory) -> None:
    plain = free_u(stock, tiny.model)
    model = refocused(plain, mask, **GRADIENT, save_memory=save_memory)
    held = draw(model, *prompts)
    assert differ(held, draw(plain, *prompts))
    assert_right(slopes)


def test_references_beside_free_u(stock, tiny, prompts, faced) -> None:
    plain = draw(free_u(stock, tiny.model), *prompts)
    before, behind = faced(free_u(stock, tiny.model)), free_u(stock, faced(tiny.model))
    torch.testing.assert_close(draw(before, *prompts), draw(behind, *prompts))
    assert differ(draw(before, *prompts), plain)


@pytest.fixture
def hypernetwork(stock, monkeypatch) -> Callable[[Any], Any]:
    """Patches a MODEL with HypernetworkLoader's own."""
    import comfy.utils
    import folder_paths

    weights = {
        width: [
            {
                "linear.0.weight": 0.1 * torch.randn(width, width),
                "linear.0.bias": torch.zeros(width),
            }
            for _ in range(2)
        ]
        for width in (32, 64)
    }
    file = {"activation_func": "linear", "is_layer_norm": False, "use_dropout": False, **weights}
    monkeypatch.setattr(comfy.utils, "load_torch_file", lambda *_, **__: file)
    monkeypatch.setattr(folder_paths, "get_full_path_or_raise", lambda *_: "h.pt")
    return lambda model: stock("hypernetwork", "HypernetworkLoader", model, "h.pt", 1.0)


def test_gradient_beside_a_patch_with_weights_of_its_own(
    tiny, prompts, refocused, mask, hypernetwork
) -> None:
    """Autograd cannot keep a hypernetwork's weights, which are inference tensors."""
    plain = hypernetwork(tiny.model)
    assert differ(draw(plain, *prompts), draw(tiny.model, *prompts))
    assert differ(draw(refocused(plain, mask, **GRADIENT), *prompts), draw(plain, *prompts))


def test_references_beside_a_hypernetwork(tiny, prompts, faced, hypernetwork) -> None:
    plain = draw(hypernetwork(tiny.model), *prompts)
    before, behind = faced(hypernetwork(tiny.model)), hypernetwork(faced(tiny.model))
    torch.testing.assert_close(draw(before, *prompts), draw(behind, *prompts))
    assert differ(draw(before, *prompts), plain)


def boxed(tiny, positive):
    """A prompt with a hat in a box, by a real, tiny GLIGEN."""
    from comfy import gligen, model_patcher

    import nodes

    widths = [32, 64, 64, 64, 64, 32, 32]  # of the UNet's transformers, in its order
    layers = [gligen.GatedSelfAttentionDense(width, 32, 2, width // 2) for width in widths]
    network = gligen.Gligen(layers, gligen.PositionNet(32, 32), 32)
    generator = torch.Generator().manual_seed(4)
    for name, parameter in network.named_parameters():
        values = 0.1 * torch.randn(parameter.shape, generator=generator)
        parameter.data = values.fill_(0.7) if "alpha" in name else values + ("norm" in name)
    device = tiny.model.load_device
    patcher = model_patcher.ModelPatcher(network, load_device=device, offload_device=device)
    return nodes.GLIGENTextBoxApply().append(positive, tiny.clip, patcher, "hat", 32, 32, 16, 8)[0]


def test_beside_gligen(tiny, prompts, refocused, mask, slopes, faced) -> None:
    positive, negative = boxed(tiny, prompts[0]), prompts[1]
    plain = draw(tiny.model, positive, negative)
    assert differ(plain, draw(tiny.model, *prompts))
    assert differ(draw(faced(tiny.model), positive, negative), plain)
    for how in (BIAS, GRADIENT, {**GRADIENT, "save_memory": True}):
        assert differ(draw(refocused(tiny.model, mask, **how), positive, negative), plain)


def control_net(tiny, prompts, heedless: bool = False):
    """The prompt under a real, tiny ControlNet; a heedless one does not look at the latents."""
    import comfy.controlnet
    from comfy.cldm.cldm import ControlNet

    import nodes

    config = dict(tiny.model.model.model_config.unet_config)
    del config["out_channels"]
    network = ControlNet(
        **config | {"hint_channels": 3, "num_res_blocks": [1, 1], "dtype": torch.float32}
    )
    generator = torch.Generator().manual_seed(5)
    for parameter in network.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    if heedless:
        network.input_blocks[0][0].weight.data.zero_()
    device = tiny.model.load_device
    control = comfy.controlnet.ControlNet(network, load_device=device)
    image = torch.rand(1, 64, 64, 3, generator=generator)
    apply = nodes.ControlNetApplyAdvanced().apply_controlnet
    return apply(*prompts, control, image, 1.0, 0.0, 1.0)


@pytest.mark.parametrize("save_memory", [False, True])
def test_gradient_beside_a_control_net(tiny, prompts, refocused, mask, slopes, save_memory) -> None:
    """Features are added to in place; where a block is computed anew, they are its inputs."""
    controlled = control_net(tiny, prompts, heedless=True)
    held = draw(refocused(tiny.model, mask, **GRADIENT, save_memory=save_memory), *controlled)
    plain = draw(tiny.model, *controlled)
    assert differ(plain, draw(tiny.model, *prompts))
    assert differ(held, plain)
    assert_right(slopes)


def test_references_beside_a_control_net(tiny, prompts, faced) -> None:
    controlled = control_net(tiny, prompts)
    assert differ(draw(faced(tiny.model), *controlled), draw(tiny.model, *controlled))


# -- compiled -------------------------------------------------------------------------------------


@pytest.fixture
def compiled(stock, monkeypatch):
    """TorchCompileModel with a compiler that is quick; whether it was called."""
    helpers = importlib.import_module("comfy_api.torch_helpers.torch_compile")
    real, made = helpers.set_torch_compile_wrapper, []

    def compiler(graph, inputs, **_):
        made.append(graph)
        return graph

    def quick(model, backend, options=None, **given):
        torch.compiler.reset()
        return real(model=model, backend=compiler, options=options, **given)

    module = importlib.import_module("comfy_extras.nodes_torch_compile")
    monkeypatch.setattr(module, "set_torch_compile_wrapper", quick)
    yield lambda model: stock("torch_compile", "TorchCompileModel", model, "inductor"), made
    torch.compiler.reset()


def test_beside_torch_compile(pack, tiny, prompts, refocused, faced, mask, compiled) -> None:
    """Before and after it, and with a UNet that was compiled, and run, without our nodes."""
    compiling, made = compiled
    plain = draw(tiny.model, *prompts, steps=2)
    held = partial(refocused, region=mask, **{**GRADIENT, "bias": 5.0})
    expected = {ours: draw(ours(tiny.model), *prompts, steps=2) for ours in (held, faced)}
    latent = {"samples": plain}
    looked = pack.comfy.look(tiny.model, prompts[0], latent, [0.0])
    close = partial(torch.testing.assert_close, rtol=1e-3, atol=1e-3)

    for ours, picture in expected.items():
        close(draw(compiling(ours(tiny.model)), *prompts, steps=2), picture)
    model = compiling(tiny.model)
    for _ in range(2):
        for ours, picture in expected.items():
            close(draw(ours(model), *prompts, steps=2), picture)
        seen = pack.comfy.look(model, prompts[0], latent, [0.0])
        for a, b in zip(seen, looked, strict=True):
            torch.testing.assert_close(a.values, b.values)
        if not made:  # the first time round
            close(draw(model, *prompts, steps=2), plain)
            assert made
    close(draw(model, *prompts, steps=2), plain)
    assert hooks(tiny.model) == 0


def test_an_older_pytorch_compiles_our_wrappers_out(
    tiny, prompts, refocused, faced, mask, compiled, monkeypatch
) -> None:
    compiling, _ = compiled
    monkeypatch.delattr(torch.compiler, "set_stance")
    close = partial(torch.testing.assert_close, rtol=1e-3, atol=1e-3)
    for ours in (partial(refocused, region=mask, **BIAS), faced):
        expected = draw(ours(tiny.model), *prompts, steps=2)
        close(draw(ours(compiling(tiny.model)), *prompts, steps=2), expected)


# -- skipped, repeated and further passes ---------------------------------------------------------


@pytest.mark.parametrize("cache", ["EasyCacheNode", "LazyCacheNode"])
@pytest.mark.parametrize("first", ["stock", "ours"])
def test_beside_a_cache_that_skips_passes(
    stock, tiny, prompts, refocused, faced, mask, cache, first, caplog
) -> None:
    def drawn(ours, threshold):
        def caching(model):
            return stock("easycache", cache, model, threshold, 0.0, 1.0, False)

        model = ours(caching(tiny.model)) if first == "stock" else caching(ours(tiny.model))
        return draw(model, *prompts, steps=6)

    found, moved = partial(refocused, **BIAS), partial(refocused, region=mask, **GRADIENT)
    for ours in (found, moved, faced):
        never = draw(ours(tiny.model), *prompts, steps=6)
        torch.testing.assert_close(drawn(ours, 0.0), never, rtol=1e-4, atol=1e-4)
        caplog.clear()
        skipping = drawn(ours, 3.0)
        assert skipping.isfinite().all() and differ(skipping, never)
        told = [r.getMessage() for r in caplog.records if "show no attention" in r.getMessage()]
        # LazyCache skips our part of a pass as well; nothing to tell.
        assert len(told) == (cache == "EasyCacheNode" and ours is not moved)
    assert hooks(tiny.model) == 0


def test_a_cache_does_not_learn_from_the_passes_of_the_gradient(
    stock, tiny, prompts, refocused, mask
) -> None:
    """Those passes return nothing of use; what is skipped must be as in the other order."""

    def caching(model):
        return stock("easycache", "EasyCacheNode", model, 0.3, 0.0, 1.0, False)

    outer = draw(refocused(caching(tiny.model), mask, **GRADIENT), *prompts, steps=6)
    inner = draw(caching(refocused(tiny.model, mask, **GRADIENT)), *prompts, steps=6)
    torch.testing.assert_close(outer, inner)


REPEATING = {
    "PerturbedAttentionGuidance": ("pag", (3.0,)),
    "SelfAttentionGuidance": ("sag", (0.5, 2.0)),
    "RescaleCFG": ("model_advanced", (0.7,)),
}


@pytest.mark.parametrize("name", REPEATING)
def test_beside_nodes_that_repeat_passes(stock, tiny, prompts, refocused, faced, mask, name):
    module, given = REPEATING[name]
    guided = partial(stock, module, name)
    plain = draw(guided(tiny.model, *given), *prompts)
    how = {**GRADIENT, "bias": 5.0}
    for ours in (partial(refocused, region=mask, **how), partial(refocused, **how), faced):
        alone = draw(ours(tiny.model), *prompts)
        for model in (ours(guided(tiny.model, *given)), guided(ours(tiny.model), *given)):
            drawn = draw(model, *prompts)
            assert differ(drawn, plain) and differ(drawn, alone)
    assert hooks(tiny.model) == 0


def low_memory(tiny, monkeypatch) -> None:
    monkeypatch.setattr(tiny.model.model, "memory_required", lambda *_, **__: 1e30)


def test_beside_further_conditionings(stock, tiny, prompts, refocused, faced, mask, monkeypatch):
    """Batched or split for memory, the picture is the same, and ours acts."""
    import nodes

    other = nodes.CLIPTextEncode().encode(tiny.clip, "a dog")[0]
    positive = nodes.ConditioningCombine().combine(prompts[0], other)[0]
    models = [tiny.model, refocused(tiny.model, mask, **BIAS), refocused(tiny.model, **BIAS)]
    models += [refocused(tiny.model, mask, **GRADIENT), faced(tiny.model)]
    plain, *together = [draw(model, positive, prompts[1]) for model in models]
    assert all(differ(one, plain) for one in together)
    low_memory(tiny, monkeypatch)
    for model, whole in zip(models[1:], together, strict=True):
        torch.testing.assert_close(draw(model, positive, prompts[1]), whole, rtol=1e-3, atol=1e-3)


def test_guidance_is_not_scaled_by_the_regions_of_an_area(tiny, prompts, faced) -> None:
    """What an area's pass shows is not where things are in the whole picture."""
    import nodes

    right = nodes.ConditioningSetArea().append(prompts[0], 64, 32, 32, 0, 1.0)[0]
    scaled, unscaled = (
        draw(faced(tiny.model, region_guidance=on), right, prompts[1]) for on in (True, False)
    )
    assert differ(unscaled, draw(tiny.model, right, prompts[1]))
    torch.testing.assert_close(scaled, unscaled)


def test_refocusing_under_dual_guidance(stock, tiny, prompts, refocused, mask) -> None:
    import comfy.samplers
    from comfy_extras import nodes_custom_sampler as custom

    import nodes

    other = nodes.CLIPTextEncode().encode(tiny.clip, "a dog")[0]

    def run(model):
        guider = custom.Guider_DualCFG(model)
        guider.set_conds(prompts[0], other, prompts[1])
        guider.set_cfg(4.0, 3.0)
        noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
        sampling = model.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", 3)
        euler = comfy.samplers.sampler_object("euler")
        return guider.sample(noise, torch.zeros_like(noise), euler, sigmas, disable_pbar=True)

    for how in (BIAS, GRADIENT):
        assert differ(run(refocused(tiny.model, mask, **how)), run(tiny.model))


# -- nothing held, nothing injected ---------------------------------------------------------------


def test_a_prompt_without_marked_tokens_is_told(tiny, prompts, refocused, mask, said, caplog):
    import nodes

    unmarked = nodes.CLIPTextEncode().encode(tiny.clip, TEXT)[0]
    draw(refocused(tiny.model, mask, **BIAS), unmarked, prompts[1])
    (told,) = said
    assert told.startswith("No token was held") and "Encode Prompt" in told
    assert f"Refocus Attention: {told}" in caplog.text
    said.clear()
    draw(refocused(tiny.model, mask, **BIAS), *prompts)
    draw(refocused(tiny.model, **BIAS), *prompts)
    draw(refocused(tiny.model, mask, **GRADIENT), *prompts)
    assert not said


def test_the_refocusing_node_knows_its_id(pack, tiny) -> None:
    node = pack("nodes.sampling").MagiCaptureRefocusAttention
    assert [hidden.name for hidden in node.define_schema().hidden] == ["unique_id"]


@pytest.mark.parametrize(
    ("how", "given", "steps", "why"),
    [
        ({**GRADIENT, "threshold": 1.0}, True, 3, "window"),
        ({**GRADIENT, "start": 0.9, "end": 1.0}, True, 2, "window"),
        (BIAS, False, 1, "connect a mask"),
    ],
)
def test_tokens_that_were_never_held_are_told(
    tiny, prompts, refocused, mask, said, how, given, steps, why
) -> None:
    draw(refocused(tiny.model, mask if given else None, **how), *prompts, steps=steps)
    (told,) = said
    assert told.startswith("No token was held") and why in told


def test_references_that_gave_nothing_are_told(tiny, prompts, faced, said) -> None:
    import nodes

    plain = draw(tiny.model, *prompts)
    assert torch.equal(draw(faced(tiny.model, stop=0.0), *prompts), plain)
    assert "gave nothing" in said[-1] and "'stop'" in said[-1]
    said.clear()
    draw(faced(tiny.model), *prompts)
    assert not said
    other = nodes.CLIPTextEncode().encode(tiny.clip, "a dog on a sofa")[0]
    draw(faced(tiny.model), other, prompts[1])
    assert "not the one given here" in said[0]


# -- noise masks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("differential", [False, True])
@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "uni_pc", "lcm"])
def test_a_noise_mask_of_ones_changes_nothing(
    stock, tiny, prompts, refocused, mask, sampler, differential
) -> None:
    model = tiny.model
    if differential:
        model = stock("differential_diffusion", "DifferentialDiffusion", model)
    model = refocused(model, mask, **GRADIENT)
    without = draw(model, *prompts, sampler=sampler)
    ones = draw(model, *prompts, sampler=sampler, noise_mask=torch.ones(1, 64, 64))
    torch.testing.assert_close(ones, without, rtol=1e-4, atol=1e-4)
    assert differ(ones, draw(tiny.model, *prompts, sampler=sampler))


def test_under_a_noise_mask_the_loss_is_of_what_the_network_is_shown(
    tiny, prompts, refocused, mask, slopes
) -> None:
    """Its slope is that of the sampler's latents, which move inside the noise mask alone."""
    half = torch.zeros(1, 64, 64)
    half[..., :32] = 1
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(8))
    latent = {"noise_mask": half, "samples": start}
    held = draw(refocused(tiny.model, mask, **GRADIENT), *prompts, **latent)
    plain = draw(tiny.model, *prompts, **latent)
    assert_right(slopes)
    assert not any(slope[..., 4:].any() for slope, _ in slopes), "it shows the picture there"
    assert differ(held[..., :4], plain[..., :4])
    torch.testing.assert_close(held[..., 4:], plain[..., 4:])


def test_references_under_a_noise_mask(tiny, prompts, faced) -> None:
    without = draw(faced(tiny.model), *prompts)
    ones = draw(faced(tiny.model), *prompts, noise_mask=torch.ones(1, 64, 64))
    torch.testing.assert_close(ones, without, rtol=1e-4, atol=1e-4)
    half = torch.zeros(1, 64, 64)
    half[..., :32] = 1
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(8))
    latent = {"noise_mask": half, "samples": start}
    seen, plain = (draw(model, *prompts, **latent) for model in (faced(tiny.model), tiny.model))
    assert differ(seen[..., :4], plain[..., :4])
    torch.testing.assert_close(seen[..., 4:], plain[..., 4:])


def test_the_sampler_is_as_before_also_after_an_error(pack, tiny, prompts, refocused, mask):
    import comfy.samplers

    class StopError(Exception):
        pass

    def stop(*_):
        raise StopError

    sampler = comfy.samplers.sampler_object("euler")
    function = sampler.sampler_function
    guider = comfy.samplers.CFGGuider(refocused(tiny.model, mask, **GRADIENT))
    guider.set_conds(*prompts)
    noise = torch.randn(1, 4, 8, 8)
    sigmas = torch.tensor([14.0, 7.0, 0.0])
    with pytest.raises(StopError):
        guider.sample(noise, noise, sampler, sigmas, callback=stop, disable_pbar=True)
    assert sampler.sampler_function is function
    assert hooks(tiny.model) == 0


COPYING = {"uni_pc", "uni_pc_bh2"}  # they hand a scaled copy of their latents to the model


def test_which_samplers_go_on_from_moved_latents(pack, tiny, prompts, refocused, monkeypatch):
    """With a network that predicts no noise, what the first move adds is there at the second."""
    import comfy.samplers

    for parameter in tiny.model.model.diffusion_model.out[2].parameters():
        parameter.data = torch.zeros_like(parameter)
    seen: list[Tensor] = []
    by = 0.0

    def move(_, guider, x, *given):
        seen.append(x.clone())
        if len(seen) == 1:
            x += by

    monkeypatch.setattr(pack("nodes._comfy.refocusing")._Patch, "_move", move)
    model, copying = refocused(tiny.model, **GRADIENT), set()
    for name in comfy.samplers.SAMPLER_NAMES:
        second = []
        for by in (0.0, 1.0):  # noqa: B007
            seen.clear()
            draw(model, *prompts, sampler=name, steps=3, cfg=1.0)
            second.append(seen[1])
        if not differ(*second):
            copying.add(name)
    assert copying == COPYING


# -- tiles and windows ----------------------------------------------------------------------------


def test_a_mask_of_more_than_the_picture_is_told_once(tiny, prompts, refocused, mask, said) -> None:
    for scale, expected in ((1, 0), (2, 1)):
        said.clear()
        large = torch.nn.functional.interpolate(mask, scale_factor=scale)
        draw(refocused(tiny.model, large, **BIAS), *prompts)
        assert len(said) == expected
    assert "128x128" in said[0] and "64x64" in said[0] and "tiles" in said[0]


def windows(stock, model, length=2, overlap=1):
    given = (model, length, overlap, "standard_static", 1, False, "pyramid", 0)
    return stock("context_windows", "ContextWindowsManualNode", *given, freenoise=False)


@pytest.mark.parametrize("how", [BIAS, GRADIENT], ids=["bias", "gradient"])
@pytest.mark.parametrize("given", [True, False])
def test_images_in_context_windows_have_their_own_masks(
    stock, tiny, prompts, refocused, mask, how, given
) -> None:
    """A picture does not depend on the others of its batch, so windows change nothing."""
    masks = torch.cat([mask.roll(8 * i, -1) for i in range(4)]) if given else None
    expected = draw(refocused(tiny.model, masks, **how), *prompts, batch=4)
    drawn = draw(refocused(windows(stock, tiny.model), masks, **how), *prompts, batch=4)
    torch.testing.assert_close(drawn, expected, rtol=1e-3, atol=1e-3)
    assert differ(expected, draw(tiny.model, *prompts, batch=4))


def test_references_in_context_windows(stock, tiny, prompts, faced, said) -> None:
    """Guidance is not scaled by regions there, which is told."""
    model = faced(windows(stock, tiny.model))
    drawn = draw(model, *prompts, batch=4)
    assert "scaled" in said[-1]
    expected = draw(faced(tiny.model, region_guidance=False), *prompts, batch=4)
    torch.testing.assert_close(drawn, expected, rtol=1e-3, atol=1e-3)
    assert differ(expected, draw(tiny.model, *prompts, batch=4))
