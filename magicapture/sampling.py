"""Pictures from a backbone: diffusers' samplers with classifier-free guidance.

prompts -> Conditioning -> denoise(...) -> latents -> images
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from .adapters import Adapter, check_strength
from .backbone import Backbone, Conditioning
from .config import Checked, setting
from .errors import InputError, NumericalError
from .families import FAMILIES, FamilyName
from .lora import applied
from .prompts import with_edit
from .schedule import DiscreteLevels, FlowLevels, Schedule
from .tokens import Prompt, TokenVectors

SamplerName = Literal["euler_a", "ddim", "dpmpp_2m"]
EDIT_SHARE = 2.0
"""An edit's strength as a share of the guidance; at 1 the words do what they do in the prompt."""

Callback = Callable[[int, int, Tensor], None]
"""Called after each step with the steps done, all steps, and the latents (B,C,h,w)."""


@dataclass(frozen=True)
class SamplingSettings(Checked):
    """How pictures are drawn from noise."""

    sampler: SamplerName = setting(
        "euler_a",
        "euler_a (Euler ancestral) adds fresh noise at each step; ddim and dpmpp_2m (DPM-Solver++) "
        "add none.",
        release="euler_a",
    )
    steps: int = setting(30, "Denoising steps.", low=2, high=1000, paper=50, release=50)
    guidance: float | None = setting(
        None,
        "How much further to go from the negative prompt towards the prompt; 1 leaves the negative "
        "prompt out. Models that guidance is distilled in (Flux.1 dev) are told it, and have no "
        "negative prompt. Empty is what the base model was made for: 7 for Stable Diffusion, 3.5 "
        "for Flux.1, 4 for Z-Image and Qwen-Image, 5.5 for Krea 2.",
        low=1,
        high=30,
        paper=7.5,
        release=7.0,
    )
    negative: str = setting("", "What the picture should not show.")
    edit: str = setting(
        "",
        "Words that are put behind the prompt and guided by themselves, such as: with round "
        "glasses. Half as much drawing time again.",
    )
    edit_strength: float | None = setting(
        None,
        "How much further to go from the prompt towards the one with the edit; as much as the "
        "guidance is the words written in the prompt, empty is twice that.",
        low=0,
        high=60,
    )
    width: int | None = setting(
        None,
        "Width in pixels, a multiple of 8; empty is what the base model was made for: 512 for "
        "Stable Diffusion 1.x and 2.x, 1024 for XL, 512 for Flux.1, Z-Image, Qwen-Image and "
        "Krea 2, which take multiples of 16.",
        low=64,
        high=4096,
        multiple=8,
    )
    height: int | None = setting(
        None, "Height in pixels, as the width.", low=64, high=4096, multiple=8
    )

    def size(self, family: FamilyName) -> tuple[int, int]:
        """Height and width of a family's pictures, in pixels."""
        own = FAMILIES[family].resolution
        return self.height or own, self.width or own

    def scale(self, family: FamilyName) -> float:
        """Classifier-free guidance for a family; 1, of no negative prompt, if it is distilled."""
        facts = FAMILIES[family]
        return 1.0 if facts.distilled else self.told(family)

    def told(self, family: FamilyName) -> float:
        """The guidance for a family, which models that it is distilled in are told."""
        return FAMILIES[family].guidance if self.guidance is None else self.guidance


DEFAULT = SamplingSettings()


@dataclass(frozen=True)
class Step:
    """One step of a drawing, as a guide sees it.

    share: of the steps done before it, 0 at the first. timestep: (), its level. conditioning: of
    all rows that the UNet gets: negative prompts, prompts, prompts with the edit; the first and
    the last where there are any. negatives: how many rows are negative prompts.
    """

    share: float
    timestep: Tensor
    conditioning: Conditioning
    negatives: int


class Guide(Protocol):
    """Steers a drawing from within, such as `refocusing.PromptRefocuser`."""

    def moved(self, latents: Tensor, step: Step, predict: Callable[[Tensor], Tensor]) -> Tensor:
        """The latents (B,C,h,w) from which the step starts; those given, if nothing is to move.

        predict: one pass of the UNet over the B prompts, with the edit where there is one;
        differentiable in the latents it is given.
        """

    def predicting(self, step: Step, size: tuple[int, int]) -> AbstractContextManager[None]:
        """A scope around the step's pass over all rows; size: of the latents, in cells."""


