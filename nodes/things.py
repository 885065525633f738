"""The node that loads what things are compared with."""

from __future__ import annotations

from comfy_api.latest import io

from ..magicapture.dino import load_dino
from ..magicapture.faces.registry import homes, titles
from ._comfy.files import AUTO, face_file, face_stamp
from ._inputs import file_input
from ._node import Node, refusal, schema
from ._sockets import DinoSocket


class MagiCaptureLoadDINO(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Load DINO",
            "training",
            aliases="dinov2, vision transformer, vit, object, pet, toy, product, structure loss",
            description="A network that sees a thing's parts and a picture's look: "
            f"{titles('dino')}. The recipe things trains with it.",
            inputs=[
                file_input(
                    "dino",
                    f"A file in {homes('dino')}: torch hub's, or transformers' model.safetensors "
                    "with its config.json beside it. Check MagiCapture Models tells where to get "
                    "one.",
                    AUTO,
                )
            ],
            outputs=[DinoSocket.Output(display_name="dino")],
        )

    @classmethod
    def execute(cls, file) -> io.NodeOutput:
        return io.NodeOutput(load_dino(face_file("dino", file)))

    @classmethod
    def fingerprint_inputs(cls, file) -> str:
        return face_stamp("dino", file)

    @classmethod
    def validate_inputs(cls, file=None) -> bool | str:
        """Say what to get before anything runs."""
        return refusal(face_file, "dino", file)
