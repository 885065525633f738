"""The gradient scope: gradients flow from inside inference mode, and all is as it was after."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("executor")  # whatever follows runs as inside a node

DEVICE = torch.device("cpu")
TEXT = "a photo of <ada> person"


@pytest.fixture
def vectors(pack):
    with torch.inference_mode(False):
        values = torch.randn(2, 32, generator=torch.Generator().manual_seed(1)) * 0.1
        return pack("magicapture.tokens").TokenVectors({"ada": {"clip_l": values}})


@pytest.fixture
def backbone(pack, tiny):
    return pack.comfy.ComfyBackbone(tiny.model, tiny.clip, tiny.vae)


@pytest.fixture
def loaded(tiny):
    """The tiny model as ComfyUI loads it, which writes notes of its own into the modules."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([tiny.model, tiny.clip.patcher, tiny.vae.patcher])
    return tiny


@pytest.fixture
def noisy():
    with torch.inference_mode(False):
        return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))


def loss_of(pack, backbone, vectors, noisy: Tensor) -> Tensor:
    """A loss through text encoder, UNet and VAE."""
    prompt = pack("magicapture.tokens").Prompt(TEXT)
    conditioning = backbone.encode_prompts([prompt, prompt], vectors)
    timesteps = torch.tensor([10, 700])
    prediction = backbone.predict(noisy, timesteps, conditioning)
    x0 = backbone.schedule.to_x0(prediction, noisy, timesteps)
    return prediction.square().mean() + backbone.decode(x0[:1]).square().mean()


def gradient(pack, backbone, vectors, noisy) -> Tensor:
    parameter = vectors.get("ada", "clip_l")
    return torch.autograd.grad(loss_of(pack, backbone, vectors, noisy), parameter)[0]


def snapshot(networks: dict[str, nn.Module]) -> dict[str, Any]:
    """Everything about the networks' tensors and modules that the scope might leave changed."""
    state: dict[str, Any] = {}
    for part, network in networks.items():
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            copy = tensor.detach().clone()
            state[f"{part}.{name}"] = (tensor, tensor.requires_grad, tensor.is_inference(), copy)
        for name, module in network.named_modules():
            own = {k: v for k, v in vars(module).items() if not k.startswith("_") or k == "_v"}
            state[f"{part}.{name}()"] = (module, own)
    return state


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert before.keys() == after.keys()
    for name, (was, *facts) in before.items():
        now, *new_facts = after[name]
        assert now is was, f"{name} is another object"
        if isinstance(was, Tensor) and len(facts) == 3:
            assert torch.equal(facts.pop(), new_facts.pop()), f"{name} has other values"
        assert facts == new_facts, f"{name}: {facts} became {new_facts}"


# -- gradients --------------------------------------------------------------------------------


def test_gradients_reach_the_vectors_from_inside_inference_mode(pack, backbone, vectors, noisy):
    assert torch.is_inference_mode_enabled()
    parameter = vectors.get("ada", "clip_l")
    with backbone.training(None):
        grad = gradient(pack, backbone, vectors, noisy)
        direction, step = grad / grad.norm(), 0.02
        with torch.no_grad():
            values = []
            for sign in (1, -1):
                parameter += sign * step * direction
                values.append(loss_of(pack, backbone, vectors, noisy).double())
                parameter -= sign * step * direction
    slope = (values[0] - values[1]) / (2 * step)
    assert slope == pytest.approx(float(grad.norm()), rel=0.02)


def test_without_the_scope_autograd_refuses(pack, backbone, vectors, noisy):
    with torch.inference_mode(False), pytest.raises(RuntimeError, match="nference tensors"):
        gradient(pack, backbone, vectors, noisy)


def is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


def parameters_of(network: nn.Module, linear: bool) -> dict[str, nn.Parameter]:
    """Those of all linear layers, or of all others."""
    modules = [(n, m) for n, m in network.named_modules() if is_linear(m) is linear]
    return {f"{n}.{k}": p for n, m in modules for k, p in m.named_parameters(recurse=False)}