@runtime_checkable
class SteersGuidance(Protocol):
    """A guide that also changes what guidance multiplies, such as `magicface.ReferenceGuide`."""

    def steered(self, difference: Tensor, guidance: float) -> Tensor:
        """eps_prompt - eps_negative (B,C,h,w) as guidance is to multiply it."""


@contextmanager
def adapted(
    backbone: Backbone,
    adapter: Adapter,
    strength: float = 1.0,
    text_strength: float | None = None,
) -> Iterator[None]:
    """The backbone with the adapter's LoRA in its network and text encoders, while open.

    text_strength: of the text encoders' LoRA; None takes the network's. The token vectors are
    `adapter.vectors()`, which `sample` takes. Raises InputError for a base model of another family
    or width, and for a strength that is no sane number.
    """
    network = FAMILIES[backbone.family].network
    strengths = dict.fromkeys(
        backbone.text_encoders, strength if text_strength is None else text_strength
    ) | {network: strength}
    for value in strengths.values():
        check_strength(value)
    adapter.check_family(backbone.family)
    _check_widths(backbone, adapter)
    with ExitStack() as scope:
        for part, module in {network: backbone.unet, **backbone.text_encoders}.items():
            state = adapter.state_for(part, module, backbone.parts_of(module))
            scope.enter_context(applied(module, state, strengths[part]))
        yield


def _check_widths(backbone: Backbone, adapter: Adapter) -> None:
    for token, of in adapter.tokens.items():
        for encoder, vectors in of.items():
            width = backbone.word_vectors(encoder, "a").shape[1]
            if vectors.shape[1] != width:
                raise InputError(
                    f"The token {token!r} has vectors of width {vectors.shape[1]}, and the base "
                    f"model's text encoder is {width} wide; use the base model of its training."
                )


@torch.no_grad()
def sample(
    backbone: Backbone,
    prompts: str | Sequence[str],
    vectors: TokenVectors | None = None,
    settings: SamplingSettings = DEFAULT,
    *,
    seed: int | Sequence[int] = 0,
    callback: Callback | None = None,
    guide: Guide | None = None,
) -> Tensor:
    """Draw one image for each prompt: (B,3,H,W) in 0..1, float32 on the backbone's device.

    seed: one for each image, or the first of consecutive ones. An image depends on its own seed
    alone, not on its place in a batch. guide: steers the steps. Raises InputError for a size that
    is no multiple of a latent cell, or seeds that do not match the prompts; NumericalError for a
    picture of NaN or infinite values, which would be black.
    """
    latents = sample_latents(
        backbone, prompts, vectors, settings, seed=seed, callback=callback, guide=guide
    )
    images = to_images(backbone, latents)
    if not images.isfinite().all():
        raise NumericalError(
            "The picture holds NaN or infinite values and would be black. Use a lower strength of "
            "the LoRA, weaker guidance, or the precision fp32."
        )
    return images


@torch.no_grad()
def sample_latents(
    backbone: Backbone,
    prompts: str | Sequence[str],
    vectors: TokenVectors | None = None,
    settings: SamplingSettings = DEFAULT,
    *,
    seed: int | Sequence[int] = 0,
    callback: Callback | None = None,
    guide: Guide | None = None,
) -> Tensor:
    """The latents (B,C,h,w) of `sample`, before they are decoded."""
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    generators = seeded(seed, len(texts))
    noise = initial_noise(backbone, generators, settings)
    return denoise(
        backbone,
        noise,
        guided_conditioning(backbone, texts, vectors, settings),
        settings,
        generators=generators,
        callback=callback,
        guide=guide,
    )


