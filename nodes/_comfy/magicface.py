"""MagicFace as a patch of MODEL, in any sampler; nothing of it outlives the sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import comfy.samplers
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...magicapture.errors import InputError, UnsupportedModelError
from ...magicapture.magicface import (
    Keys,
    MagicFaceSettings,
    Reference,
    ReferenceRows,
    Rows,
    Seen,
    Session,
    Stage,
    reference_rows,
    share_at,
)
from .attention import TappedComfy
from .culprits import SELF, culprits, whole
from .host import Notes
from .looking import predict_noised
from .models import autoencoder_of, downscale_of, latent_channels
from .patching import patches, step_sigma, uncompiled, wrapped
from .prompts import Encoded, encode_prompt, text_length, word_columns
from .sockets import images_to_socket

_TITLE = "Apply MagicFace"
_KEY = "magicapture_magicface"
_LOOK = "magicapture_magicface_look"
_WRAPPED = (  # each the name of a method of _Patch as well
    WrappersMP.OUTER_SAMPLE,
    WrappersMP.PREDICT_NOISE,
    WrappersMP.APPLY_MODEL,
)

Kind = Literal["prompt", "with more", "other"]
"""What a conditioning is of the prompt: it, it with more words behind (extra), or neither."""


@dataclass(frozen=True)
class Prepared:
    """What a patch needs: the references, encoded, and the prompt.

    prompts: one for each of the references' rows. columns: of each concept's words. length: of the
    prompt, in columns of its context.
    """

    rows: ReferenceRows
    prompts: Sequence[Encoded]
    positive: Encoded
    columns: Sequence[Sequence[int]]
    length: int


def prepare(
    model: ModelPatcher,
    clip: Any,
    vae: Any,
    references: Sequence[Reference],
    prompt: str,
    side: int,
) -> Prepared:
    """Encode references and prompt for a MODEL.

    side: of the squares that the references are brought to, in pixels. Raises
    UnsupportedModelError for a model without Stable Diffusion's UNet, InputError for a word that
    the prompt lacks.
    """
    _require_unet(model)
    autoencoder_of(vae, model)
    if clip is None:
        raise InputError("There is no text encoder at the input 'clip'; connect one.")
    positive = encode_prompt(clip, prompt)
    columns = word_columns(clip, references, prompt, positive)

    def encode(images: Tensor) -> Tensor:
        latents = vae.encode(images_to_socket(images)).cpu().float()
        return model.model.process_latent_in(latents)

    rows = reference_rows(references, side, downscale_of(vae), encode)
    prompts = [encode_prompt(clip, text) for text in rows.prompts]
    return Prepared(rows, prompts, positive, columns, text_length(clip, prompt))


def apply_references(
    model: ModelPatcher, prepared: Prepared, settings: MagicFaceSettings, node: str | None = None
) -> ModelPatcher:
    """A clone of MODEL whose sampling sees the references.

    node: where messages go while sampling. Raises InputError for a model that has references.
    """
    if patches(model, _KEY, WrappersMP.OUTER_SAMPLE):
        raise InputError(
            "This model has references already; chain the MagicFace Reference nodes instead, and "
            "apply them at once."
        )
    patch = _Patch(prepared, settings, node)
    model = wrapped(model, _KEY, patch, _WRAPPED)
    if settings.region_guidance:
        model.set_model_sampler_pre_cfg_function(patch.pre_cfg)
    return model


def look(
    model: ModelPatcher, positive: Any, negative: Any, latent: Tensor, share: float
) -> tuple[tuple[str, ...], Seen]:
    """The concepts and where a patched MODEL sees them in finished latents (B,C,h,w).

    share: of the sampling steps at which to look: the latents are noised as they are then, and go
    through the UNet once. Raises InputError for a model without references and for a prompt that
    is not drawn in the whole picture then, UnsupportedModelError where no attention shows.
    """
    if not patches(model, _KEY, WrappersMP.OUTER_SAMPLE):
        raise InputError("The model has no references; connect the MODEL of Apply MagicFace.")
    found: list[tuple[tuple[str, ...], Seen | None]] = []
    model = model.clone()
    model.model_options["transformer_options"][_LOOK] = found.append
    predict_noised(model, positive, negative, latent, share, cfg=2.0)  # 1 leaves out the negative
    if not found:
        raise InputError(
            "The prompt given to Apply MagicFace is not drawn in the whole picture at this 'share' "
            "of the steps: its CONDITIONING has an area or a range of steps. Connect it without."
        )
    names, seen = found[-1]
    if seen is None:
        options = model.model_options["transformer_options"]
        others = culprits(options, *SELF, "attn2")
        raise UnsupportedModelError(
            f"No regions can be seen: {others} merges, tiles or replaces the attention that shows "
            "them. Leave it out here."
        )
    return names, seen


class _Patch:
    """The wrappers of one patched MODEL; `session` is there while it is sampled."""

    def __init__(self, prepared: Prepared, settings: MagicFaceSettings, node: str | None) -> None:
        self._prepared, self._settings = prepared, settings
        self._notes = Notes(_TITLE, node)
        self._session: Session | None = None
        self._keys: Keys = {}
        self._stage: Stage = "off"
        self._stages: set[Stage] = set()  # of the sampling so far
        self._size: Sequence[int] = ()  # of the whole picture, in latent cells
        self._drawn = False  # whether a pass drew the prompt in all of it
        self._kinds: dict[Any, Kind] = {}  # what each conditioning is of the prompt, by its uuid

    def __deepcopy__(self, memo: Any) -> _Patch:
        """The patch itself: every clone of a MODEL copies its options deeply, and `pre_cfg` is one
        of them, which must go on seeing the session that the wrappers hold.
        """
        return self

    def outer_sample(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """A whole sampling: what is held for it is let go at its end, also when cancelled."""
        prepared, unet = self._prepared, executor.class_obj.model_patcher.model.diffusion_model
        length = prepared.positive.context.shape[1]
        session = Session(
            TappedComfy.of(unet), prepared.rows, prepared.columns, length, self._settings
        )
        self._session, self._kinds, self._stages = session, {}, set()
        self._drawn = False
        self._notes.begin()
        try:
            result = executor(*args, **kwargs)
        finally:
            self._session, self._keys, self._stage = None, {}, "off"
        self._check_acted(session)
        return result

    def _check_acted(self, session: Session) -> None:
        """Say which references gave nothing to a whole sampling, and why."""
        missing = session.missing()
        for name in missing:
            self._notes.say(
                f"No part of the picture was drawn as {name!r}: its reference gave no details."
            )
        if session.acted or missing or not self._stages - {"look"}:
            return
        if self._stages == {"off"}:
            why = "the sampling began when 'stop' was over; raise it, or 'denoise'"
        else:
            why = "no pass of the sampler drew the prompt given here where they could be seen"
        self._notes.say(f"The references gave nothing: {why}.")

    def predict_noise(
        self,
        executor: Any,
        x: Tensor,
        timestep: Tensor,
        model_options: Any = None,
        seed: Any = None,
    ) -> Tensor:
        """One prediction: the references go through the UNet first, on their own."""
        options = (model_options or {}).get("transformer_options", {})
        session = self._session
        if session is None:  # predicted by hand, outside any sampling
            return executor(x, timestep, model_options, seed)
        sigma = timestep.flatten()[:1]
        self._know(executor.class_obj)
        self._stage, self._keys = self._stage_at(sigma, options), {}
        self._stages.add(self._stage)
        self._size = x.shape[-2:]
        if self._stage in ("layout", "details"):
            model = executor.class_obj.inner_model
            run = partial(_references_pass, model, self._prepared, self._settings, sigma, options)
            with uncompiled():
                self._keys = session.keys(float(sigma), run)
        result = executor(x, timestep, model_options, seed)
        if _LOOK in options and self._drawn:
            options[_LOOK]((self._prepared.rows.names, session.seen))
        return result

    def _stage_at(self, sigma: Tensor, options: dict[str, Any]) -> Stage:
        if _LOOK in options:
            return "look"
        return self._settings.stage(share_at(step_sigma(sigma, options)))

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
        """One pass of the UNet over the picture's rows."""
        run = partial(
            executor, x, t, c_concat, c_crossattn, control, transformer_options or {}, **kwargs
        )
        session = self._session
        if session is None or self._stage == "off" or c_crossattn is None:
            return run()
        rows, own = self._rows(c_crossattn, transformer_options or {})
        before = session.seen
        instead = "Leave it out; or set 'switch' to 1, which needs no regions, if it only merges."
        telling = whole(_TITLE, transformer_options or {}, SELF, instead)
        with telling, uncompiled(), session.drawing(self._stage, self._keys, rows):
            result = run()
        whole_picture = tuple(x.shape[-2:]) == tuple(self._size)
        self._drawn = self._drawn or (whole_picture and bool(rows.conditional))
        if not whole_picture:  # an area's regions are not the picture's
            session.seen = before
        elif own and session.seen is not None:  # the picture's; extra words have rows as well
            session.seen = session.seen.first(own)
        if session.blind:
            self._notes.say(
                "Some passes show no attention, as where a cache skips them or another node merges "
                "or tiles the picture; they give no regions."
            )
        return result

    def _rows(self, context: Tensor, options: dict[str, Any]) -> tuple[Rows, int]:
        """Which rows are the prompt's, told by what they were conditioned on.

        First the prompt as it was given, and how many rows those are, then it with more words.
        """
        marks = options.get("cond_or_uncond") or [0]
        uuids = options.get("uuids") or [None] * len(marks)
        each = len(context) // len(marks)
        for i, uuid in enumerate(uuids):
            if uuid not in self._kinds or uuid is None:
                self._kinds[uuid] = self._kind(context[i * each])
        kinds = [self._kinds[uuid] for uuid in uuids]
        ours = [i for kind in ("prompt", "with more") for i, k in enumerate(kinds) if k == kind]
        # A negative prompt may be the very same text; what is 0 draws, what is 1 is guided from.
        chosen = [i for i in ours if marks[i] == 0] or ours
        if not chosen and 0 in marks and set(self._kinds.values()) == {"other"}:
            self._notes.say(
                "The sampler's positive prompt is not the one given here, so regions may be "
                "wrong; connect the output 'positive', or give the same text."
            )
            chosen = [i for i, mark in enumerate(marks) if mark == 0]
        # DualCFGGuider has the negative prompt first, as its 0.
        against = 0 if chosen and all(marks[i] for i in chosen) else 1
        negative = [i for i, mark in enumerate(marks) if mark == against and i not in chosen]

        def spread(chunks: list[int]) -> list[int]:
            return [i * each + row for i in chunks for row in range(each)]

        others = len(marks) - len(chosen) - len(negative)
        rows = Rows(spread(chosen), spread(negative), others * each)
        return rows, each * sum(kinds[i] == "prompt" for i in chosen)

    def _know(self, guider: Any) -> None:
        """Tell what a sampler's conditionings are before any comes in a pass, perhaps alone."""
        conds = [cond for group in guider.conds.values() for cond in group or ()]
        for cond in conds:
            context = cond.get("model_conds", {}).get("c_crossattn")
            if context is not None and cond["uuid"] not in self._kinds:
                self._kinds[cond["uuid"]] = self._kind(context.cond[0])

    def _kind(self, row: Tensor) -> Kind:
        own = self._prepared.positive.context[0].to(row)
        if len(row) < len(own):
            return "other"
        same = torch.isclose(row[: len(own)], own, atol=1e-2, rtol=1e-2).all(dim=1)
        if bool(same.all()):
            return "prompt"
        return "with more" if bool(same[: self._prepared.length].all()) else "other"

    def pre_cfg(self, args: dict[str, Any]) -> list[Tensor]:
        """The prompt's prediction, each region's difference scaled to the foreground's."""
        out = args["conds_out"]
        conds = args["conds"]
        if self._session is None or len(out) < 2 or conds[1] is None or self._stage == "off":
            return out
        difference = out[0] - out[1]
        seen = self._session.seen
        if seen is None or len(seen.regions) != len(difference):
            self._notes.say(
                "Guidance is not scaled by region where no pass shows the prompt's regions in the "
                "whole of every picture, as with areas and context windows."
            )
        rates = self._session.rates(difference, float(args["cond_scale"]))
        return out if rates is None else [out[1] + rates * difference, *out[1:]]


