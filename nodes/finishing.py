"""Nodes that finish a picture: enlarge it, restore its faces."""

from __future__ import annotations

from collections.abc import Callable

import torch
from comfy_api.latest import io
from torch import Tensor

from ..magicapture.images import resize
from ..magicapture.refine.models import FaceRestorer
from ..magicapture.refine.restore import RestoreSettings, restore_faces
from ..magicapture.refine.upscale import Tiling, sized, super_resolve
from ._comfy import (
    Progress,
    images_from_socket,
    images_to_socket,
    masks_to_socket,
    node_id,
    show_text,
)
from ._comfy.files import AUTO, OR_NONE, face_file_if_any, face_files, face_stamp
from ._comfy.finishing import load_restorer, on_device
from ._detector import detector_input, detector_or_best
from ._finishing import preview
from ._inputs import plain
from ._node import Node, refusal, schema
from ._sockets import ParserSocket

_CLOSE_UP = 384  # side in pixels of what a preview shows of a large picture


def _close_up(image: Tensor) -> Tensor:
    """The middle of a picture (3,H,W), at most _CLOSE_UP a side."""
    height, width = (min(side, _CLOSE_UP) for side in image.shape[-2:])
    top, left = (image.shape[-2] - height) // 2, (image.shape[-1] - width) // 2
    return image[:, top : top + height, left : left + width]