def test_frozen_weights_collect_no_gradient_and_share_their_memory(
    pack, backbone, tiny, vectors, noisy
):
    where = {n: p.data_ptr() for n, p in backbone.unet.named_parameters()}
    linear = {name: parameters_of(network, True) for name, network in tiny.networks.items()}
    with backbone.training(None):
        loss_of(pack, backbone, vectors, noisy).backward()
        for name, network in tiny.networks.items():
            assert all(p.grad is None for p in network.parameters())
            others = parameters_of(network, False).values()
            assert not any(p.requires_grad or p.is_inference() for p in others)
            assert all(linear[name][n] is p for n, p in parameters_of(network, True).items())
        assert where == {n: p.data_ptr() for n, p in backbone.unet.named_parameters()}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_autograd_keeps_no_weight_of_a_linear_layer(
    pack, make, tiny, vectors, noisy, checkpointing
):
    """Neither the weights themselves nor what they are cast to."""
    model = make.model(dtype=torch.float16, manual_cast=torch.float32)
    backbone = pack.comfy.ComfyBackbone(model, make.clip(dtype=torch.float16), tiny.vae)
    linear = {
        tuple(layer.weight.shape)
        for network in (backbone.unet, *backbone.text_encoders.values())
        for layer in network.modules()
        if is_linear(layer)
    }
    kept: list[Tensor] = []
    blocks = backbone.checkpointed_modules() if checkpointing else ()
    with (
        backbone.training(None),
        pack("magicapture.checkpointing").checkpointed(blocks),
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t),
    ):
        loss = loss_of(pack, backbone, vectors, noisy)
    assert loss.requires_grad and kept
    assert not [t.shape for t in kept if {tuple(t.shape), tuple(t.shape)[::-1]} & linear]


def test_works_from_within_a_generator(pack, backbone, vectors, noisy):
    def steps() -> Iterator[float]:
        with backbone.training(None):
            for _ in range(2):
                yield float(gradient(pack, backbone, vectors, noisy).norm())

    run = steps()
    assert next(run) == next(run) > 0
    run.close()
    assert torch.is_inference_mode_enabled()


def test_checkpointing_leaves_the_gradient_as_it_is(pack, backbone, vectors, noisy):
    blocks = list(backbone.checkpointed_modules())
    assert {type(block).__name__ for block in blocks} == {"BasicTransformerBlock", "ResBlock"}
    with backbone.training(None):
        plain = gradient(pack, backbone, vectors, noisy)
        with pack("magicapture.checkpointing").checkpointed(blocks):
            recomputed = gradient(pack, backbone, vectors, noisy)
    torch.testing.assert_close(recomputed, plain, rtol=1e-5, atol=1e-9)


def test_attention_maps_have_a_gradient(pack, backbone, vectors, noisy):
    attention = pack("magicapture.attention")
    prompt = pack("magicapture.tokens").Prompt(TEXT)
    with (
        backbone.training(None),
        attention.captured(backbone.attention, attention.select(backbone.unet)) as capture,
    ):
        conditioning = backbone.encode_prompts([prompt] * 2, vectors)
        with capture.recording():
            backbone.predict(noisy, torch.tensor([10, 700]), conditioning)
        layers = capture.maps(conditioning.positions, (8, 8))
        torch.stack([layer.values.square().mean() for layer in layers]).sum().backward()
    assert vectors.get("ada", "clip_l").grad.norm() > 0


@pytest.mark.parametrize("part", ["unet", "clip_l"])
def test_a_lora_trains_inside_and_is_gone_after(pack, backbone, loaded, vectors, noisy, part):
    lora = pack("magicapture.lora")
    module = backbone.unet if part == "unet" else backbone.text_encoders[part]
    names = lora.target_names(module, "cross") if part == "unet" else lora.text_target_names(module)
    assert set(names) <= backbone.parts_of(module).keys()
    before = snapshot(loaded.networks)
    with backbone.training(None), lora.injected(module, names, 2, seed=3) as injected:
        loss_of(pack, backbone, vectors, noisy).backward()
        ups = injected.parameters()[1::2]
        assert all(up.grad is not None for up in ups)
        assert any(up.grad.norm() > 0 for up in ups)
    assert_same(before, snapshot(loaded.networks))


