"""Nodes that prepare photos: face masks, landmarks, and a quality check."""

from __future__ import annotations

from collections.abc import Callable

from comfy_api.latest import io, ui

from ..magicapture.config import help_of
from ..magicapture.data import ReferenceSet
from ..magicapture.data.faces import with_faces
from ..magicapture.doctor import contact_sheet, judge_photos
from ..magicapture.errors import InputError
from ..magicapture.faces.analyzer import FaceAnalyzer
from ..magicapture.faces.masks import MaskSettings
from ._comfy import Progress, images_to_socket, masks_to_socket, node_id
from ._detector import detector_input, detector_or_best
from ._inputs import plain
from ._node import Node, schema
from ._sockets import FaceModelSocket, ParserSocket, References


def _progress(node: type, references: ReferenceSet) -> Callable[[int, int], None]:
    """The node's progress bar, as the core reports to it."""
    bar = Progress(2 * len(references), node_id(node))
    return lambda done, total: bar.update(done)


def _face_masks(references: ReferenceSet) -> list:
    """A face mask (1,1,H,W) for each photo, at its size; black where there is none."""
    return [
        (photo.image.new_zeros(1, *photo.size) if photo.face_mask is None else photo.face_mask)[
            None
        ]
        for photo in references
    ]


class MagiCaptureMakeFaceMasks(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Make Face Masks",
            "faces",
            aliases="face mask, face segmentation, head mask, hair mask, crop face",
            description="Finds the face in every photo and fills in its mask and landmarks. Masks "
            "of your own are kept.",
            inputs=[
                References.Input("references", tooltip="The photos, from Load Photo Set."),
                detector_input(),
                ParserSocket.Input(
                    "parser",
                    optional=True,
                    tooltip="Outlines the face. Without one the mask is an oval laid over the "
                    "landmarks, and the report says so.",
                ),
                FaceModelSocket.Input(
                    "face_model",
                    optional=True,
                    tooltip="Where a photo shows several faces, takes the person that all photos "
                    "share. Without one: the largest face. Leave it out for a style.",
                ),
                io.String.Input("parts", default="face", tooltip=help_of(MaskSettings, "parts")),
                plain(MaskSettings, "grow", step=0.01),
                plain(MaskSettings, "feather", step=0.01),
            ],
            outputs=[
                References.Output(display_name="references"),
                io.Mask.Output(display_name="face_masks", is_output_list=True),
                io.Mask.Output(display_name="style_masks", is_output_list=True),
                io.Image.Output(display_name="preview"),
                io.String.Output(display_name="report"),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, references, parts, grow, feather, detector=None, parser=None, face_model=None
    ) -> io.NodeOutput:
        settings = MaskSettings(parts, grow, feather)
        analyzer = FaceAnalyzer(detector_or_best(detector), parser, face_model)
        filled, found = with_faces(references, analyzer, settings, _progress(cls, references))
        faces = _face_masks(filled)
        styles = [1 - face for face in faces]
        sheet = images_to_socket(contact_sheet(filled, found)[None])
        lines = [f"{name}: {one}" for name, one in zip(filled.names, found, strict=True)]
        report = "\n".join([*lines, *references.warnings])
        return io.NodeOutput(
            filled,
            [masks_to_socket(mask) for mask in faces],
            [masks_to_socket(mask) for mask in styles],
            sheet,
            report,
            ui=ui.PreviewImage(sheet, cls=cls),
        )


class MagiCaptureCheckPhotos(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Check Photos",
            "faces",
            aliases="photo quality, blur detection, dataset check, same person, contact sheet",
            description="Before training: is each photo sharp, large and well lit enough, does it "
            "show the same person as the others, do they vary enough?",
            inputs=[
                References.Input("references", tooltip="The photos, with or without masks."),
                detector_input(),
                io.Combo.Input(
                    "role",
                    options=["subject", "style"],
                    default="subject",
                    tooltip="subject: all photos should show one person. style: they need not.",
                ),
                io.Int.Input(
                    "resolution",
                    default=512,
                    min=64,
                    max=2048,
                    step=8,
                    tooltip="The training's resolution, at which the face's size is judged.",
                ),
                io.Boolean.Input(
                    "drop",
                    default=False,
                    tooltip="Remove the photos whose verdict is 'leave out'.",
                ),
                FaceModelSocket.Input(
                    "face_model",
                    optional=True,
                    tooltip="Needed to find another person in the set.",
                ),
                ParserSocket.Input(
                    "parser", optional=True, tooltip="Needed to find covered faces."
                ),
            ],
            outputs=[
                References.Output(display_name="references"),
                io.Image.Output(display_name="contact_sheet"),
                io.String.Output(display_name="report"),
                io.String.Output(display_name="data"),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, references, role, resolution, drop, detector=None, face_model=None, parser=None
    ) -> io.NodeOutput:
        known = face_model if role == "subject" else None
        analyzer = FaceAnalyzer(detector_or_best(detector), parser, known)
        progress = _progress(cls, references)
        filled, found = with_faces(references, analyzer, on_progress=progress)
        result = judge_photos(filled, found, role, resolution=resolution, embedder=known)
        sheet = images_to_socket(contact_sheet(filled, found, result)[None])
        kept = [i for i, p in enumerate(result.photos) if p.verdict != "leave out"]
        if drop and not kept:
            raise InputError(f"No photo is left: every one is to be left out.\n{result}")
        return io.NodeOutput(
            references.only(kept) if drop else references,
            sheet,
            str(result),
            result.to_json(),
            ui=ui.PreviewImage(sheet, cls=cls),
        )
