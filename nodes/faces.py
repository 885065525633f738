"""Nodes for faces."""

from __future__ import annotations

from comfy_api.latest import io

from ..magicapture.faces.embed import load_recogniser
from ._comfy.files import recogniser_names, recogniser_path
from ._common import naming
from ._sockets import RecogniserSocket


class MagiCaptureLoadRecogniser(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagiCaptureLoadRecogniser",
            display_name="Load Face Recogniser",
            category="MagiCapture/references",
            description="A face embedder for the identity loss, from models/insightface: ONNX or "
            "TorchScript, 112x112. Mind the licence of the weights.",
            inputs=[
                io.Combo.Input(
                    "file",
                    options=recogniser_names(),
                    tooltip="For insightface packs: w600k_r50.onnx (buffalo_l) or glintr100.onnx "
                    "(antelopev2).",
                ),
                io.Combo.Input(
                    "normalisation",
                    options=["arcface", "imagenet"],
                    default="arcface",
                    tooltip="How the network wants its pixels; arcface for insightface's own.",
                ),
            ],
            outputs=[RecogniserSocket.Output(display_name="recogniser")],
        )

    @classmethod
    def execute(cls, file, normalisation) -> io.NodeOutput:
        with naming("Load Face Recogniser"):
            return io.NodeOutput(load_recogniser(recogniser_path(file), normalisation))
