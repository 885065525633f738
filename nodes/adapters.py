"""Nodes that save, load and apply what was learned."""

from __future__ import annotations

import logging

from comfy_api.latest import io

from ..magicapture.adapters import SavedFiles, credited, load_adapter, model_card, save_adapter
from ..magicapture.files import spare_folders
from ._comfy import apply_adapter, model_folders, node_id, show_text
from ._comfy.files import listed_name, lora_names, lora_path, saved_folder, stamp
from ._common import prompts_of
from ._node import Node, refusal, schema
from ._sockets import AdapterSocket

logger = logging.getLogger(__name__)


class MagiCaptureSaveAdapter(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Save Adapter",
            "adapters",
            aliases="save lora, save embedding, export lora",
            description="Write the LoRA to the loras folder and each token to the embeddings "
            "folder, where stock nodes find them. Earlier ones of the same name are kept as "
            "backups; a token whose name another LoRA's has gets another one, which is shown. "
            "Or all in one file, to share.",
            inputs=[
                AdapterSocket.Input("adapter"),
                io.String.Input(
                    "name",
                    default="my-person-in-style",
                    tooltip="Name of the LoRA's file; people/ada puts it into a sub-folder. "
                    "Embeddings are named after their tokens.",
                ),
                io.Boolean.Input(
                    "one_file",
                    default=False,
                    optional=True,
                    tooltip="Put the tokens into the LoRA's file, to share it: for Load Adapter "
                    "here, A1111 and Forge. Load LoRA takes the LoRA alone, without the tokens.",
                ),
                io.String.Input(
                    "consent",
                    default="",
                    optional=True,
                    tooltip="Who agreed to this training and how, in your words; kept in the "
                    "files and on the card. Empty says nothing.",
                ),
                io.Boolean.Input(
                    "made_with",
                    default=True,
                    optional=True,
                    tooltip="Say in the files that MagiCapture made them.",
                ),
            ],
            outputs=[
                AdapterSocket.Output(display_name="adapter"),
                io.String.Output(display_name="lora_name"),
                io.String.Output(display_name="card"),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, adapter, name, one_file=False, consent="", made_with=True) -> io.NodeOutput:
        adapter = credited(adapter, consent, made_with)
        loras, embeddings = model_folders("loras")[0], model_folders("embeddings")[0]
        spare = [saved_folder(), *spare_folders()]
        files = save_adapter(adapter, loras, embeddings, name, bundle=one_file, spare=spare)
        for note in files.notes:
            logger.warning("Save Adapter: %s", note)
        listed = listed_name(files.lora)
        text = _told(files, listed)
        logger.info("Save Adapter: %s", text)
        show_text(text, node_id(cls))  # the page shows no text of "ui"
        card = model_card(files.adapter, files.lora.stem)
        return io.NodeOutput(adapter, listed, card, ui={"text": [text]})


def _told(files: SavedFiles, listed: str) -> str:
    """What was saved, where it lies, what to do next, and what the user should know."""
    tokens = ", ".join(files.adapter.stock_names)
    folders = dict.fromkeys(path.parent for path in (files.lora, *files.embeddings))
    kept = ", ".join(backup.name for backup in files.backups)
    if files.embeddings or not files.adapter.tokens:
        ahead = "Load LoRA takes the LoRA; write the tokens in any prompt."
    else:
        ahead = "all is in one file; Load Adapter, then Apply Adapter."
    return "\n".join(
        [
            f"LoRA: {listed}; tokens: {tokens}.",
            f"Saved in {' and '.join(map(str, folders))}.",
            *(f"Note: {note}" for note in files.notes),
            *([f"Kept of an earlier training: {kept}."] if kept else []),
            f"Next: {ahead}",
            *(f"Prompt: {prompt}" for prompt in prompts_of(files.adapter)),
        ]
    )


class MagiCaptureLoadAdapter(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Load Adapter",
            "adapters",
            aliases="load lora, load embedding, textual inversion",
            description="Read a LoRA that Save Adapter wrote, with the tokens of its training; or "
            "another program's, with the embeddings bundled in it.",
            inputs=[
                io.Combo.Input(
                    "lora_name",
                    options=lora_names(),
                    tooltip="A LoRA in the loras folder. Its tokens are inside the file, or in "
                    "the embeddings folder.",
                )
            ],
            outputs=[AdapterSocket.Output(display_name="adapter")],
        )

    @classmethod
    def execute(cls, lora_name) -> io.NodeOutput:
        return io.NodeOutput(load_adapter(lora_path(lora_name), model_folders("embeddings")))

    @classmethod
    def validate_inputs(cls, lora_name=None) -> bool | str:
        """Instead of "Value not in list", what to do."""
        return refusal(lora_path, lora_name)

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
        return io.NodeOutput(*apply_adapter(model, clip, adapter, strength, strength))