def _references_pass(
    model: Any,
    prepared: Prepared,
    settings: MagicFaceSettings,
    sigma: Tensor,
    options: dict[str, Any],
    rows: slice,
) -> None:
    """Some references, noised to sigma, through the UNet, with none of the picture's patches."""
    own = prepared.rows
    noise = own.noise(float(sigma), settings.reference_seed)[rows].to(sigma.device)
    clean = own.latents[rows].to(sigma.device)
    sigmas = sigma.expand(len(clean))
    noisy = model.model_sampling.noise_scaling(sigmas, noise, clean)
    conds = [
        prompt.model_conds(model, clean[:1], sigma.device) for prompt in prepared.prompts[rows]
    ]
    kept = ("optimized_attention_override", "sample_sigmas")
    plain = {key: options[key] for key in kept if key in options}
    plain |= {"cond_or_uncond": [0] * len(clean), "sigmas": sigma}
    model.apply_model(noisy, sigmas, transformer_options=plain, **comfy.samplers.cond_cat(conds))


def _require_unet(model: ModelPatcher) -> None:
    if model is None:
        raise InputError("There is no model at the input 'model'; connect a checkpoint's MODEL.")
    network = getattr(model.model, "diffusion_model", None)
    channels = model.model.model_config.unet_config.get("in_channels", 4)
    if not isinstance(network, UNetModel) or channels != latent_channels(model):
        raise UnsupportedModelError(
            f"The input 'model' holds {type(model.model.model_config).__name__} "
            f"({type(network).__name__}, {channels} input channels); references work with the "
            "UNets of Stable Diffusion 1.x, 2.x and XL (text to image). Connect such a checkpoint."
        )
