"""Where a MODEL looks for the tokens of a prompt in a picture that is finished."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...magicapture.errors import InputError
from ...magicapture.refocusing import Finder, Recorder, RefocusGuidance, Sight, fit, sights
from .host import check_cancel
from .marks import TOKENS, Marks, marks_in
from .patching import with_options, wrapped
from .refocusing import unrefocused

_KEY = "magicapture_look"
_WRAPPED = (WrappersMP.CALC_COND_BATCH, WrappersMP.DIFFUSION_MODEL)
_STEPS = 100  # of the schedule that the noise is taken from


def look(
    model: ModelPatcher,
    positive: Any,
    latent: dict[str, Any],
    shares: Sequence[float],
    *,
    region: Tensor | None = None,
    seed: int = 0,
) -> list[Sight]:
    """The tokens' attention in the first of some finished latents, noised as at some steps.

    positive: encoded with the tokens marked. latent: what the LATENT socket carries. shares: of
    the steps done, 0 to below 1. region: the subject's (1,1,H,W); None finds it at each step.
    Refocusing patches of MODEL are left out, so that what is seen is the picture's own. Raises
    InputError for a conditioning without tokens.
    """
    if not any(options.get(TOKENS) for _, options in positive):
        raise InputError(
            "The input 'positive' has no marked tokens; encode the prompt with Encode Prompt."
        )
    picture = latent["samples"][:1]
    seen: list[Sight] = []
    model = unrefocused(model)
    sampler = comfy.samplers.sampler_object("euler")
    noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(seed))
    schedule = comfy.samplers.calculate_sigmas(
        model.get_model_object("model_sampling"), "normal", _STEPS
    )
    for share in shares:
        check_cancel()
        viewer = _Viewer(share, region)
        watched = wrapped(model, _KEY, viewer, _WRAPPED)
        guider = comfy.samplers.CFGGuider(watched)
        guider.set_conds(positive, positive)  # at CFG 1 the second is left out
        sigma = schedule[min(int(share * _STEPS), _STEPS - 1)]
        sigmas = torch.stack([sigma, torch.zeros_like(sigma)])
        guider.sample(noise.to(picture), picture, sampler, sigmas, disable_pbar=True, seed=seed)
        seen += viewer.seen
    return seen


class _Viewer:
    """The wrappers that record one prediction."""

    def __init__(self, share: float, region: Tensor | None) -> None:
        self.seen: list[Sight] = []
        self._share, self._region = share, region

    def calc_cond_batch(
        self, executor: Any, model: Any, conds: Any, x: Tensor, timestep: Tensor, options: Any
    ) -> Any:
        marks = marks_in(conds, (x.shape[-2], x.shape[-1]))
        return executor(model, conds, x, timestep, with_options(options, {TOKENS: marks}))

    def diffusion_model(
        self, executor: Any, x: Tensor, timesteps: Any, context: Any, *args: Any, **kwargs: Any
    ) -> Tensor:
        """One pass of the UNet: what its rows with tokens look at."""
        options = next((a for a in args if isinstance(a, dict) and TOKENS in a), {})
        marks: Marks | None = options.get(TOKENS)
        if marks is None or not marks.of:
            return executor(x, timesteps, context, *args, **kwargs)
        held = [marks.of.get(uuid) for uuid in options["uuids"]]
        rows = [() if mark is None else mark.for_context(context.shape[1]) for mark in held]
        size = (x.shape[-2], x.shape[-1])
        unet = executor.class_obj
        recorder, finder = Recorder(unet), Finder(unet, RefocusGuidance())
        with recorder.recording(), finder.recording():
            output = executor(x, timesteps, context, *args, **kwargs)
        maps = recorder.maps(rows, size)
        if self._region is None:
            regions = finder.regions(rows, size)
        else:
            whole = fit(self._region, marks.size)[0, 0]
            regions = [None if mark is None else mark.part_of(whole, size) for mark in held]
        for row, tokens in enumerate(rows):
            self.seen += sights(maps, row, tokens, regions[row], self._share)
        return output
