"""Nodes that load what finds, parses and recognises faces, and say what is there."""

from __future__ import annotations

import torch
from comfy_api.latest import io, ui

from ..magicapture.environment import versions
from ..magicapture.faces.detect import load_detector
from ..magicapture.faces.embed import load_face_embedder
from ..magicapture.faces.find import inventory
from ..magicapture.faces.parse import load_parser
from ..magicapture.faces.registry import homes, titles
from ..magicapture.paperdoll.faces import doll_analyzer
from ._comfy import host_versions, node_id, own_parts, show_text
from ._comfy.files import (
    AUTO,
    OR_NONE,
    SECOND,
    face_file,
    face_file_if_any,
    face_places,
    face_stamp,
)
from ._inputs import file_input
from ._node import Node, refusal, schema
from ._sockets import DetectorSocket, FaceModelSocket, ParserSocket


class MagiCaptureLoadFaceDetector(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Load Face Detector",
            "faces",
            aliases="face detection, scrfd, retinaface, yunet, mediapipe, insightface, landmarks",
            description=f"Finds faces and their landmarks: {titles('detector')}. Runs on the CPU.",
            inputs=[
                file_input(
                    "detector",
                    f"A file in {homes('detector')}, say. YuNet comes with the pack. Check "
                    "MagiCapture Models lists what there is and where to get the rest.",
                    AUTO,
                )
            ],
            outputs=[DetectorSocket.Output(display_name="detector")],
        )

    @classmethod
    def execute(cls, file) -> io.NodeOutput:
        return io.NodeOutput(load_detector(face_file("detector", file)))

    @classmethod
    def fingerprint_inputs(cls, file) -> str:
        return face_stamp("detector", file)

    @classmethod
    def validate_inputs(cls, file=None) -> bool | str:
        """Say what to get before anything runs."""
        return refusal(face_file, "detector", file)


class MagiCaptureLoadFaceParser(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Load Face Parser",
            "faces",
            aliases="face segmentation, face parsing, bisenet, parsenet, facexlib",
            description="Labels skin, eyes, hair and so on, pixel by pixel: "
            f"{titles('parser')}. Runs on the CPU.",
            inputs=[
                file_input(
                    "parser",
                    f"A file in {homes('parser')}, say. Check MagiCapture Models tells what there "
                    "is and where to get it.",
                    OR_NONE,
                    AUTO,
                )
            ],
            outputs=[ParserSocket.Output(display_name="parser")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, file) -> io.NodeOutput:
        path, why = face_file_if_any("parser", file)
        show_text(why, node_id(cls))
        return io.NodeOutput(path and load_parser(path))

    @classmethod
    def fingerprint_inputs(cls, file) -> str:
        return face_stamp("parser", file)

    @classmethod
    def validate_inputs(cls, file=None) -> bool | str:
        """Say what to get before anything runs."""
        return refusal(face_file_if_any, "parser", file)


class MagiCaptureLoadFaceRecognitionModel(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Load Face Recognition Model",
            "faces",
            aliases="face embedder, face embedding, arcface, insightface, buffalo_l, "
            "antelopev2, dlib, identity loss",
            description="A face embedder for the identity loss and for likeness: "
            f"{titles('embedder')}. Mind the licence of the weights.",
            inputs=[
                file_input(
                    "embedder",
                    "For insightface packs: w600k_r50.onnx (buffalo_l) or glintr100.onnx "
                    "(antelopev2). second best found: to measure, when training uses the best.",
                    OR_NONE,
                    AUTO,
                    SECOND,
                ),
                io.Combo.Input(
                    "normalisation",
                    options=["arcface", "imagenet"],
                    default="arcface",
                    tooltip="How pixels are scaled for the network; arcface for insightface's and "
                    "facexlib's.",
                ),
            ],
            outputs=[FaceModelSocket.Output(display_name="face_model")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, file, normalisation) -> io.NodeOutput:
        path, why = face_file_if_any("embedder", file)
        show_text(why, node_id(cls))
        return io.NodeOutput(path and load_face_embedder(path, normalisation))

    @classmethod
    def fingerprint_inputs(cls, file, normalisation) -> str:
        return face_stamp("embedder", file)

    @classmethod
    def validate_inputs(cls, file=None) -> bool | str:
        """Say what to get before anything runs."""
        return refusal(face_file_if_any, "embedder", file)


class MagiCaptureLoadPaperdollFaceModels(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Load Paperdoll Face Models",
            "demo",
            aliases="demo, example, face detector, face parser, face embedder",
            description="Detector, parser and face recognition model of drawn faces, which come "
            "with the pack: masks, checks and likeness for the demo with no download.",
            inputs=[],
            outputs=[
                DetectorSocket.Output(display_name="detector"),
                ParserSocket.Output(display_name="parser"),
                FaceModelSocket.Output(
                    display_name="face_model",
                    tooltip="To measure with; Load Paperdoll Demo has the one for training.",
                ),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        with torch.inference_mode(False):
            faces = doll_analyzer()
            return io.NodeOutput(faces.detector, faces.parser, faces.embedder)


class MagiCaptureCheckModels(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Check MagiCapture Models",
            "faces",
            aliases="missing models, download, insightface, facexlib, doctor, licence, "
            "version, bug report",
            description="Lists the models of faces and of things found and missing, with publisher "
            "and licence, and the versions of everything, for bug reports. Nothing is downloaded.",
            inputs=[],
            outputs=[io.String.Output(display_name="report")],
            is_output_node=True,
            not_idempotent=True,
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        parts = [inventory(face_places()), own_parts(), versions(**host_versions())]
        report = "\n\n".join(parts)
        show_text(report, node_id(cls))  # new pages show no text of `ui`
        return io.NodeOutput(report, ui=ui.PreviewText(report))

    @classmethod
    def fingerprint_inputs(cls) -> float:
        """Look again every time."""
        return float("nan")
