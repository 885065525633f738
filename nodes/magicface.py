"""Nodes that draw given concepts without training."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..magicapture.data import ReferenceSet
from ..magicapture.errors import InputError
from ..magicapture.magicface import (
    MagicFaceSettings,
    Reference,
    areas,
    decoder_layers,
    outlined,
    region_masks,
)
from ._comfy import (
    images_from_socket,
    images_to_socket,
    masks_from_socket,
    masks_to_socket,
    node_id,
)
from ._comfy.magicface import apply_references, look, prepare
from ._inputs import plain
from ._node import Node, schema
from ._sockets import MagicFaceSocket, References


class MagiCaptureAddMagicFaceReference(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Add MagicFace Reference",
            "magicface",
            aliases="reference image, style reference, reference only, face reference, "
            "training-free",
            is_experimental=True,
            description="One concept to draw without training: a picture of it, where it is in "
            "the picture, and its words in the prompt. Chain several for several concepts.",
            inputs=[
                io.String.Input(
                    "words",
                    default="man",
                    tooltip="The words of the prompt that draw the concept, separated by commas; "
                    "each may be several words long. Every one must be in the prompt.",
                ),
                io.String.Input(
                    "description",
                    default="a photo of a man",
                    tooltip="A short prompt for this picture alone.",
                ),
                io.Float.Input(
                    "weight",
                    default=3.0,
                    min=-10.0,
                    max=10.0,
                    step=0.1,
                    tooltip="How strongly the picture is followed: added to the attention before "
                    "the softmax. 2 to 4 as a rule; lower it where colours of the reference "
                    "spread.",
                ),
                io.Combo.Input(
                    "part",
                    options=["inside mask", "outside mask", "whole picture"],
                    default="inside mask",
                    tooltip="Which part is the concept: inside the mask, such as a face; outside "
                    "it, such as the style around a face; or everything, whatever the mask.",
                ),
                io.Int.Input(
                    "photo",
                    default=1,
                    min=1,
                    max=999,
                    tooltip="Which picture of the batch or of the reference set to take.",
                ),
                io.Image.Input("image", optional=True, tooltip="The picture of the concept."),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White on the concept. Without one the reference set's face mask "
                    "counts; an image without either is for the whole picture.",
                ),
                References.Input(
                    "references",
                    optional=True,
                    tooltip="A reference set instead of an image: what training would take.",
                ),
                MagicFaceSocket.Input(
                    "previous", optional=True, tooltip="Further concepts, from another such node."
                ),
            ],
            outputs=[MagicFaceSocket.Output(display_name="magicface")],
        )

    @classmethod
    def execute(
        cls,
        words,
        description,
        weight,
        part,
        photo,
        image=None,
        mask=None,
        references=None,
        previous=(),
    ) -> io.NodeOutput:
        picture, own_mask = _picture(image, mask, references, photo)
        own_mask = _part(own_mask, part)
        named = tuple(word.strip() for word in words.split(",") if word.strip())
        reference = Reference(picture, own_mask, named, description, weight)
        return io.NodeOutput((*(previous or ()), reference))


class MagiCaptureApplyMagicFace(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Apply MagicFace",
            "magicface",
            aliases="style transfer, reference only, face swap, training-free, "
            "personalization, portrait, likeness",
            is_experimental=True,
            description="Draw the references' concepts into the prompt's picture, without "
            "training: a patch of MODEL for any sampler. Works together with a trained adapter, "
            "LoRAs and ControlNets.",
            inputs=[
                io.Model.Input("model"),
                io.Clip.Input("clip"),
                io.Vae.Input("vae"),
                MagicFaceSocket.Input("magicface", tooltip="The references, one or a chain."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    default="a photo of a man",
                    tooltip="The picture's prompt, with the words of every reference. Connect the "
                    "output 'positive' to the sampler, or give the very same text there.",
                ),
                io.Int.Input(
                    "reference_size",
                    default=512,
                    min=64,
                    max=2048,
                    step=64,
                    tooltip="Side in pixels of the squares that the references are brought to: "
                    "512 for Stable Diffusion 1.x and 2.x base, 768 for 2.x v, 1024 for SDXL, 128 "
                    "for the paperdoll demo.",
                ),
                plain(MagicFaceSettings, "switch", step=0.05),
                plain(MagicFaceSettings, "stop", step=0.05),
                plain(MagicFaceSettings, "others", step=0.05),
                plain(MagicFaceSettings, "to_foreground"),
                plain(MagicFaceSettings, "region_guidance"),
                # Not named "seed": the frontend would draw a new one each time.
                plain(MagicFaceSettings, "reference_seed"),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="The very same prompt, encoded already, to hand on in place of this "
                    "node's own: from Encode Prompt, for example. Bypassing the node hands it on "
                    "as well.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model"),
                io.Conditioning.Output(display_name="positive"),
                io.String.Output(display_name="report"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, model, clip, vae, magicface, prompt, reference_size, positive=None, **settings
    ) -> io.NodeOutput:
        prepared = prepare(model, clip, vae, magicface, prompt, reference_size)
        patched = apply_references(model, prepared, MagicFaceSettings(**settings), node_id(cls))
        layers = decoder_layers(model.model.diffusion_model)
        report = _report(magicface, prepared.columns, layers)
        given = prepared.positive.conditioning if positive is None else positive
        return io.NodeOutput(patched, given, report)


class MagiCapturePreviewMagicFaceRegions(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Preview MagicFace Regions",
            "magicface",
            aliases="segmentation, attention map, regions, self-attention",
            is_experimental=True,
            description="Where the model draws each concept, in colour over the finished "
            "pictures: the regions that the references' details go to.",
            inputs=[
                io.Model.Input("model", tooltip="From Apply MagicFace."),
                io.Conditioning.Input("positive", tooltip="From Apply MagicFace."),
                io.Conditioning.Input("negative"),
                io.Latent.Input("latent", tooltip="The sampler's result."),
                io.Image.Input("image", tooltip="The same result, decoded."),
                io.Float.Input(
                    "share",
                    default=0.6,
                    min=0.0,
                    max=0.95,
                    step=0.05,
                    tooltip="After which share of the sampling steps to look.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image"),
                io.Mask.Output(
                    display_name="masks", tooltip="The concepts' regions, picture by picture."
                ),
                io.String.Output(display_name="report"),
            ],
        )

    @classmethod
    def execute(cls, model, positive, negative, latent, image, share) -> io.NodeOutput:
        names, seen = look(model, positive, negative, latent["samples"], share)
        images = images_from_socket(image)
        shown = outlined(images[: len(seen.regions)], seen)
        masks = region_masks(seen, (images.shape[-2], images.shape[-1]))
        lines = [
            f"picture {row + 1}, {name}: "
            + (f"{100 * float(area):.0f} % of the picture" if area else "no region")
            for row, of in enumerate(areas(seen))
            for name, area in zip(names, of, strict=True)
        ]
        return io.NodeOutput(images_to_socket(shown), masks_to_socket(masks), "\n".join(lines))


def _picture(
    image: Any, mask: Any, references: ReferenceSet | None, photo: int
) -> tuple[Tensor, Tensor | None]:
    """The picture (3,H,W) and the mask (1,H,W), or None, that a node was given."""
    if image is not None:
        images = images_from_socket(image)
        _require_photo(photo, len(images), "image")
        picture, own = images[photo - 1], None
    elif references is not None:
        _require_photo(photo, len(references), "references")
        chosen = references.photos[photo - 1]
        picture, own = chosen.image, chosen.face_mask
    else:
        raise InputError("There is no picture: connect an image, or a reference set.")
    if mask is not None:
        masks = masks_from_socket(mask)
        if len(masks) > 1:
            _require_photo(photo, len(masks), "mask")
        own = masks[photo - 1 if len(masks) > 1 else 0]
    return picture, own


def _part(mask: Tensor | None, part: str) -> Tensor | None:
    """The mask of the part that is the concept; None for the whole picture."""
    if part == "whole picture":
        return None
    if mask is None:
        raise InputError(
            f"The input 'part' is {part!r}, but there is no mask: connect one to 'mask', give "
            "'references' that have masks, or set 'part' to 'whole picture'."
        )
    if not bool((mask >= 0.5).any()):  # an unpainted mask is black
        raise InputError(
            "The input 'mask' marks nothing: it is black everywhere. Paint the concept white, or "
            "set 'part' to 'whole picture'."
        )
    if part == "inside mask":
        return mask
    if not bool((mask <= 0.5).any()):
        raise InputError(
            "The input 'mask' is white everywhere, so that nothing is outside it. Mask less of "
            "the picture, or set 'part' to 'inside mask'."
        )
    return 1 - mask


def _require_photo(photo: int, count: int, name: str) -> None:
    if photo > count:
        raise InputError(f"Photo {photo} was asked for, but '{name}' holds {count}; lower 'photo'.")


def _report(references: Any, columns: Any, layers: Any) -> str:
    """Which words and layers the references act on."""
    lines = [
        f"{reference.name}: weight {reference.weight:g}, tokens {', '.join(map(str, own))}"
        for reference, own in zip(references, columns, strict=True)
    ]
    return "\n".join([*lines, f"{len(layers)} self-attention layers of the decoder:", *layers])