def test_whichever_attention_comfyui_runs_there_is_a_gradient(
    pack, make, tiny, vectors, noisy, monkeypatch
):
    """Sage, flash and xformers kernels may have none, or not at a VAE's width."""
    import comfy.ldm.modules.attention as attention

    def kernel(*args: Any, **kwargs: Any) -> Tensor:
        raise AssertionError("a kernel of the user's choice ran inside the scope")

    monkeypatch.setattr(attention, "optimized_attention", attention.wrap_attn(kernel))
    tiny.vae = make.kl()
    blocks = [m for m in tiny.networks["vae"].modules() if hasattr(m, "optimized_attention")]
    assert blocks
    for block in blocks:
        block.optimized_attention = kernel
    backbone = pack.comfy.ComfyBackbone(tiny.model, tiny.clip, tiny.vae)
    with backbone.training(None):
        assert gradient(pack, backbone, vectors, noisy).norm() > 0
    assert all(block.optimized_attention is kernel for block in blocks)


# -- as it was --------------------------------------------------------------------------------


class StopError(Exception):
    pass


@pytest.mark.parametrize("ending", ["done", "error", "cancel"])
def test_all_is_as_before(pack, backbone, loaded, vectors, noisy, ksample, ending):
    import comfy.model_management as management

    picture = ksample(loaded)
    before = snapshot(loaded.networks)
    training = getattr(management, "in_training", None)
    errors = {"error": StopError, "cancel": pack.comfy.Cancelled}
    try:
        with backbone.training(None):
            gradient(pack, backbone, vectors, noisy)
            if ending in errors:
                raise errors[ending]
    except (StopError, pack.comfy.Cancelled):
        assert ending in errors
    assert torch.is_inference_mode_enabled()
    assert getattr(management, "in_training", None) is training
    assert_same(before, snapshot(loaded.networks))
    assert torch.equal(picture, ksample(loaded))


def test_an_error_while_opening_leaves_nothing_behind(pack, backbone, loaded, monkeypatch):
    before = snapshot(loaded.networks)
    scope = pack("nodes._comfy.scope")
    opened = scope._opened
    left = iter(range(40))

    @contextmanager
    def fails(*args: Any) -> Iterator[None]:
        if next(left, None) is None:
            raise StopError
        with opened(*args):
            yield

    monkeypatch.setattr(scope, "_opened", fails)
    with pytest.raises(StopError), backbone.training(None):
        pass
    assert_same(before, snapshot(loaded.networks))


def test_training_modes_and_flags_are_put_back(pack, backbone, loaded):
    loaded.networks["unet"].train()  # as ComfyUI's own trainer leaves it
    with torch.inference_mode(False):
        loaded.networks["unet"].out[2].weight = nn.Parameter(torch.zeros(4, 32, 3, 3))
    before = snapshot(loaded.networks)
    assert loaded.networks["unet"].out[2].weight.requires_grad
    with backbone.training(None):
        assert not loaded.networks["unet"].out[2].training
        assert not loaded.networks["unet"].out[2].weight.requires_grad
    assert_same(before, snapshot(loaded.networks))


# -- dtypes, LoRAs on the model, memory modes ----------------------------------------------------


def user_lora(unet: nn.Module) -> dict[str, Tensor]:
    """A LoRA such as a user loads before ours, in kohya's form."""
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_q"
    layer = unet.input_blocks[1][1].transformer_blocks[0].attn2.to_q
    generator = torch.Generator().manual_seed(5)
    return {
        f"{name}.lora_down.weight": torch.randn(4, layer.in_features, generator=generator),
        f"{name}.lora_up.weight": torch.randn(layer.out_features, 4, generator=generator),
        f"{name}.alpha": torch.tensor(4.0),
    }


def load_lowvram(patchers, **_: Any) -> None:
    """What --novram does: weights stay where they are, LoRAs are applied at every use."""
    for patcher in patchers:
        patcher.partially_load(DEVICE, 0.1)


