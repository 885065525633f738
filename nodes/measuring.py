"""The node that measures how much pictures look like a person."""

from __future__ import annotations

import json

from comfy_api.latest import io, ui

from ..magicapture.faces.analyzer import FaceAnalyzer
from ..magicapture.person import Person, measure_identity
from ._comfy import images_from_socket, node_id, show_text
from ._detector import detector_input, detector_or_best
from ._inputs import training_face_model, training_face_model_inputs
from ._node import Node, schema
from ._sockets import FaceModelSocket, References


class MagiCaptureMeasureIdentity(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Measure Identity",
            "faces",
            aliases="likeness, face similarity, identity score, face distance, compare faces, "
            "arcface score",
            description="How much pictures look like the person: 1 is as alike as another photo of "
            "them, 0 is a stranger.",
            inputs=[
                io.Image.Input("images", tooltip="The pictures to measure."),
                References.Input("person", tooltip="Photos of the person; the more, the better."),
                detector_input(),
                FaceModelSocket.Input(
                    "face_model",
                    tooltip="Tells how alike faces are. Use a different face model than in "
                    "training, whose scores are inflated: 'second best found' in Load Face "
                    "Recognition Model.",
                ),
                *training_face_model_inputs(),
            ],
            outputs=[
                io.Float.Output(
                    display_name="identity",
                    tooltip="Mean likeness of the pictures; 1 is another photo of the person.",
                ),
                io.String.Output(display_name="report"),
                io.String.Output(display_name="data", tooltip="The report as JSON."),
            ],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, images, person, face_model, detector=None, loss_face_model=None, adapter=None
    ) -> io.NodeOutput:
        analyzer = FaceAnalyzer(detector_or_best(detector), embedder=face_model)
        known = Person.in_photos(person.images, analyzer)
        pictures = images_from_socket(images)
        loss = training_face_model(loss_face_model, adapter)
        report = measure_identity(pictures, known, analyzer, loss)
        text = str(report)
        data = json.dumps(report.as_dict())
        show_text(text, node_id(cls))  # new pages show no text of `ui`
        return io.NodeOutput(report.share, text, data, ui=ui.PreviewText(text))
