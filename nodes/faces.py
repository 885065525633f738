"""Nodes that load what finds, parses and recognises faces, and say what is there."""

from __future__ import annotations

import torch
from comfy_api.latest import io, ui

from ..magicapture.faces.detect import load_detector
from ..magicapture.faces.embed import load_face_embedder
from ..magicapture.faces.find import inventory
from ..magicapture.faces.models import Role
from ..magicapture.faces.parse import load_parser
from ..magicapture.faces.registry import homes, titles
from ..magicapture.paperdoll.faces import doll_analyzer
from ._comfy.files import AUTO, SECOND, face_file, face_files, face_places
from ._common import naming
from ._sockets import DetectorSocket, FaceModelSocket, ParserSocket


def file_input(role: Role, tooltip: str, *found: str) -> io.Combo.Input:
    """A drop-down of what may be `found`, and of the files for a role."""
    options = [AUTO, *found, *face_files(role)]
    return io.Combo.Input("file", options=options, default=AUTO, tooltip=tooltip)


class MagiCaptureLoadFaceDetector(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagiCaptureLoadFaceDetector",
            display_name="Load Face Detector",
            category="MagiCapture/faces",
            description=f"Finds faces and their landmarks: {titles('detector')}. Runs on the CPU.",
            inputs=[
                file_input(
                    "detector",
                    f"A file in {homes('detector')}, say. Check MagiCapture Models tells what "
                    "there is and where to get it.",
                )
            ],
            outputs=[DetectorSocket.Output(display_name="detector")],
        )

    @classmethod
    def execute(cls, file) -> io.NodeOutput:
        with naming("Load Face Detector"):
            return io.NodeOutput(load_detector(face_file("detector", file)))


class MagiCaptureLoadFaceParser(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagiCaptureLoadFaceParser",
            display_name="Load Face Parser",
            category="MagiCapture/faces",
            description="Tells skin, eyes, hair and so on apart, pixel by pixel: "
            f"{titles('parser')}. Runs on the CPU.",
            inputs=[
                file_input(
                    "parser",
                    f"A file in {homes('parser')}, say. Check MagiCapture Models tells what there "
                    "is and where to get it.",
                )
            ],
            outputs=[ParserSocket.Output(display_name="parser")],
        )

    @classmethod
    def execute(cls, file) -> io.NodeOutput:
        with naming("Load Face Parser"):
            return io.NodeOutput(load_parser(face_file("parser", file)))


class MagiCaptureLoadFaceRecognitionModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagiCaptureLoadFaceRecognitionModel",
            display_name="Load Face Recognition Model",
            category="MagiCapture/faces",
            description="A network that tells people apart, for the identity loss and the "
            f"figures: {titles('embedder')}. Mind the licence of the weights.",
            inputs=[
                file_input(
                    "embedder",
                    "For insightface packs: w600k_r50.onnx (buffalo_l) or glintr100.onnx "
                    "(antelopev2). second best found: for figures, when the best is the loss's.",
                    SECOND,
                ),
                io.Combo.Input(
                    "normalisation",
                    options=["arcface", "imagenet"],
                    default="arcface",
                    tooltip="How the network wants its pixels; arcface for insightface's own and "
                    "facexlib's.",
                ),
            ],
            outputs=[FaceModelSocket.Output(display_name="face_model")],
        )

    @classmethod
    def execute(cls, file, normalisation) -> io.NodeOutput:
        with naming("Load Face Recognition Model"):
            return io.NodeOutput(load_face_embedder(face_file("embedder", file), normalisation))


class MagiCaptureLoadPaperdollFaceModels(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagiCaptureLoadPaperdollFaceModels",
            display_name="Load Paperdoll Face Models",
            category="MagiCapture/demo",
            description="Detector, parser and face recognition model of drawn faces, which come "
            "with the pack: masks, checks and figures for the demo with no download.",
            inputs=[],
            outputs=[
                DetectorSocket.Output(display_name="detector"),
                ParserSocket.Output(display_name="parser"),
                FaceModelSocket.Output(
                    display_name="face_model",
                    tooltip="Another one than Load Paperdoll Demo's, which is for training.",
                ),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        with naming("Load Paperdoll Face Models"), torch.inference_mode(False):
            faces = doll_analyzer()
            return io.NodeOutput(faces.detector, faces.parser, faces.embedder)


class MagiCaptureCheckModels(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagiCaptureCheckModels",
            display_name="Check MagiCapture Models",
            category="MagiCapture/faces",
            description="Which models of faces are found, which are missing, where those are "
            "published and under which licence. Nothing is downloaded.",
            inputs=[],
            outputs=[io.String.Output(display_name="report")],
            is_output_node=True,
            not_idempotent=True,
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        report = inventory(face_places())
        return io.NodeOutput(report, ui=ui.PreviewText(report))

    @classmethod
    def fingerprint_inputs(cls) -> float:
        """Look again every time."""
        return float("nan")
