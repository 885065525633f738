"""Nodes that save, load and apply what was learned."""

from __future__ import annotations

from comfy_api.latest import io

from ..magicapture.adapters import load_adapter, save_adapter, to_kohya
from ._comfy import apply_adapter, model_folders
from ._comfy.files import lora_names, lora_path, stamp
from ._node import Node, schema
from ._sockets import AdapterSocket


class MagiCaptureSaveAdapter(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Save Adapter",
            "adapters",
            aliases="save lora, save embedding, export lora",
            description="Write the LoRA to the loras folder and each token to the embeddings "
            "folder, where stock nodes find them. Earlier ones of the same name are kept as "
            "backups.",
            inputs=[
                AdapterSocket.Input("adapter"),
                io.String.Input(
                    "name",
                    default="my-person-in-style",
                    tooltip="Name of the LoRA's file, without ending. Embeddings are named after "
                    "their tokens.",
                ),
            ],
            outputs=[
                AdapterSocket.Output(display_name="adapter"),
                io.String.Output(display_name="lora_name"),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, adapter, name) -> io.NodeOutput:
        files = save_adapter(
            adapter, model_folders("loras")[0], model_folders("embeddings")[0], name
        )
        lines = [f"LoRA: {files.lora.name}", *(f"embedding:{e.stem}" for e in files.embeddings)]
        return io.NodeOutput(adapter, files.lora.name, ui={"text": ["\n".join(lines)]})


class MagiCaptureLoadAdapter(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Load Adapter",
            "adapters",
            aliases="load lora, load embedding, textual inversion",
            description="Read a LoRA that Save Adapter wrote, with its tokens.",
            inputs=[
                io.Combo.Input(
                    "lora_name",
                    options=lora_names(),
                    tooltip="A LoRA trained by MagiCapture, in the loras folder.",
                )
            ],
            outputs=[AdapterSocket.Output(display_name="adapter")],
        )

    @classmethod
    def execute(cls, lora_name) -> io.NodeOutput:
        return io.NodeOutput(load_adapter(lora_path(lora_name), model_folders("embeddings")))

    @classmethod
    def fingerprint_inputs(cls, lora_name) -> str:
        """Read again when the file has changed."""
        return stamp(lora_path(lora_name))


class MagiCaptureApplyAdapter(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Apply Adapter",
            "adapters",
            aliases="apply lora, lora loader, embedding, likeness",
            description="Put the LoRA and the tokens into MODEL and CLIP, straight from training "
            "or from Load Adapter. Prompts name the tokens as embedding:NAME.",
            inputs=[
                io.Model.Input("model"),
                io.Clip.Input("clip"),
                AdapterSocket.Input("adapter"),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-2.0,
                    max=2.0,
                    step=0.05,
                    tooltip="Strength of the LoRA; 0.9 or 0.8 where words that contradict the "
                    "photos do not show. The tokens are always whole.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model"),
                io.Clip.Output(display_name="clip"),
            ],
        )

    @classmethod
    def execute(cls, model, clip, adapter, strength) -> io.NodeOutput:
        lora = to_kohya(adapter)
        return io.NodeOutput(*apply_adapter(model, clip, lora, adapter.tokens, strength, strength))
