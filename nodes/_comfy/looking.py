"""Where a MODEL looks for the tokens of a prompt in a picture that is finished."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...magicapture.errors import InputError, UnsupportedModelError
from ...magicapture.refocusing import (
    Finder,
    RefocusGuidance,
    TokenMap,
    all_maps,
    capture_of,
    fit,
    token_maps,
)
from .attention import TappedComfy
from .culprits import culprits, of_words
from .host import check_cancel
from .marks import TOKENS, Marks, marks_in
from .models import check_attention
from .patching import network_of, uncompiled, with_options, wrapped
from .prompts import WITHOUT_EXTRA
from .refocusing import unrefocused

_KEY = "magicapture_look"
_WRAPPED = (  # each the name of a method of _Viewer as well
    WrappersMP.CALC_COND_BATCH,
    WrappersMP.APPLY_MODEL,
)
_STEPS = 100  # of the schedule that the noise is taken from


def look(
    model: ModelPatcher,
    positive: Any,
    latent: dict[str, Any],
    shares: Sequence[float],
    *,
    region: Tensor | None = None,
    seed: int = 0,
) -> list[TokenMap]:
    """The tokens' attention in the first of some finished latents, noised as at some steps.

    positive: encoded with the tokens marked; of a text with extra words the whole is looked at.
    latent: what the LATENT socket carries. shares: of the steps done, 0 to below 1. region: the
    subject's (1,1,H,W); None finds it at each step.
    Refocusing patches of MODEL are left out, so that what is seen is the picture's own. Raises
    InputError for a conditioning without tokens, UnsupportedModelError where no attention shows or
    the model's is not known (`check_attention`).
    """
    check_attention(model)
    if not any(options.get(TOKENS) for _, options in positive):
        raise InputError(
            "The input 'positive' has no marked tokens; encode the prompt with Encode Prompt."
        )
    positive = [part for part in positive if WITHOUT_EXTRA not in part[1]]
    picture = latent["samples"][:1]
    seen: list[TokenMap] = []
    model = unrefocused(model)
    for share in shares:
        check_cancel()
        viewer = _Viewer(share, region)
        predict_noised(
            wrapped(model, _KEY, viewer, _WRAPPED), positive, positive, picture, share, seed
        )
        seen += viewer.seen
    if not seen:
        options = model.model_options.get("transformer_options", {})
        names = culprits(options, *of_words(network_of(model.model)))
        raise UnsupportedModelError(
            f"No attention to the prompt can be seen: {names} replaces, merges or tiles it. Leave "
            "it out here."
        )
    return seen


def predict_noised(
    model: ModelPatcher,
    positive: Any,
    negative: Any,
    latents: Tensor,
    share: float,
    seed: int = 0,
    cfg: float = 1.0,
) -> None:
    """One prediction of MODEL for finished latents, noised as at a share of the sampling steps.

    What it looks at is for MODEL's patches to record. At cfg 1 the negative prompt is left out.
    """
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed))
    sampling = model.get_model_object("model_sampling")
    schedule = comfy.samplers.calculate_sigmas(sampling, "normal", _STEPS)
    sigma = schedule[min(int(share * _STEPS), _STEPS - 1)]
    sigmas = torch.stack([sigma, torch.zeros_like(sigma)])
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    sampler = comfy.samplers.sampler_object("euler")
    guider.sample(noise.to(latents), latents, sampler, sigmas, disable_pbar=True, seed=seed)


class _Viewer:
    """The wrappers that record one prediction."""

    def __init__(self, share: float, region: Tensor | None) -> None:
        self.seen: list[TokenMap] = []
        self._share, self._region = share, region

    def calc_cond_batch(
        self, executor: Any, model: Any, conds: Any, x: Tensor, timestep: Tensor, options: Any
    ) -> Any:
        marks = marks_in(conds, (x.shape[-2], x.shape[-1]))
        return executor(model, conds, x, timestep, with_options(options, {TOKENS: marks}))

    def apply_model(
        self,
        executor: Any,
        x: Tensor,
        t: Tensor,
        c_concat: Any = None,
        c_crossattn: Any = None,
        control: Any = None,
        transformer_options: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        """One pass of the model, as it is written: what its rows with tokens look at."""
        options = transformer_options or {}
        marks: Marks | None = options.get(TOKENS)

        def run() -> Tensor:
            with uncompiled():
                return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

        if marks is None or not marks.of:
            return run()
        held = [marks.of.get(uuid) for uuid in options["uuids"]]
        rows = [() if mark is None else mark.for_context(c_crossattn.shape[1]) for mark in held]
        size = (x.shape[-2], x.shape[-1])
        network = TappedComfy.of(network_of(executor.class_obj))
        capture, finder = capture_of(network), Finder(network, RefocusGuidance())
        with capture.recording(), finder.recording():
            output = run()
        maps = all_maps(capture, rows, size)
        if self._region is None:
            regions = finder.regions(rows, size)
        else:
            whole = fit(self._region, marks.size)[0, 0]
            regions = [None if mark is None else mark.part_of(whole, size) for mark in held]
        for row, tokens in enumerate(rows):
            self.seen += token_maps(maps, row, tokens, regions[row], self._share)
        return output