def load_streamed(patchers, **_: Any) -> None:
    """What dynamic VRAM leaves in the modules: a place in the stream, the LoRA as a function."""
    from comfy.model_patcher import LowVramPatch

    for patcher in patchers:
        patcher.patch_model(load_weights=False)
        for name, module in patcher.model.named_modules():
            if not hasattr(module, "comfy_cast_weights"):
                continue
            key = f"{name}.weight"
            patch = LowVramPatch(key, patcher.patches) if key in patcher.patches else None
            module.comfy_cast_weights, module._v = True, object()
            module.weight_lowvram_function, module.bias_lowvram_function = patch, None


def test_fp16_weights_compute_as_in_sampling_or_as_asked(pack, make, tiny, vectors, noisy):
    model = make.model(dtype=torch.float16, manual_cast=torch.float32)
    clip = make.clip(dtype=torch.float16)
    backbone = pack.comfy.ComfyBackbone(model, clip, tiny.vae)
    assert backbone.dtype == torch.float32
    networks = {"unet": backbone.unet, "clip": clip.cond_stage_model}
    before = snapshot(networks)
    for asked, computes in ((None, torch.float32), (torch.bfloat16, torch.bfloat16)):
        with backbone.training(asked):
            assert backbone.dtype == computes
            for network, dtype in ((backbone.unet, computes), (networks["clip"], torch.float32)):
                assert {p.dtype for p in parameters_of(network, False).values()} == {dtype}
                assert {p.dtype for p in parameters_of(network, True).values()} == {torch.float16}
            assert gradient(pack, backbone, vectors, noisy).norm() > 0
        assert backbone.dtype == torch.float32
        now = snapshot(networks)
        for name, (was, *_) in before.items():
            assert now[name][0] is was


@pytest.mark.parametrize("load", [None, load_lowvram, load_streamed])
def test_a_users_lora_counts_as_in_sampling(pack, tiny, vectors, noisy, ksample, monkeypatch, load):
    import comfy.model_management
    import comfy.sd

    plain = pack.comfy.ComfyBackbone(tiny.model, tiny.clip, tiny.vae)
    prompt = pack("magicapture.tokens").Prompt(TEXT)
    timesteps = torch.tensor([10, 700])
    with plain.training(None), torch.no_grad():
        conditioning = plain.encode_prompts([prompt] * 2, vectors)
        without = plain.predict(noisy, timesteps, conditioning)

    tiny.model, _ = comfy.sd.load_lora_for_models(tiny.model, None, user_lora(plain.unet), 1, 1)
    picture = ksample(tiny)
    sampling = tiny.model.model.model_sampling
    sigmas = sampling.sigmas[timesteps].view(-1, 1, 1, 1)
    scaled = noisy * (sigmas**2 + 1).sqrt()
    denoised = tiny.model.model.apply_model(scaled, sigmas.flatten(), None, conditioning.context)
    expected = (scaled - denoised) / sigmas

    if load:
        comfy.model_management.unload_all_models()
        monkeypatch.setattr(comfy.model_management, "load_models_gpu", load)
    backbone = pack.comfy.ComfyBackbone(tiny.model, tiny.clip, tiny.vae)
    with backbone.training(None):
        for module in backbone.unet.modules():
            if not is_linear(module):
                assert not getattr(module, "weight_function", [])
                assert not hasattr(module, "_v")
        with torch.no_grad():
            prediction = backbone.predict(noisy, timesteps, conditioning)
        assert gradient(pack, backbone, vectors, noisy).norm() > 0
    assert (prediction - without).abs().max() > 1e-3
    torch.testing.assert_close(prediction, expected, rtol=1e-4, atol=1e-4)

    if load is load_streamed:
        assert backbone.unet.out[2]._v
        return  # what only pretends to stream cannot sample
    monkeypatch.undo()
    assert torch.equal(picture, ksample(tiny))


def test_a_picture_with_a_lora_is_as_before_where_weights_are_cast(
    pack, make, tiny, vectors, noisy, ksample
):
    import comfy.sd

    tiny.model = make.model(dtype=torch.float16, manual_cast=torch.float32)
    tiny.clip = make.clip(dtype=torch.float16)
    lora = user_lora(tiny.networks["unet"])
    tiny.model, _ = comfy.sd.load_lora_for_models(tiny.model, None, lora, 1, 1)
    picture = ksample(tiny)
    backbone = pack.comfy.ComfyBackbone(tiny.model, tiny.clip, tiny.vae)
    with backbone.training(torch.float32):
        assert gradient(pack, backbone, vectors, noisy).norm() > 0
    assert torch.equal(picture, ksample(tiny))


