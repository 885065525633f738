"""Nodes of the embedded demo: a small model, and drawn faces whose truth is known."""

from __future__ import annotations

from typing import get_args

import torch
from comfy_api.latest import io

from ..magicapture.config import help_of
from ..magicapture.demo import DemoSettings, held_out_pair, recipe_for
from ..magicapture.paperdoll.model import ModelName
from ..magicapture.paperdoll.pairs import PHOTOS, masks, pictures, references
from ..magicapture.paperdoll.weights import WEIGHTS, loss_embedder
from ._comfy import images_to_socket, masks_to_socket
from ._comfy.paperdoll import load_paperdoll
from ._finishing import preview
from ._node import Node, schema
from ._sockets import FaceModelSocket, RecipeSocket, References


class MagiCaptureLoadPaperdollDemo(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Load Paperdoll Demo",
            "demo",
            aliases="demo, example, tiny model, test model",
            description="A small Stable Diffusion (10 million weights, 128x128) trained on drawn "
            "faces, which comes with the pack: runs the whole method in minutes on a CPU.",
            inputs=[
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=10_000,
                    tooltip="Training steps; 0: the recipe's own.",
                ),
                io.Combo.Input(
                    "network",
                    options=list(get_args(ModelName)),
                    default=DemoSettings().model,
                    optional=True,
                    tooltip=help_of(DemoSettings, "model"),
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model"),
                io.Clip.Output(display_name="clip"),
                io.Vae.Output(display_name="vae"),
                FaceModelSocket.Output(display_name="face_model"),
                RecipeSocket.Output(display_name="recipe"),
            ],
        )

    @classmethod
    def execute(cls, steps, network="unet") -> io.NodeOutput:
        parts = load_paperdoll(WEIGHTS, network)
        with torch.inference_mode(False):
            face_model = loss_embedder(WEIGHTS)
        return io.NodeOutput(*parts, face_model, recipe_for(steps or None, network))


class MagiCaptureDrawPaperdollPhotos(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Draw Paperdoll Photos",
            "demo",
            aliases="demo, example, sample photos, test images",
            description="Pictures of a drawn person and of a style, with exact masks and "
            "landmarks, and the true pictures of the person in the style, which training never "
            "sees.",
            inputs=[
                io.Int.Input(
                    "identity",
                    default=DemoSettings().identity,
                    min=0,
                    max=2_999_999,
                    tooltip=help_of(DemoSettings, "identity"),
                ),
                io.Int.Input(
                    "look",
                    default=DemoSettings().style,
                    min=0,
                    max=2_999_999,
                    tooltip=help_of(DemoSettings, "style"),
                ),
                io.Int.Input(
                    "count",
                    default=PHOTOS,
                    min=2,
                    max=16,
                    tooltip="Pictures of the person, and as many of the style.",
                ),
            ],
            outputs=[
                References.Output(display_name="person"),
                References.Output(display_name="style"),
                io.Image.Output(display_name="person_images"),
                io.Image.Output(display_name="style_images"),
                io.Mask.Output(display_name="person_masks"),
                io.Mask.Output(display_name="style_masks"),
                io.Image.Output(display_name="truth"),
            ],
        )

    @classmethod
    def execute(cls, identity, look, count) -> io.NodeOutput:
        with torch.inference_mode(False):
            pair = held_out_pair(identity, look, photos=count)
            shown = (pair.source, pair.reference)
            return io.NodeOutput(
                *(references(dolls) for dolls in shown),
                *(images_to_socket(pictures(dolls)) for dolls in shown),
                *(masks_to_socket(masks(dolls)) for dolls in shown),
                images_to_socket(pictures(pair.unseen[:count])),
                ui=preview([pictures(dolls) for dolls in shown]),
            )
