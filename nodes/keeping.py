"""The nodes that keep checkpoints of a training, and take one of them."""

from __future__ import annotations

import json

from comfy_api.latest import io, ui

from ..magicapture.checkpoints import Keep, KeepSettings
from ..magicapture.clip import load_clip
from ..magicapture.config import help_of
from ..magicapture.errors import InputError
from ..magicapture.faces.analyzer import FaceAnalyzer
from ._comfy import images_to_socket, node_id, show_text
from ._comfy.files import clip_names, clip_path, stamp
from ._detector import detector_input, detector_or_best
from ._inputs import choice, plain
from ._node import Node, refusal, schema
from ._sockets import AdapterSocket, CheckpointsSocket, FaceModelSocket, KeepSocket, ParserSocket

NONE = "none"


class MagiCaptureKeepCheckpoints(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Keep Checkpoints",
            "training",
            aliases="save every n steps, best checkpoint, early stopping, overfitting, epochs, "
            "validation",
            description="Has Train MagiCapture keep the adapters of several steps, score each on a "
            "few fixed seeds, mark the best, and give that one out. Training itself stays the "
            "same, bit by bit.",
            inputs=[
                plain(KeepSettings, "keep"),
                plain(KeepSettings, "keep_every"),
                plain(KeepSettings, "keep_seeds"),
                choice(KeepSettings, "choose"),
                plain(KeepSettings, "stop_early"),
                io.Float.Input(
                    "keep_guidance",
                    default=0.0,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    tooltip=help_of(KeepSettings, "keep_guidance").replace("empty", "0"),
                ),
                io.Combo.Input(
                    "clip_file",
                    options=[NONE, *clip_names()],
                    default=NONE,
                    tooltip="A CLIP model in models/clip_vision or models/text_encoders, in "
                    "transformers' names, that tells how alike styles are; none: the base model's "
                    "autoencoder does.",
                ),
                FaceModelSocket.Input(
                    "face_model",
                    optional=True,
                    tooltip="Tells how alike faces are. Use a different one than in training: "
                    "'second best found' in Load Face Recognition Model. Without one the "
                    "training's own serves, and the report says so.",
                ),
                detector_input(),
                ParserSocket.Input(
                    "parser",
                    optional=True,
                    tooltip="Outlines the faces that style leaves out. Without one: ovals.",
                ),
            ],
            outputs=[KeepSocket.Output(display_name="keep")],
        )

    @classmethod
    def execute(
        cls,
        keep_guidance,
        clip_file,
        face_model=None,
        detector=None,
        parser=None,
        **settings,
    ) -> io.NodeOutput:
        chosen = KeepSettings(**settings, keep_guidance=keep_guidance or None)
        analyzer = FaceAnalyzer(detector_or_best(detector), parser, face_model)
        # ComfyUI's own CLIP_VISION would be loaded in the middle of the training.
        clip = None if clip_file == NONE else load_clip(clip_path(clip_file))
        return io.NodeOutput(Keep(chosen, analyzer, clip))

    @classmethod
    def validate_inputs(cls, clip_file=NONE, keep_guidance=0.0) -> bool | str:
        """Say what is wrong before anything runs."""
        if keep_guidance is not None and 0 < keep_guidance < 1:
            return f"keep_guidance: expected 0, or 1 to 30, got {keep_guidance}."
        return True if clip_file == NONE else refusal(clip_path, clip_file)

    @classmethod
    def fingerprint_inputs(cls, clip_file, **other) -> str:
        """Read again when the file has changed."""
        return "" if clip_file == NONE else stamp(clip_path(clip_file))


class MagiCaptureTakeCheckpoint(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Take Checkpoint",
            "training",
            aliases="choose checkpoint, best step, compare steps, xy plot, epoch",
            description="Gives out the adapter of a kept step, a grid of all of them (a row for "
            "each step, a column for each seed, the marked one in green), and the scores.",
            inputs=[
                CheckpointsSocket.Input(
                    "checkpoints", tooltip="From Train MagiCapture with Keep Checkpoints."
                ),
                io.Int.Input(
                    "step",
                    default=0,
                    min=0,
                    max=1_000_000,
                    tooltip="A kept step, as in the grid; 0: the marked one.",
                ),
            ],
            outputs=[
                AdapterSocket.Output(display_name="adapter"),
                io.Image.Output(display_name="grid"),
                io.Int.Output(display_name="step"),
                io.String.Output(display_name="report"),
                io.String.Output(display_name="data", tooltip="The scores as JSON."),
            ],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, checkpoints, step) -> io.NodeOutput:
        if checkpoints is None:
            raise InputError(
                "The input 'checkpoints' is empty, since none were kept: connect Keep Checkpoints "
                "to the input 'keep' of Train MagiCapture, and queue again."
            )
        taken = step or checkpoints.best.step
        adapter = checkpoints.adapter(taken)
        report = f"Taken: step {taken}.\n{checkpoints}"
        data = json.dumps(checkpoints.as_dict(), ensure_ascii=False)
        show_text(report, node_id(cls))  # new pages show no text of `ui`
        grid = images_to_socket(checkpoints.grid()[None])
        return io.NodeOutput(adapter, grid, taken, report, data, ui=ui.PreviewText(report))
