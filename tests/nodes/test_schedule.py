"""The schedule of a MODEL against ComfyUI's own EPS, V_PREDICTION and CONST."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.usefixtures("executor")


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def discrete(model, kind: str, zsnr: bool):
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    return ModelSamplingDiscrete().patch(model, kind, zsnr)[0]


def flow(model, shift: float):
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    return ModelSamplingSD3().patch(model, shift)[0]


def flux(model, shift: float):
    from comfy_extras.nodes_model_advanced import ModelSamplingFlux

    return ModelSamplingFlux().patch(model, shift, shift, 1024, 1024)[0]


@pytest.mark.parametrize("zsnr", [False, True])
@pytest.mark.parametrize("kind", ["eps", "v_prediction"])
def test_timesteps_are_comfyuis(pack, tiny, kind, zsnr):
    """ComfyUI's latents are ours divided by a; its network gets them multiplied again."""
    model = discrete(tiny.model, kind, zsnr)
    schedule = pack.comfy.ComfyBackbone(model, tiny.clip, tiny.vae).schedule
    assert schedule.prediction == {"eps": "epsilon"}.get(kind, kind)
    sampling = model.get_model_object("model_sampling")
    t = torch.tensor([0, 20, 500, 900, 999])
    z, epsilon, output = (seeded(len(t), 4, 8, 8, seed=seed) for seed in range(3))
    sigmas = sampling.sigmas[t]
    noisy = sampling.noise_scaling(sigmas, epsilon.clone(), z)
    mine = schedule.add_noise(z, epsilon, t)
    torch.testing.assert_close(sampling.calculate_input(sigmas, noisy), mine, atol=1e-4, rtol=1e-4)
    theirs = sampling.calculate_denoised(sigmas, output, noisy)
    known = 4 if zsnr and kind == "eps" else 5  # epsilon says nothing of z under pure noise
    x0 = schedule.to_x0(output, mine, t)
    assert x0.isfinite().all()
    torch.testing.assert_close(x0[:known], theirs[:known], rtol=1e-3, atol=1e-3)
    assert (schedule.levels.alphas_cumprod[-1] < 1e-7) == zsnr
    assert schedule.snr(t).isfinite().all() and (schedule.snr(t).diff() < 0).all()


@pytest.mark.parametrize(
    ("patched", "given", "shift"),
    [(flow, 1.0, 1.0), (flow, 3.0, 3.0), (flux, 1.15, math.exp(1.15))],
    ids=["SD3, 1", "SD3, 3", "Flux"],
)
def test_a_flow_is_comfyuis_const(pack, tiny, patched, given, shift):
    model = patched(tiny.model, given)
    backbone = pack.comfy.ComfyBackbone(model, tiny.clip, tiny.vae)
    schedule, sampling = backbone.schedule, model.get_model_object("model_sampling")
    assert schedule.prediction == "flow"
    assert schedule.levels.shift == pytest.approx(shift, rel=1e-4)
    sigmas = torch.tensor([0.0, 0.1, 0.6, 0.95, 1.0])
    z, epsilon, output = (seeded(len(sigmas), 4, 8, 8, seed=seed) for seed in range(3))
    noisy = sampling.noise_scaling(sigmas.view(-1, 1, 1, 1), epsilon, z)
    mine = schedule.add_noise(z, epsilon, sigmas)
    assert torch.equal(sampling.calculate_input(sigmas, noisy), mine)
    assert torch.equal(
        sampling.calculate_denoised(sigmas, output, noisy), schedule.to_x0(output, mine, sigmas)
    )
    u = torch.tensor([0.25, 0.5])  # ComfyUI's levels are shifted as ours are drawn
    theirs = torch.stack([torch.as_tensor(sampling.percent_to_sigma(1 - float(x))) for x in u])
    levels = pack("magicapture.schedule").FlowLevels("uniform", schedule.levels.shift)
    torch.testing.assert_close(levels._level(u.double()).float(), theirs.float())


@pytest.mark.parametrize("patched", [flow, flux])
def test_a_flows_network_is_told_what_sampling_tells_it(pack, tiny, patched):
    """x0 by the backbone's schedule is what ComfyUI's samplers get for the same latents."""
    model = patched(tiny.model, 2.0)
    backbone = pack.comfy.ComfyBackbone(model, tiny.clip, tiny.vae)
    with torch.inference_mode(False):
        noisy, sigmas = seeded(3, 4, 8, 8), torch.tensor([0.05, 0.5, 0.99])
    none = pack("magicapture.tokens").TokenVectors({})
    prompts = [pack("magicapture.tokens").Prompt("a photo")] * 3
    inner = model.model
    with backbone.training(None), torch.no_grad():
        conditioning = backbone.encode_prompts(prompts, none)
        x0 = backbone.schedule.to_x0(backbone.predict(noisy, sigmas, conditioning), noisy, sigmas)
    before, inner.model_sampling = inner.model_sampling, model.get_model_object("model_sampling")
    try:
        expected = inner.apply_model(noisy, sigmas, None, conditioning.context)
    finally:
        inner.model_sampling = before
    torch.testing.assert_close(x0, expected, rtol=1e-3, atol=1e-3)


def test_a_flow_of_louder_noise_is_refused(pack, tiny):
    model = flow(tiny.model, 1.0)
    model.get_model_object("model_sampling").noise_scale = 8.0
    error = pack("magicapture.errors").UnsupportedModelError
    with pytest.raises(error, match=r"noise is 8\.0 times"):
        pack.comfy.ComfyBackbone(model, tiny.clip, tiny.vae)
