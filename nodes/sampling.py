"""Nodes for asking for pictures, and for holding tokens to their places in them."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..magicapture.errors import InputError
from ..magicapture.prompts import as_embeddings
from ..magicapture.refocusing import RefocusGuidance, fit, grid, mean_leakage, region_strip
from ..magicapture.sampling import EDIT_SHARE
from ._comfy import (
    UsedRegions,
    encode_marked,
    images_from_socket,
    images_to_socket,
    look,
    masks_from_socket,
    masks_to_socket,
    node_id,
    refocus,
)
from ._common import pixels
from ._inputs import choice, plain
from ._node import Node, schema
from ._sockets import AdapterSocket, RegionsSocket


class MagiCaptureWritePrompt(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Write Prompt",
            "sampling",
            aliases="prompt template, trigger word, composed prompt",
            description="Write the prompt in the words of training, tokens included, for any "
            "text encoder node.",
            inputs=[
                AdapterSocket.Input("adapter"),
                io.Combo.Input(
                    "kind",
                    options=["composed", "subject", "style"],
                    default="composed",
                    tooltip="composed: the person in the style; or one of them alone.",
                ),
                io.Int.Input(
                    "sentence",
                    default=0,
                    min=0,
                    max=99,
                    tooltip="Which of the sentences of training, counted round.",
                ),
                io.String.Input(
                    "extra",
                    default="",
                    multiline=True,
                    tooltip="Your own words behind it: wearing glasses, on a red background. "
                    "Where they do not show, write them as 'extra' of Encode Prompt.",
                ),
            ],
            outputs=[io.String.Output(display_name="prompt")],
        )

    @classmethod
    def execute(cls, adapter, kind, sentence, extra) -> io.NodeOutput:
        text = adapter.prompt(kind, sentence=sentence, extra=extra)
        return io.NodeOutput(as_embeddings(text, adapter.concepts))


class MagiCaptureEncodePrompt(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Encode Prompt",
            "sampling",
            aliases="clip text encode, conditioning, prompt, embedding, edit guidance, prompt "
            "edit, prompt strength, editability",
            description="CLIP Text Encode whose extra words have a strength of their own, so that "
            "they show in the picture. It also remembers where the tokens stand, for Refocus "
            "Attention and Preview Attention.",
            inputs=[
                io.Clip.Input("clip", tooltip="From Apply Adapter, which knows the tokens."),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="The prompt, with its tokens as embedding:NAME. Write Prompt gives it.",
                ),
                AdapterSocket.Input(
                    "adapter",
                    optional=True,
                    tooltip="Whose tokens to hold: the person's to the region, the style's to the "
                    "rest.",
                ),
                io.String.Input(
                    "inside",
                    default="",
                    tooltip="Further words of the prompt, or embedding:NAME, that belong inside "
                    "the region; separated by commas.",
                ),
                io.String.Input(
                    "outside",
                    default="",
                    tooltip="Further words of the prompt, or embedding:NAME, that belong outside "
                    "the region; separated by commas.",
                ),
                io.String.Input(
                    "extra",
                    default="",
                    dynamic_prompts=True,
                    optional=True,
                    tooltip="Words behind the text that the photos contradict: with round glasses, "
                    "on a red background. Half as much drawing time again.",
                ),
                io.Float.Input(
                    "extra_strength",
                    default=EDIT_SHARE,
                    min=0.0,
                    max=10.0,
                    step=0.1,
                    optional=True,
                    tooltip="Of the extra words: 1 as if written in the text, 2 twice as strong. "
                    "Raise it where they do not show; lower it where the likeness suffers.",
                ),
            ],
            outputs=[io.Conditioning.Output(display_name="conditioning")],
        )

    @classmethod
    def execute(
        cls, clip, text, inside, outside, adapter=None, extra="", extra_strength=EDIT_SHARE
    ) -> io.NodeOutput:
        concepts = () if adapter is None else adapter.concepts
        return io.NodeOutput(
            encode_marked(clip, text, concepts, inside, outside, extra, extra_strength)
        )


class MagiCaptureRefocusAttention(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Refocus Attention",
            "sampling",
            aliases="attention control, cross-attention, regional prompt, masked attention, "
            "attention leakage, style leak",
            description="Hold the tokens of Encode Prompt to their regions while any sampler "
            "draws: the person's to the mask, the style's to the rest.",
            inputs=[
                io.Model.Input("model", tooltip="Of any base model that can be trained."),
                plain(RefocusGuidance, "bias", step=0.5),
                plain(RefocusGuidance, "gradient", step=0.01),
                plain(RefocusGuidance, "start", step=0.05),
                plain(RefocusGuidance, "end", step=0.05),
                plain(RefocusGuidance, "iterations"),
                plain(RefocusGuidance, "threshold", step=0.01),
                choice(RefocusGuidance, "measure"),
                plain(RefocusGuidance, "smoothing", step=0.5),
                plain(RefocusGuidance, "cut", step=0.05),
                plain(RefocusGuidance, "save_memory"),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the person's face belongs, for example a mask drawn on a "
                    "preview. Without one the region is found from the attention at each step.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[
                io.Model.Output(display_name="model"),
                RegionsSocket.Output(
                    display_name="regions",
                    tooltip="For Preview Attention: those found while this model draws.",
                ),
            ],
        )

    @classmethod
    def execute(cls, model, mask=None, **settings) -> io.NodeOutput:
        used = UsedRegions()
        patched = refocus(model, RefocusGuidance(**settings), _region(mask), used, node_id(cls))
        return io.NodeOutput(patched, used)


class MagiCapturePreviewAttention(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Preview Attention",
            "sampling",
            aliases="attention map, cross-attention, heatmap, daam, attention leakage",
            description="Show where the tokens look in a finished picture, noised as at some of "
            "the sampling steps, with the share of their attention outside the region.",
            inputs=[
                io.Model.Input("model", tooltip="The model that drew the picture."),
                io.Conditioning.Input("positive", tooltip="From Encode Prompt."),
                io.Latent.Input("latent", tooltip="The finished picture, as the sampler gives it."),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The same picture decoded, to show the maps over it.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the person's face belongs. Without one the region is found from "
                    "the attention.",
                ),
                RegionsSocket.Input(
                    "regions",
                    optional=True,
                    tooltip="From Refocus Attention without a mask: shows the regions it found "
                    "while it drew this picture, in place of those of this look.",
                ),
                io.Int.Input(
                    "steps", default=4, min=1, max=20, tooltip="At how many steps to look."
                ),
                io.Int.Input(  # no "seed", which the frontend would make random at each run
                    "look_seed", default=0, min=0, max=2**32 - 1, tooltip="Of the noise."
                ),
            ],
            outputs=[
                io.Image.Output(display_name="maps"),
                io.Mask.Output(display_name="region"),
                io.String.Output(display_name="leakage"),
                io.Image.Output(
                    display_name="regions",
                    tooltip="The region at each step: those of the input 'regions', where one is "
                    "connected and has any; else those of this look.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, model, positive, latent, steps, look_seed, image=None, mask=None, regions=None
    ) -> io.NodeOutput:
        shares = [i / steps for i in range(steps)]
        region = _region(mask, first=True)
        seen = look(model, positive, latent, shares, region=region, seed=look_seed)
        picture = None if image is None else images_from_socket(image)[0]
        return io.NodeOutput(
            images_to_socket(pixels(grid(seen, picture))),
            masks_to_socket(_last_region(seen, picture)),
            _told(seen),
            images_to_socket(pixels(_regions(regions, seen, picture))),
        )


def _region(mask, *, first=False) -> torch.Tensor | None:
    """The person's region (B,1,H,W) that a mask gives, or its first; None without one: found."""
    if mask is None:
        return None
    region = masks_from_socket(mask)
    region = region[:1] if first else region
    inside = region >= 0.5
    if not bool(inside.any()):  # an unpainted mask is black
        raise InputError(
            "The input 'mask' marks nothing: it is black everywhere. Paint the person's face "
            "white, or disconnect it and the region is found from the attention."
        )
    if bool(inside.all()):
        raise InputError(
            "The input 'mask' is white everywhere, so that nothing holds the person's token and "
            "nothing is left for the style's. Mark the face alone, or disconnect it."
        )
    return region


def _last_region(seen, picture) -> torch.Tensor:
    """The subject's region at the last step where one is known, at the picture's size."""
    known = [s.region for s in seen if s.role == "subject" and s.region is not None]
    last = known[-1] if known else torch.ones_like(seen[0].values)
    size = last.shape if picture is None else picture.shape[-2:]
    return fit(last[None, None], tuple(size))


def _regions(regions, seen, picture):
    """The region at each step, over the picture; over grey where there is none."""
    used = [] if regions is None else regions.steps
    looked = {shown.share: shown.region for shown in seen if shown.role == "subject"}
    under = torch.full((3, 8, 8), 0.7) if picture is None else picture
    return region_strip(used or list(looked.items()) or [(0.0, None)], under)


def _told(seen) -> str:
    leakages = mean_leakage(seen)
    if not leakages:
        return "No region is known: give a mask, or hold a token inside the region."
    return "\n".join(f"{name}: {share:.1%} outside its region" for name, share in leakages.items())