class MagiCaptureLoadFaceRestorer(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Load Face Restorer",
            "finishing",
            aliases="gfpgan, codeformer, restoreformer, face restore model",
            description="GFPGAN 1.2 to 1.4, RestoreFormer or CodeFormer from "
            "models/facerestore_models. One in models/upscale_models loads with Load Upscale "
            "Model as well.",
            inputs=[
                io.Combo.Input(
                    "file",
                    options=[OR_NONE, AUTO, *face_files("restorer")],
                    default=OR_NONE,
                    tooltip="GFPGANv1.4.pth is a good start. CodeFormer needs the package "
                    "spandrel_extra_arches and is for non-commercial use.",
                )
            ],
            outputs=[io.UpscaleModel.Output(display_name="restorer")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, file) -> io.NodeOutput:
        path, why = face_file_if_any("restorer", file)
        show_text(why, node_id(cls))
        return io.NodeOutput(path and load_restorer(path))

    @classmethod
    def fingerprint_inputs(cls, file) -> str:
        return face_stamp("restorer", file)

    @classmethod
    def validate_inputs(cls, file=None) -> bool | str:
        """Say what to get before anything runs."""
        return refusal(face_file_if_any, "restorer", file)


class MagiCaptureUpscalePortrait(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Upscale Portrait",
            "finishing",
            aliases="upscale, super resolution, enlarge, esrgan, tiled upscale, hires",
            description="Enlarges pictures with Real-ESRGAN or any other upscale model, to the "
            "size you want, by tiles without seams.",
            inputs=[
                io.UpscaleModel.Input("model", tooltip="From Load Upscale Model."),
                io.Image.Input("images", tooltip="The pictures to enlarge."),
                io.Float.Input(
                    "factor",
                    default=2.0,
                    min=0.0,
                    max=16.0,
                    step=0.25,
                    tooltip="Scale; 0 is the model's own. The model runs as often as needed, and "
                    "the result is scaled down to fit.",
                ),
                io.Int.Input(
                    "long_side",
                    default=0,
                    min=0,
                    max=16384,
                    step=8,
                    tooltip="Longer side of the result in pixels, instead of the factor (0 = off).",
                ),
                io.Int.Input(
                    "tile",
                    default=Tiling().size,
                    min=128,
                    max=4096,
                    step=64,
                    tooltip="Side of a tile in pixels; smaller needs less memory. Halved when "
                    "memory runs out.",
                ),
            ],
            outputs=[io.Image.Output(display_name="images")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, images, factor, long_side, tile) -> io.NodeOutput:
        with on_device(model, tile):
            batch = images_from_socket(images)
            wanted = {"long_side": long_side} if long_side else {"factor": factor}
            own = tuple(batch.shape[-2:])
            size = sized(own, **wanted) if any(wanted.values()) else None
            bar, tiling = Progress(1000, node_id(cls)), Tiling(size=tile)
            result = super_resolve(model, batch, size, tiling, _on(bar))
            plain = resize(batch[:1], tuple(result.shape[-2:]))[0]
            shown = preview([(_close_up(plain), _close_up(result[0]))])
            return io.NodeOutput(images_to_socket(result), ui=shown)


def _on(bar: Progress) -> Callable[[int, int], None]:
    """A core's progress(done, total) shown on a bar of 1000."""
    return lambda done, total: bar.update(1000 * done // total)


class MagiCaptureRestoreFaces(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Restore Faces",
            "finishing",
            aliases="face restore, gfpgan, codeformer, face fix, face detailer, face enhance",
            description="Redraws the faces of pictures with GFPGAN, RestoreFormer or CodeFormer "
            "and blends them in. Nothing else is touched.",
            inputs=[
                io.UpscaleModel.Input(
                    "restorer", tooltip="From Load Face Restorer or Load Upscale Model."
                ),
                io.Image.Input("images", tooltip="The pictures whose faces to restore."),
                detector_input(),
                plain(RestoreSettings, "strength", step=0.05),
                io.Combo.Input(
                    "faces",
                    options=["all", "largest"],
                    default="all",
                    tooltip="Which faces of a picture are restored.",
                ),
                io.Float.Input(
                    "fidelity",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="For CodeFormer alone: 0 the cleanest face, 1 the nearest to what was "
                    "there.",
                ),
                plain(RestoreSettings, "feather", step=0.1),
                ParserSocket.Input(
                    "parser",
                    optional=True,
                    tooltip="Draws the blend's mask along face and hair. Without one it is an "
                    "oval laid over the landmarks.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images"),
                io.Mask.Output(display_name="mask"),
                io.String.Output(display_name="report"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, restorer, images, strength, faces, fidelity, feather, detector=None, parser=None
    ) -> io.NodeOutput:
        if restorer is None:  # Load Face Restorer found none
            report = "No restorer: every picture is left as it is."
            show_text(report, node_id(cls))
            return io.NodeOutput(images, torch.zeros(images.shape[:3]), report)
        with on_device(restorer):
            network = FaceRestorer(restorer, fidelity)
            settings = RestoreSettings(strength, feather)
            batch = images_from_socket(images)
            find = detector_or_best(detector)
            found = [find(image)[: 1 if faces == "largest" else None] for image in batch]
            bar, done, results = Progress(max(sum(map(len, found)), 1), node_id(cls)), 0, []
            for image, of_image in zip(batch, found, strict=True):
                step = _from(bar, done)
                results.append(restore_faces(image, of_image, network, parser, settings, step))
                done += len(of_image)
            report = "\n".join(
                _described(i, len(r.faces), r.parsed) for i, r in enumerate(results, 1)
            )
            show_text(report, node_id(cls))
            rows = [(face.before, face.after) for r in results for face in r.faces]
            return io.NodeOutput(
                images_to_socket(torch.stack([r.image for r in results])),
                masks_to_socket(torch.stack([r.mask for r in results])),
                report,
                ui=preview(rows),
            )


def _from(bar: Progress, start: int) -> Callable[[int, int], None]:
    """A core's progress(done, total) shown on a bar that has come to `start`."""
    return lambda done, total: bar.update(start + done)


def _described(number: int, faces: int, parsed: bool) -> str:
    if not faces:
        return f"Picture {number}: no face found, left as it is."
    how = "a parser's mask" if parsed else "an oval over the landmarks"
    return f"Picture {number}: {faces} face{'s' if faces > 1 else ''} restored under {how}."
