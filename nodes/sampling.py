"""Nodes for asking for pictures."""

from __future__ import annotations

from comfy_api.latest import io

from ..magicapture.config import PromptTemplates
from ..magicapture.prompts import as_embeddings, prompt_for
from ._common import naming
from ._sockets import AdapterSocket


class MagiCapturePrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MagiCapturePrompt",
            display_name="Write Prompt",
            category="MagiCapture/sampling",
            description="Write the prompt in the words of training, tokens included, for any "
            "text encoder node.",
            inputs=[
                AdapterSocket.Input("adapter"),
                io.Combo.Input(
                    "kind",
                    options=["composed", "subject", "style"],
                    default="composed",
                    tooltip="composed: the person in the style; or one of them alone.",
                ),
                io.Int.Input(
                    "sentence",
                    default=0,
                    min=0,
                    max=99,
                    tooltip="Which of the sentences of training, counted round.",
                ),
                io.String.Input(
                    "extra",
                    default="",
                    multiline=True,
                    tooltip="Your own words behind it: wearing glasses, on a red background.",
                ),
            ],
            outputs=[io.String.Output(display_name="prompt")],
        )

    @classmethod
    def execute(cls, adapter, kind, sentence, extra) -> io.NodeOutput:
        with naming("Write Prompt"):
            templates = adapter.recipe.prompts if adapter.recipe else PromptTemplates()
            text = prompt_for(adapter.concepts, templates, kind, sentence=sentence, extra=extra)
            return io.NodeOutput(as_embeddings(text, adapter.concepts))