def guided_conditioning(
    backbone: Backbone,
    prompts: Sequence[str],
    vectors: TokenVectors | None,
    settings: SamplingSettings,
) -> Conditioning:
    """Encode the prompts (B rows): with guidance behind B negative ones, with an edit before B."""
    family = FAMILIES[backbone.family]
    if family.distilled and settings.negative.strip():
        raise InputError(
            f"{family.title} has no negative prompt, since its guidance is distilled; leave it "
            "empty."
        )
    guided = settings.scale(backbone.family) != 1
    negatives = [settings.negative] * len(prompts) if guided else []
    edited = [with_edit(text, settings.edit) for text in prompts] if settings.edit.strip() else []
    encoded = backbone.encode_prompts(
        [Prompt(text) for text in (*negatives, *prompts, *edited)],
        TokenVectors({}) if vectors is None else vectors,
    )
    if not family.distilled:
        return encoded
    told = encoded.context.new_full((len(encoded),), settings.told(backbone.family))
    return replace(encoded, extra={**encoded.extra, "guidance": told})


@torch.no_grad()
def denoise(
    backbone: Backbone,
    noise: Tensor,
    conditioning: Conditioning,
    settings: SamplingSettings = DEFAULT,
    *,
    generators: list[torch.Generator] | None = None,
    callback: Callback | None = None,
    guide: Guide | None = None,
) -> Tensor:
    """Turn standard normal noise (B,C,h,w) into clean latents of the same shape.

    conditioning: as `guided_conditioning` gives it. generators: one for each image, for the noise
    that an ancestral sampler adds. guide: steers the steps.
    """
    scheduler = make_scheduler(backbone.schedule, settings.sampler)
    scheduler.set_timesteps(settings.steps, device=noise.device)
    noisy = {"generator": generators} if settings.sampler == "euler_a" else {}
    latents = noise * scheduler.init_noise_sigma
    guidance = settings.scale(backbone.family)
    for done, (now, t) in enumerate(_levels(backbone.schedule, scheduler), start=1):
        scope: AbstractContextManager[None] = nullcontext()
        if guide is not None:
            negatives = len(noise) if guidance != 1 else 0
            step = Step((done - 1) / len(scheduler.timesteps), t, conditioning, negatives)
            predict = partial(_prediction, backbone, scheduler, step)
            latents = guide.moved(latents, step, predict)
            scope = guide.predicting(step, (latents.shape[-2], latents.shape[-1]))
        scaled = scheduler.scale_model_input(latents, t)
        steer = guide.steered if isinstance(guide, SteersGuidance) else None
        with scope:
            prediction = guided_prediction(
                backbone,
                scaled,
                t,
                conditioning,
                guidance,
                edit_strength=settings.edit_strength,
                steer=steer,
            )
        latents = scheduler.step(prediction, now, latents, **noisy).prev_sample
        if callback is not None:
            callback(done, settings.steps, latents)
    return latents


def _prediction(backbone: Backbone, scheduler: Any, step: Step, latents: Tensor) -> Tensor:
    """The UNet's output for the prompts alone."""
    rows = len(latents)
    noisy = scheduler.scale_model_input(latents, step.timestep)
    timesteps = backbone.schedule.levels.nearest(step.timestep).expand(rows)
    return backbone.predict(noisy, timesteps, step.conditioning[-rows:])


