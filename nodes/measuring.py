"""The node that says how much of a person pictures show."""

from __future__ import annotations

import json

from comfy_api.latest import io, ui

from ..magicapture.faces.analyzer import FaceAnalyzer
from ..magicapture.person import Person, measure_identity
from ._comfy import images_from_socket
from ._node import Node, schema
from ._sockets import AdapterSocket, DetectorSocket, FaceModelSocket, References


class MagiCaptureMeasureIdentity(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Measure Identity",
            "faces",
            aliases="likeness, face similarity, identity score, face distance, compare faces, "
            "arcface score",
            description="How much of the person pictures show: 1 is as alike as another photo of "
            "them, 0 is a stranger.",
            inputs=[
                io.Image.Input("images", tooltip="The pictures to measure."),
                References.Input("person", tooltip="Photos of the person; the more, the better."),
                DetectorSocket.Input("detector", tooltip="Finds the faces."),
                FaceModelSocket.Input(
                    "face_model",
                    tooltip="Tells how alike faces are. Take another one than in training, which "
                    "was learned to please: 'second best found' in Load Face Recognition Model.",
                ),
                FaceModelSocket.Input(
                    "loss_face_model",
                    optional=True,
                    tooltip="The one of the training, so that the report can say whether it "
                    "judges itself.",
                ),
                AdapterSocket.Input(
                    "adapter",
                    optional=True,
                    tooltip="What the pictures were made with; it remembers the name of its "
                    "training's face recognition model. Instead of loss_face_model.",
                ),
            ],
            outputs=[
                io.Float.Output(
                    display_name="identity",
                    tooltip="The pictures' mean likeness as a share of the person's own.",
                ),
                io.String.Output(display_name="report"),
                io.String.Output(display_name="figures", tooltip="The report as JSON."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, images, person, detector, face_model, loss_face_model=None, adapter=None
    ) -> io.NodeOutput:
        analyzer = FaceAnalyzer(detector, embedder=face_model)
        known = Person.in_photos(person.images, analyzer)
        pictures = images_from_socket(images)
        loss = loss_face_model or (adapter.info.get("face_model") if adapter else None)
        report = measure_identity(pictures, known, analyzer, loss)
        text = str(report)
        figures = json.dumps(report.as_dict())
        return io.NodeOutput(report.share, text, figures, ui=ui.PreviewText(text))
