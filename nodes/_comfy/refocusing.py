"""Attention refocusing as a patch of MODEL, in any sampler."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import comfy.samplers
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from ...magicapture.checkpointing import checkpointed
from ...magicapture.errors import UnsupportedModelError
from ...magicapture.refocusing import Refocuser, RefocusGuidance, descend, fit
from .attention import OVERRIDE, TappedComfy
from .backbone import unet_blocks
from .marks import TOKENS, Mark, Marks, marked, marks_in
from .models import compute_dtype
from .patching import share_done, unwrapped, with_options, wrapped
from .scope import Part, gradients_while_sampling

logger = logging.getLogger(__name__)

_KEY = "magicapture_refocus"
_LOSS = "magicapture_refocus_loss"

_WRAPPED = (  # each the name of a method of _Patch as well
    WrappersMP.OUTER_SAMPLE,
    WrappersMP.PREDICT_NOISE,
    WrappersMP.CALC_COND_BATCH,
    WrappersMP.DIFFUSION_MODEL,
)

Regions = Sequence[Tensor | None]


@dataclass(eq=False)
class UsedRegions:
    """The regions that held the first image's tokens in the last sampling of a MODEL.

    steps: one for each pass of the UNet, with the share of the steps done: (h,w), or None where
    there was none yet. Empty until a sampling has found some.
    """

    steps: list[tuple[float, Tensor | None]] = field(default_factory=list)


def refocus(
    model: ModelPatcher,
    settings: RefocusGuidance,
    region: Tensor | None = None,
    used: UsedRegions | None = None,
) -> ModelPatcher:
    """A clone of MODEL whose sampling holds the marked tokens to their region.

    region: the subject's (B,1,H,W) in 0..1 at any size, one for all images or taken in turn; None
    finds it, and writes into `used` what it found in a sampling. Both strengths 0 give a clone
    without any patch. Raises UnsupportedModelError for a model without Stable Diffusion's UNet.
    """
    network = getattr(model.model, "diffusion_model", None)
    if not isinstance(network, UNetModel):
        raise UnsupportedModelError(
            f"The input 'model' holds {type(network).__name__}; refocusing works on the UNets of "
            "Stable Diffusion 1.x, 2.x and XL. Connect such a checkpoint."
        )
    if not settings.acts:
        return model.clone()
    return wrapped(model, _KEY, _Patch(settings, region, used or UsedRegions()), _WRAPPED)


def unrefocused(model: ModelPatcher) -> ModelPatcher:
    """A clone of MODEL without what `refocus` put there."""
    return unwrapped(model, _KEY, _WRAPPED)


class _Patch:
    """The wrappers of one patched MODEL. `_found` holds regions while it is sampled."""

    def __init__(self, settings: RefocusGuidance, region: Tensor | None, used: UsedRegions) -> None:
        self._settings, self._region, self._used = settings, region, used
        self._found: dict[Any, Regions] = {}  # by the conditioning's uuid, one for each image
        self._engines: dict[nn.Module, Refocuser] = {}
        self._warned = False

    def outer_sample(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """A whole sampling: what is held for it is let go at its end, also when cancelled."""
        self._used.steps = []
        try:
            return executor(*args, **kwargs)
        finally:
            steps = self._used.steps
            self._used.steps = [(share, r if r is None else r.cpu()) for share, r in steps]
            self._found, self._engines, self._warned = {}, {}, False

    def predict_noise(
        self,
        executor: Any,
        x: Tensor,
        timestep: Tensor,
        model_options: Any = None,
        seed: Any = None,
    ) -> Tensor:
        """One prediction; in the gradient's window, the latents move first."""
        options = model_options or {}
        if self._settings.moves_at(share_done(timestep, options.get("transformer_options", {}))):
            moved = self._moved(executor.class_obj, x, timestep, options)
            if moved is not x:
                # In place, for the sampler to go on from there: it holds this very tensor.
                x.copy_(moved)
        return executor(x, timestep, options, seed)

    def calc_cond_batch(
        self, executor: Any, model: Any, conds: Any, x: Tensor, timestep: Tensor, options: Any
    ) -> Any:
        """A batch of conditionings: hand their marks on to the passes of the UNet."""
        marks = marks_in(conds, (x.shape[-2], x.shape[-1]))
        return executor(model, conds, x, timestep, with_options(options, {TOKENS: marks}))

    def diffusion_model(
        self,
        executor: Any,
        x: Tensor,
        timesteps: Any,
        context: Any,
        y: Any = None,
        control: Any = None,
        options: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        """One pass of the UNet over rows of several conditionings."""
        options = options or {}
        marks: Marks | None = options.get(TOKENS)
        uuids = options.get("uuids")
        measure = options.get(_LOSS)
        held = None if marks is None or not uuids else [marks.of.get(uuid) for uuid in uuids]
        if held is None or not any(held) or (measure is not None and measure.owner is not self):
            return executor(x, timesteps, context, y, control, options, **kwargs)

        engine = self._engine(executor.class_obj)
        images = len(x) // len(uuids)
        size = (x.shape[-2], x.shape[-1])
        tokens = [() if mark is None else mark.for_context(context.shape[1]) for mark in held]
        rows = [line for line in tokens for _ in range(images)]
        regions = self._regions(held, uuids, marks, size, images, x.device)

        def run(transformer_options: Any) -> Tensor:
            return executor(x, timesteps, context, y, control, transformer_options, **kwargs)

        if measure is not None:
            given = None if self._region is None else regions
            loss = engine.loss(lambda: run({**options, OVERRIDE: _pytorch}), rows, given, size)
            measure.losses.append(loss.view(len(uuids), images))
            return torch.zeros_like(x)  # of no use: the loss comes from the maps

        self._warn_of(options)
        if self._region is None:
            first = next(i for i, tokens in enumerate(rows) if tokens)
            self._used.steps.append((share_done(options["sigmas"], options), regions[first]))

        def found(regions: Regions) -> None:
            for i, uuid in enumerate(uuids):
                self._found[uuid] = regions[i * images : (i + 1) * images]

        with engine.holding(rows, regions, size, found if self._region is None else None):
            return run(options)

    def _engine(self, unet: nn.Module) -> Refocuser:
        if unet not in self._engines:
            self._engines[unet] = Refocuser(TappedComfy.of(unet), self._settings)
        return self._engines[unet]

    def _regions(
        self,
        held: Sequence[Mark | None],
        uuids: Sequence[Any],
        marks: Marks,
        size: tuple[int, int],
        images: int,
        device: torch.device,
    ) -> list[Tensor | None]:
        """The region of each row, cut to the area of its conditioning."""
        regions: list[Tensor | None] = []
        for mark, uuid in zip(held, uuids, strict=True):
            if mark is None:
                regions += [None] * images
            elif self._region is None:
                regions += self._found.get(uuid, [None] * images)
            else:
                whole = fit(self._region.to(device), marks.size)[:, 0]
                part = mark.part_of(whole, size)
                regions += [part[i % len(part)] for i in range(images)]
        return regions

    def _moved(self, guider: Any, x: Tensor, timestep: Tensor, options: Any) -> Tensor:
        """The latents after the gradient's moves; `x` itself where none was made."""
        patcher, model, settings = guider.model_patcher, guider.inner_model, self._settings
        conds = marked(list(guider.conds.values()))
        if not conds:
            return x
        part = Part(patcher, model.diffusion_model, compute_dtype(patcher))
        blocks = unet_blocks(model.diffusion_model) if settings.save_memory else ()
        with gradients_while_sampling(part), _frozen_controls(conds) as frozen:
            sigma = timestep.clone()

            def loss_of(at: Tensor) -> Tensor:
                measure = _Measure(self)
                own = with_options(options, {_LOSS: measure})
                comfy.samplers.calc_cond_batch(model, [frozen], at, sigma, own)
                losses = measure.losses
                return torch.cat(losses).mean(0) if losses else at.new_zeros(len(at))

            with checkpointed(blocks):
                return descend(
                    x,
                    loss_of,
                    step=settings.gradient,
                    iterations=settings.iterations,
                    threshold=settings.threshold,
                )

    def _warn_of(self, options: Any) -> None:
        if not self._warned and options.get("patches_replace", {}).get("attn2"):
            self._warned = True
            logger.warning(
                "Refocus Attention: another node (such as IP-Adapter) replaces cross-attention; "
                "the bias does not act in the layers it replaces, the gradient does."
            )


class _Measure:
    """Collects the losses of the passes of one prediction, each (conditionings, images)."""

    def __init__(self, owner: _Patch) -> None:
        self.owner, self.losses = owner, list[Tensor]()


class _Frozen:
    """A ControlNet whose output counts as a constant: it has no gradient and needs none."""

    def __init__(self, control: Any) -> None:
        self._control = control

    def get_control(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch.inference_mode():
            output = self._control.get_control(x.detach(), *args, **kwargs)
        return {
            name: [None if hint is None else hint.clone() for hint in hints]
            for name, hints in (output or {}).items()
        }

    def __getattr__(self, name: str) -> Any:
        return getattr(self._control, name)


@contextmanager
def _frozen_controls(conds: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The conditionings with every ControlNet frozen, one and the same staying one."""
    frozen: dict[int, _Frozen] = {}
    yield [
        {**cond, "control": frozen.setdefault(id(cond["control"]), _Frozen(cond["control"]))}
        if cond.get("control") is not None
        else cond
        for cond in conds
    ]


def _pytorch(_: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """PyTorch's attention, which is differentiable, whichever kernel ComfyUI was started with."""
    return attention_pytorch(*args, **kwargs)