def guided_prediction(
    backbone: Backbone,
    noisy: Tensor,
    t: Tensor,
    conditioning: Conditioning,
    guidance: float,
    *,
    edit_strength: float | None = DEFAULT.edit_strength,
    steer: Callable[[Tensor, float], Tensor] | None = None,
) -> Tensor:
    """Classifier-free guidance, and the same once more from the prompt to the edited prompt.

    eps_negative + guidance * (eps_prompt - eps_negative) + edit_strength * (eps_edit - eps_prompt)

    noisy: (B,C,h,w); t: () its level. conditioning: as `guided_conditioning` gives it; without rows
    of an edit the last term is left out, and at guidance 1 the negative prompts. edit_strength:
    None is EDIT_SHARE times the guidance. steer: changes the difference that guidance multiplies.
    All rows share one pass of the UNet.
    """
    strength = EDIT_SHARE * guidance if edit_strength is None else edit_strength
    rows = len(conditioning)
    timesteps = backbone.schedule.levels.nearest(t).expand(rows)  # Euler's lie between them
    every = noisy.repeat(rows // len(noisy), 1, 1, 1)
    start, *rest = backbone.predict(every, timesteps, conditioning).split(len(noisy))
    prediction = prompt = start
    if guidance != 1:
        prompt = rest.pop(0)
        difference = prompt - start
        steered = difference if steer is None else steer(difference, guidance)
        prediction = start + guidance * steered
    for edited in rest:
        prediction = prediction + strength * (edited - prompt)
    return prediction


def make_scheduler(schedule: Schedule, sampler: SamplerName) -> Any:
    """One of diffusers' schedulers over the backbone's own levels, from the noisiest on.

    DDIM is DPM-Solver++ of order 1 (Lu et al. 2022), and of a flow the Euler step. diffusers' own
    DDIMScheduler goes to t - T // steps whatever its next timestep is, and starts below T - 1.
    Of a flow, euler_a is the stochastic DPM-Solver++ of order 1.
    """
    from diffusers import DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler

    levels, order = schedule.levels, 2 if sampler == "dpmpp_2m" else 1
    if isinstance(levels, FlowLevels):
        return DPMSolverMultistepScheduler(
            use_flow_sigmas=True,
            flow_shift=levels.shift,
            prediction_type="flow_prediction",
            solver_order=order,
            algorithm_type="sde-dpmsolver++" if sampler == "euler_a" else "dpmsolver++",
        )
    assert isinstance(levels, DiscreteLevels)
    # The least is diffusers' stand-in for the 0 of zero terminal SNR, whose sigma is infinite.
    abar = levels.alphas_cumprod.double().cpu().clamp_min(2**-24)
    betas = 1 - abar / torch.cat([abar.new_ones(1), abar[:-1]])  # abar_t = prod (1 - beta_s)
    common = {
        "num_train_timesteps": len(levels),
        "trained_betas": betas.tolist(),
        "prediction_type": schedule.prediction,
        "timestep_spacing": "linspace",
    }
    if sampler == "euler_a":
        return EulerAncestralDiscreteScheduler(**common)
    return DPMSolverMultistepScheduler(**common, solver_order=order)


def _levels(schedule: Schedule, scheduler: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each step what the scheduler calls it, and its level in the schedule."""
    flow = isinstance(schedule.levels, FlowLevels)
    # diffusers cuts a flow's timesteps, 1000 sigma, down to whole ones
    levels = scheduler.sigmas[:-1].to(scheduler.timesteps.device) if flow else scheduler.timesteps
    yield from zip(scheduler.timesteps, levels, strict=True)


def share_of(level: float, levels: Sequence[float]) -> float:
    """The share of the steps done at a noise level; one between two steps belongs to the first.

    levels: of all steps, falling, with the final clean one; any measure of noise.
    """
    steps = max(len(levels) - 1, 1)
    reached = sum(1 for other in levels if other >= level * (1 - 1e-4))
    return min(max(reached - 1, 0), steps - 1) / steps


def seeded(seed: int | Sequence[int], count: int) -> list[torch.Generator]:
    """One generator for each image, on the CPU, so that a seed repeats on any device."""
    seeds = range(seed, seed + count) if isinstance(seed, int) else seed
    if len(seeds) != count:
        raise InputError(f"There are {len(seeds)} seeds for {count} images; give one for each.")
    return [torch.Generator().manual_seed(one) for one in seeds]


def initial_noise(
    backbone: Backbone, generators: Sequence[torch.Generator], settings: SamplingSettings
) -> Tensor:
    """Standard normal noise (B,C,h,w), float32 on the backbone's device."""
    cell, (height, width) = backbone.downscale, settings.size(backbone.family)
    whole = max(cell, FAMILIES[backbone.family].cell)
    if width % whole or height % whole:
        raise InputError(
            f"The size {width}x{height} cannot be drawn: width and height must be multiples of "
            f"{whole}."
        )
    shape = (backbone.latent_channels, height // cell, width // cell)
    return torch.stack([torch.randn(shape, generator=g) for g in generators]).to(backbone.device)


@torch.no_grad()
def to_images(backbone: Backbone, latents: Tensor) -> Tensor:
    """Decode latents one by one, for the memory's sake, to images in 0..1."""
    return torch.cat([backbone.decode(row[None]) for row in latents]).clamp(0, 1)
