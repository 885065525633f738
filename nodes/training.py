"""The node that trains."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..magicapture.adapters import check_names
from ..magicapture.checkpoints import Checkpoints
from ..magicapture.errors import StorageError
from ..magicapture.files import check_writable
from ..magicapture.recipes import recipe as named_recipe
from ..magicapture.training import Trainer, TrainingJob
from ._comfy import (
    Cancelled,
    ComfyBackbone,
    images_to_socket,
    model_folders,
    node_id,
    saved_when_stopped,
)
from ._comfy.files import state_folder
from ._common import pixels
from ._monitor import Monitor
from ._node import Node, schema
from ._sockets import (
    AdapterSocket,
    CheckpointsSocket,
    ConceptSocket,
    DinoSocket,
    FaceModelSocket,
    KeepSocket,
    RecipeSocket,
)


class MagiCaptureTrain(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Train MagiCapture",
            "training",
            aliases="train lora, dreambooth, textual inversion, fine-tune, personalization, "
            "portrait, likeness, few-shot",
            description="Learn the subject's face and the style as two tokens and a small LoRA. "
            "Cancel keeps what is done; the same queue again goes on from there.",
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="Stable Diffusion 1.x, 2.x or XL, or one of the transformers that "
                    "docs/families.md lists, such as Flux.1. Left as it is. Train on a base model "
                    "or a full fine-tune of it; Turbo, Lightning and LCM models are for drawing, "
                    "and take the adapter of their base.",
                ),
                io.Clip.Input("clip"),
                io.Vae.Input("vae"),
                ConceptSocket.Input(
                    "subject", tooltip="The person or thing: a concept of role subject."
                ),
                ConceptSocket.Input("style", tooltip="The look: a concept of role style."),
                RecipeSocket.Input(
                    "recipe", optional=True, tooltip="Without one: the recipe magicapture."
                ),
                FaceModelSocket.Input(
                    "face_model",
                    optional=True,
                    tooltip="A face recognition model for the identity loss; without one it is off "
                    "and the likeness is weaker.",
                ),
                io.Vae.Input(
                    "fast_decoder",
                    optional=True,
                    tooltip="A TAESD for the base model (Load VAE: taesd; taesdxl, taef1 or "
                    "lighttaew2_1, which save gigabytes). The identity loss and the previews then "
                    "cost much less.",
                ),
                io.Int.Input(
                    "training_seed",  # not "seed": the frontend would draw a new one each time
                    default=0,
                    min=0,
                    max=2**32 - 1,
                    tooltip="The same seed and inputs give the same result, and continue a "
                    "cancelled run.",
                ),
                io.Int.Input(
                    "preview_every",
                    default=100,
                    min=0,
                    max=10_000,
                    tooltip="Preview interval in steps, plus one at the end (0 = off).",
                ),
                io.Boolean.Input(
                    "resume",
                    default=True,
                    tooltip="Continue a cancelled run of the same inputs.",
                ),
                KeepSocket.Input(
                    "keep",
                    optional=True,
                    tooltip="From Keep Checkpoints: adapters of several steps are scored, and the "
                    "best comes out.",
                ),
                DinoSocket.Input(
                    "dino",
                    optional=True,
                    tooltip="From Load DINO, for the recipe things: a pet, a toy, a bag in a "
                    "style. Other recipes do without.",
                ),
            ],
            outputs=[
                AdapterSocket.Output(display_name="adapter"),
                io.Image.Output(display_name="loss_curves"),
                io.Image.Output(display_name="previews"),
                io.String.Output(display_name="report"),
                CheckpointsSocket.Output(
                    display_name="checkpoints",
                    tooltip="For Take Checkpoint; empty without Keep Checkpoints.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model,
        clip,
        vae,
        subject,
        style,
        training_seed,
        preview_every,
        resume,
        recipe=None,
        face_model=None,
        fast_decoder=None,
        keep=None,
        dino=None,
    ) -> io.NodeOutput:
        job = TrainingJob(subject, style, recipe or named_recipe(), training_seed)
        checkpoints = None if keep is None else Checkpoints(keep.with_loss(face_model))
        monitor = Monitor(node_id(cls), job, preview_every)
        monitor.warnings += _unwritable()
        backbone = ComfyBackbone(model, clip, vae, decoder=fast_decoder)
        concepts = job.fitted(backbone.family).concepts
        replaced = check_names(concepts, model_folders("embeddings"))
        monitor.plan(backbone, face_model, dino)
        with (
            saved_when_stopped(),
            Trainer.open(
                job,
                backbone,
                embedder=face_model,
                dino=dino,
                listener=monitor,
                state_folder=state_folder(),
                fresh=not resume,
            ) as trainer,
        ):
            monitor.begin(trainer)
            try:
                adapter = trainer.run(preview_every=preview_every, keeping=checkpoints)
            except Cancelled:
                monitor.say(trainer.farewell("queue again with the same inputs to go on."))
                raise
        remarks = list(replaced)
        if checkpoints:
            adapter = checkpoints.adapter()
            remarks += str(checkpoints).splitlines()
        report = monitor.finish(adapter, remarks)
        curves = images_to_socket(pixels(monitor.curves()))
        previews = images_to_socket(torch.stack(monitor.previews)) if monitor.previews else curves
        return io.NodeOutput(adapter, curves, previews, report, checkpoints)


def _unwritable() -> list[str]:
    """What Save Adapter would meet once all is trained; Apply Adapter needs no folder."""
    problems = []
    for kind in ("loras", "embeddings"):
        try:
            check_writable(model_folders(kind)[0])
        except StorageError as error:
            problems.append(
                f"Save Adapter cannot write to its folder and will save elsewhere. {error}"
            )
    return problems
