"""Attention refocusing as a patch of MODEL, in any sampler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from ...magicapture.checkpointing import checkpointed
from ...magicapture.refocusing import Refocuser, RefocusGuidance, descend, fit
from .attention import TappedComfy
from .backbone import unet_blocks
from .culprits import culprits, of_words, whole
from .gradient import Shown, differentiable, frozen_controls, moving, unseen
from .host import Notes
from .marks import TOKENS, Mark, Marks, marked, marks_in
from .models import check_attention, compute_dtype
from .patching import (
    images_of,
    network_of,
    share_done,
    uncompiled,
    unwrapped,
    with_options,
    wrapped,
)
from .scope import Part, gradients_while_sampling

_TITLE = "Refocus Attention"
_KEY = "magicapture_refocus"
_LOSS = "magicapture_refocus_loss"
_PIXELS = 8  # to a latent cell, where a model does not say
_LARGER = 1.5  # a mask's side to the picture's, from where the picture may be a tile

_WRAPPED = (  # each the name of a method of _Patch as well
    WrappersMP.OUTER_SAMPLE,
    WrappersMP.SAMPLER_SAMPLE,
    WrappersMP.PREDICT_NOISE,
    WrappersMP.CALC_COND_BATCH,
    WrappersMP.APPLY_MODEL,
)

Regions = Sequence[Tensor | None]


@dataclass(eq=False)
class UsedRegions:
    """The regions that held the first image's tokens in the last sampling of a MODEL.

    steps: one for each pass of the network, with the share of the steps done: (h,w), or None where
    there was none yet. Empty until a sampling has found some.
    """

    steps: list[tuple[float, Tensor | None]] = field(default_factory=list)


def refocus(
    model: ModelPatcher,
    settings: RefocusGuidance,
    region: Tensor | None = None,
    used: UsedRegions | None = None,
    node: str | None = None,
) -> ModelPatcher:
    """A clone of MODEL whose sampling holds the marked tokens to their region.

    region: the subject's (B,1,H,W) in 0..1 at any size, one for all images or taken in turn; None
    finds it, and writes into `used` what it found in a sampling. node: where messages go while
    sampling. Both strengths 0 give a clone without any patch. Raises UnsupportedModelError for a
    model whose attention is not known (`check_attention`).
    """
    check_attention(model)
    if not settings.acts:
        return model.clone()
    return wrapped(model, _KEY, _Patch(settings, region, used or UsedRegions(), node), _WRAPPED)


def unrefocused(model: ModelPatcher) -> ModelPatcher:
    """A clone of MODEL without what `refocus` put there."""
    return unwrapped(model, _KEY, _WRAPPED)


class _Patch:
    """The wrappers of one patched MODEL. `_found` holds regions while it is sampled."""

    def __init__(
        self,
        settings: RefocusGuidance,
        region: Tensor | None,
        used: UsedRegions,
        node: str | None,
    ) -> None:
        self._settings, self._region, self._used = settings, region, used
        self._notes = Notes(_TITLE, node)
        self._forget()

    def _forget(self) -> None:
        self._found: dict[tuple[Any, int], Tensor | None] = {}  # by conditioning's uuid and image
        self._finding: dict[tuple[Any, int], Tensor | None] = {}  # for the next prediction
        self._engines: dict[nn.Module, Refocuser] = {}
        self._tokens: bool | None = None  # whether a prompt has any; None before the first
        self._moves = False  # whether the gradient has moved the latents

    def outer_sample(self, executor: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Any:
        """A whole sampling: what is held for it is let go at its end, also when cancelled."""
        self._used.steps = []
        self._notes.begin()
        format = executor.class_obj.model_patcher.get_model_object("latent_format")
        pixels = getattr(format, "spacial_downscale_ratio", _PIXELS)
        self._check_size([pixels * side for side in noise.shape[-2:]])
        try:
            result = executor(noise, *args, **kwargs)
            self._check_held()
            return result
        finally:
            steps = self._used.steps
            self._used.steps = [(share, r if r is None else r.cpu()) for share, r in steps]
            self._forget()

    def sampler_sample(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """The sampler's loop; in the gradient's window, its latents move before a prediction."""
        if not self._settings.gradient:
            return executor(*args, **kwargs)
        with moving(executor.class_obj, self._move) as reached:
            if not reached:
                self._notes.say(
                    f"The gradient does not act with {type(executor.class_obj).__name__}, a "
                    "sampler that is not of ComfyUI's own kind; choose another."
                )
            return executor(*args, **kwargs)

    def predict_noise(self, executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        """One prediction, of several passes: all of them see the regions of the one before."""
        self._found.update(self._finding)
        self._finding = {}
        return executor(*args, **kwargs)

    def calc_cond_batch(
        self, executor: Any, model: Any, conds: Any, x: Tensor, timestep: Tensor, options: Any
    ) -> Any:
        """A batch of conditionings: hand their marks on to the passes of the network."""
        marks = marks_in(conds, (x.shape[-2], x.shape[-1]))
        self._tokens = bool(self._tokens) or bool(marks.of)
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
        """One pass of the network over rows of several conditionings, as it is written."""
        options = transformer_options or {}
        marks: Marks | None = options.get(TOKENS)
        uuids = options.get("uuids")
        measure = options.get(_LOSS)

        def run(options: Any) -> Tensor:
            with uncompiled():
                return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

        held = None if marks is None or not uuids else [marks.of.get(uuid) for uuid in uuids]
        if held is None or not any(held) or (measure is not None and measure.owner is not self):
            return run(options)

        network = network_of(executor.class_obj)
        engine = self._engine(network)
        images = images_of(options, len(x) // len(uuids))
        size = (x.shape[-2], x.shape[-1])
        tokens = [() if mark is None else mark.for_context(c_crossattn.shape[1]) for mark in held]
        rows = [line for line in tokens for _ in images]
        regions = self._regions(held, uuids, marks, size, images, x.device)

        if measure is not None:
            given = None if self._region is None else regions
            loss = engine.loss(lambda: run(differentiable(options)), rows, given, size)
            measure.add(loss.view(len(uuids), len(images)), images)
            return torch.zeros_like(x)  # of no use: the loss comes from the maps

        keys = [(uuid, image) for uuid in uuids for image in images]
        if self._region is None and not self._finding:
            first = next(i for i, tokens in enumerate(rows) if tokens)
            self._used.steps.append((share_done(options["sigmas"], options), regions[first]))

        def found(regions: Regions) -> None:
            for key, region in zip(keys, regions, strict=True):
                # A pass that is repeated with attention perturbed shows less than the first.
                self._finding.setdefault(key, region)

        kinds = of_words(network)
        telling = whole(_TITLE, options, kinds, "Leave it out, or Refocus Attention.")
        finding = found if self._region is None else None
        with telling, engine.holding(rows, regions, size, finding):
            result = run(options)
        self._warn_of(engine, options, kinds[0])
        return result

    def _engine(self, network: nn.Module) -> Refocuser:
        if network not in self._engines:
            self._engines[network] = Refocuser(TappedComfy.of(network), self._settings)
        return self._engines[network]

    def _regions(
        self,
        held: Sequence[Mark | None],
        uuids: Sequence[Any],
        marks: Marks,
        size: tuple[int, int],
        images: Sequence[int],
        device: torch.device,
    ) -> list[Tensor | None]:
        """The region of each row, cut to the area of its conditioning."""
        regions: list[Tensor | None] = []
        for mark, uuid in zip(held, uuids, strict=True):
            if mark is None:
                regions += [None] * len(images)
            elif self._region is None:
                regions += [self._found.get((uuid, image)) for image in images]
            else:
                whole_picture = fit(self._region.to(device), marks.size)[:, 0]
                part = mark.part_of(whole_picture, size)
                regions += [part[image % len(part)] for image in images]
        return regions

    def _move(self, guider: Any, x: Tensor, sigma: Tensor, options: Any, shown: Shown) -> None:
        """Bring the sampler's latents to a lower loss, in place, for it to go on from there."""
        inner = options.get("transformer_options", {})
        conds = marked(list(guider.conds.values()))
        if not conds or not self._settings.moves_at(share_done(sigma, inner)):
            return
        moved = self._moved(
            guider, x, sigma, {**options, "transformer_options": unseen(inner)}, conds, shown
        )
        if moved is not x:
            self._moves = True
            x.copy_(moved)

    def _moved(
        self,
        guider: Any,
        x: Tensor,
        sigma: Tensor,
        options: Any,
        conds: Sequence[dict[str, Any]],
        shown: Shown,
    ) -> Tensor:
        """The latents after the gradient's moves; `x` itself where none was made."""
        patcher, model, settings = guider.model_patcher, guider.inner_model, self._settings
        part = Part(patcher, model.diffusion_model, compute_dtype(patcher))
        blocks = unet_blocks(model.diffusion_model) if settings.save_memory else ()
        with gradients_while_sampling(part), checkpointed(blocks):
            frozen, sigma = frozen_controls(conds), sigma.clone()

            def loss_of(at: Tensor) -> Tensor:
                measure = _Measure(self)
                own = with_options(options, {_LOSS: measure})
                comfy.samplers.calc_cond_batch(model, [frozen], shown(at), sigma, own)
                return measure.of_each(at)

            return descend(
                x,
                loss_of,
                step=settings.gradient,
                iterations=settings.iterations,
                threshold=settings.threshold,
            )

    def _check_size(self, drawn: Sequence[int]) -> None:
        """Say where the mask may be that of a whole picture of which only a tile is drawn."""
        if self._region is None or len(drawn) < 2:
            return
        mask = self._region.shape[-2:]
        if max(a / b for a, b in zip(mask, drawn, strict=True)) > _LARGER:
            self._notes.say(
                f"The mask is {mask[1]}x{mask[0]} pixels and the picture drawn is "
                f"{drawn[1]}x{drawn[0]}, into which the whole mask is fitted; in an upscaler that "
                "draws tiles every tile would get all of it, so leave Refocus Attention out there."
            )

    def _warn_of(self, engine: Refocuser, options: Any, kind: str) -> None:
        if options.get("patches_replace", {}).get(kind):
            self._notes.say(
                f"{culprits(options, kind)} replaces layers that attend to the prompt; nothing is "
                "held in those whose attention it computes by itself."
            )
        if engine.blind:
            self._notes.say(
                "Some passes show no attention, as where a cache skips them; they are left as "
                "they are."
            )

    def _check_held(self) -> None:
        """Say where nothing was held in a whole sampling."""
        if self._tokens is False:
            self._notes.say(
                "No token was held: the prompt has none that is marked. Encode it with Encode "
                "Prompt in place of CLIP Text Encode, with an adapter or with words to hold."
            )
        if not self._tokens or self._moves or any(e.held for e in self._engines.values()):
            return
        if not self._settings.bias:
            why = "no step was in the gradient's window, or the loss was below the threshold"
        elif self._region is None:
            why = "no pass showed a region in time; connect a mask"
        else:
            why = "no pass computed its attention to the prompt where it could be held"
        self._notes.say(f"No token was held: {why}.")


class _Measure:
    """Collects the losses of the passes of one prediction."""

    def __init__(self, owner: _Patch) -> None:
        self.owner = owner
        self._parts: list[tuple[Tensor, Sequence[int]]] = []

    def add(self, losses: Tensor, images: Sequence[int]) -> None:
        """Those of one pass, (conditionings, images), and which of all images these are."""
        self._parts.append((losses, images))

    def of_each(self, latents: Tensor) -> Tensor:
        """The mean of each image's (B,); 0 where a pass had none."""
        total, count = latents.new_zeros(2, len(latents), dtype=torch.float32)
        for losses, images in self._parts:
            index = torch.tensor(list(images), device=latents.device)
            total = total.index_add(0, index, losses.to(total).sum(0))
            count = count.index_add(0, index, torch.full_like(index, len(losses)).to(total))
        return total / count.clamp_min(1)