def test_a_vae_is_cast_as_dynamic_vram_leaves_it_to_be(pack, backbone, tiny):
    """There a VAE's weights keep the file's dtype, while it computes in another."""
    z = torch.zeros(1, 4, 8, 8)
    with backbone.training(None):
        expected = backbone.decode(z)
    tiny.vae.first_stage_model.half()
    with backbone.training(None):
        torch.testing.assert_close(backbone.decode(z), expected, rtol=1e-2, atol=1e-2)
    assert {p.dtype for p in tiny.vae.first_stage_model.parameters()} == {torch.float16}


@pytest.mark.parametrize("state", ["LOW_VRAM", "NO_VRAM", "HIGH_VRAM"])
def test_holds_in_other_memory_modes(pack, tiny, vectors, noisy, ksample, monkeypatch, state):
    import comfy.model_management as management

    monkeypatch.setattr(management, "vram_state", management.VRAMState[state])
    picture = ksample(tiny)
    backbone = pack.comfy.ComfyBackbone(tiny.model, tiny.clip, tiny.vae)
    with backbone.training(None):
        assert gradient(pack, backbone, vectors, noisy).norm() > 0
    assert torch.equal(picture, ksample(tiny))


# -- what cannot be trained through ---------------------------------------------------------------


@pytest.mark.parametrize("share", [2.0, 0.5])
def test_what_does_not_fit_is_streamed(pack, backbone, vectors, noisy, monkeypatch, share):
    """On a processor that ComfyUI takes for a GPU with memory for a share of the weights."""
    import comfy.model_management as management

    management.unload_all_models()
    with backbone.training(None):
        expected = gradient(pack, backbone, vectors, noisy)
    parts = {id(p): p for p in (backbone._model, backbone._clip.patcher, backbone._vae.patcher)}
    room = share * sum(part.model_size() for part in parts.values())

    def free(device: Any = None, torch_free_too: bool = False) -> Any:
        left = room - sum(one.model_loaded_memory() for one in management.current_loaded_models)
        return (left, left) if torch_free_too else left

    monkeypatch.setattr(management, "get_free_memory", free)
    monkeypatch.setattr(management, "is_device_cpu", lambda device: False)
    monkeypatch.setattr(management, "vram_state", management.VRAMState.NORMAL_VRAM)
    asked, real = [], management.load_models_gpu
    monkeypatch.setattr(
        management,
        "load_models_gpu",
        lambda models, **how: asked.append(how["force_full_load"]) or real(models, **how),
    )
    for _ in range(2):  # the second time they are loaded already
        with backbone.training(None):
            held = sum(part.loaded_size() for part in parts.values())
            torch.testing.assert_close(gradient(pack, backbone, vectors, noisy), expected)
    assert asked == [share > 1] * 2
    # 0.3.64 streams nothing below 128 MB.
    assert (held == room / share) == (share > 1 or not hasattr(management, "in_training"))


def test_replaced_layers_are_refused(pack, tiny, make):
    import comfy.sd

    if not hasattr(comfy.sd, "load_bypass_lora_for_models"):
        pytest.skip("this ComfyUI has no LoRA in bypass mode")
    lora = user_lora(tiny.networks["unet"])
    model, _ = comfy.sd.load_bypass_lora_for_models(tiny.model, None, lora, 1, 1)
    backbone = pack.comfy.ComfyBackbone(model, tiny.clip, tiny.vae)
    error = pack("magicapture.errors").UnsupportedModelError
    with pytest.raises(error, match="bypass"), backbone.training(None):
        pass


def test_weights_that_no_cast_makes_whole_are_refused(pack, backbone):
    backbone.unet.out[2].scale_weight = torch.ones(())
    error = pack("magicapture.errors").UnsupportedModelError
    with pytest.raises(error, match=r"quantised .*Conv2d"), backbone.training(None):
        pass
