"""Nodes for a finished picture: keep the likeness, hide the paste."""

from __future__ import annotations

import json
from collections.abc import Iterator

import torch
from comfy_api.latest import io
from torch import Tensor

from ..magicapture.config import help_of
from ..magicapture.data.masks import ASPECT_TOLERANCE
from ..magicapture.errors import InputError
from ..magicapture.faces.analyzer import FaceAnalyzer
from ..magicapture.images import resize
from ..magicapture.person import Person
from ..magicapture.refine.grain import MatchSettings, match_picture
from ..magicapture.refine.guard import TOLERANCE, GuardReport, guard_identity
from ..magicapture.refine.paste import cut_out
from ._comfy import (
    Progress,
    images_from_socket,
    images_to_socket,
    masks_from_socket,
    node_id,
    show_text,
)
from ._detector import detector_input, detector_or_best
from ._finishing import preview
from ._inputs import plain
from ._node import Node, schema
from ._sockets import FaceModelSocket, References


class MagiCaptureGuardIdentity(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Guard Identity",
            "finishing",
            aliases="likeness, face similarity, keep likeness, identity preservation, blend",
            description="Measures how much likeness finishing cost; above the tolerance, blends "
            "the finished picture with the one before until the likeness is kept.",
            inputs=[
                # The finished ones first: they pass when the node is bypassed.
                io.Image.Input("after", tooltip="The finished pictures."),
                io.Image.Input("before", tooltip="The same pictures before, of any size."),
                References.Input("person", tooltip="Photos of the person."),
                detector_input(),
                FaceModelSocket.Input(
                    "face_model",
                    tooltip="Tells how alike faces are. Use a different face model than in "
                    "training; its own scores are inflated.",
                ),
                io.Float.Input(
                    "tolerance",
                    default=TOLERANCE,
                    min=0.0,
                    max=1.0,
                    step=0.005,
                    tooltip="How much likeness finishing may cost, as a share of how alike the "
                    "person's own photos are. Moving a picture by two pixels costs up to 0.02; 1 "
                    "only measures.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images"),
                io.String.Output(display_name="report"),
                io.Float.Output(
                    display_name="strength",
                    tooltip="How much finishing was kept; the least of the pictures.",
                ),
                io.String.Output(display_name="data", tooltip="The report as JSON."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, after, before, person, face_model, tolerance, detector=None) -> io.NodeOutput:
        if face_model is None:  # Load Face Recognition Model found none
            text = "No face recognition model: the likeness was not guarded."
            show_text(text, node_id(cls))
            return io.NodeOutput(after, text, 1.0, json.dumps([None] * len(after)))
        analyzer = FaceAnalyzer(detector_or_best(detector), embedder=face_model)
        known = Person.in_photos(person.images, analyzer)
        firsts, lasts = _paired(images_from_socket(before), images_from_socket(after))
        bar, kept, reports, rows = Progress(len(lasts), node_id(cls)), [], [], []
        for done, (first, last) in enumerate(zip(firsts, lasts, strict=True), start=1):
            face = known.find(first, analyzer)
            if face is None:
                kept.append(last)
                reports.append(None)
            else:
                points = face.landmarks
                blend, report = guard_identity(first, last, points, face_model, known, tolerance)
                kept.append(blend)
                reports.append(report)
                rows.append([cut_out(image, points)[0][0] for image in (first, last, blend)])
            bar.update(done)
        text = "\n".join(_told(i, report) for i, report in enumerate(reports, 1))
        show_text(text, node_id(cls))
        return io.NodeOutput(
            images_to_socket(torch.stack(kept)),
            text,
            min((r.strength for r in reports if r), default=1.0),
            json.dumps([r.as_dict() if r else None for r in reports]),
            ui=preview(rows),
        )


def _odd_masks(masks: Tensor) -> Iterator[str]:
    """What to say of masks (B,1,H,W) by which nothing, or no grain, can be matched."""
    for number, mask in enumerate(masks, start=1):
        if not (mask > 0).any():
            yield f"picture {number}: the mask marks nothing, so that it stays as it is."
        elif (mask > 0).all():
            yield (
                f"picture {number}: the mask marks all of it, so that there are no surroundings "
                "whose grain could be matched. Mark the restored part alone."
            )


def _paired(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """As many pictures before as after, at the size after."""
    if len(before) not in (1, len(after)):
        raise InputError(
            f"There are {len(before)} pictures before and {len(after)} after; give as many, or one."
        )
    height, width = after.shape[-2:]
    h, w = before.shape[-2:]
    if abs(w * height / (h * width) - 1) > ASPECT_TOLERANCE:
        raise InputError(
            f"The pictures are {w}x{h} before and {width}x{height} after, of another shape; "
            "connect the same pictures before and after they were finished."
        )
    return resize(before, (height, width)).expand(len(after), -1, -1, -1), after


def _told(number: int, report: GuardReport | None) -> str:
    said = "no face found, kept whole." if report is None else str(report)
    return f"Picture {number}: {said}"


class MagiCaptureMatchGrainAndColour(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Match Grain and Colour",
            "finishing",
            aliases="film grain, color match, colour match, noise, blend paste",
            description="Gives a restored part the colour it had and the grain of its "
            "surroundings, so that the paste does not show.",
            inputs=[
                io.Image.Input("images", tooltip="The pictures with the restored part."),
                io.Image.Input("originals", tooltip="The same pictures before, of any size."),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where they were restored: Restore Faces' mask. Without one nothing is "
                    "changed.",
                ),
                plain(MatchSettings, "colour", step=0.05),
                plain(MatchSettings, "grain", step=0.05),
                io.Int.Input(
                    "grain_seed",  # not "seed", which the frontend would draw anew at every run
                    default=0,
                    min=0,
                    max=2**31 - 1,
                    tooltip=help_of(MatchSettings, "seed"),
                ),
            ],
            outputs=[io.Image.Output(display_name="images")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, images, originals, colour, grain, grain_seed, mask=None) -> io.NodeOutput:
        if mask is None:  # Restore Faces is bypassed
            return io.NodeOutput(images)
        settings = MatchSettings(colour, grain, grain_seed)
        before, batch = _paired(images_from_socket(originals), images_from_socket(images))
        masks = masks_from_socket(mask)
        if len(masks) not in (1, len(batch)):
            raise InputError(
                f"There are {len(masks)} masks for {len(batch)} picture{'s' * (len(batch) != 1)}; "
                "give one for all, or one for each, as Restore Faces does."
            )
        masks = masks.expand(len(batch), -1, -1, -1)
        if odd := "\n".join(_odd_masks(masks)):
            show_text(odd, node_id(cls))
        result = torch.stack(
            [match_picture(*one, settings) for one in zip(batch, before, masks, strict=True)]
        )
        return io.NodeOutput(images_to_socket(result))
