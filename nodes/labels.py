"""The node that shows what the composed prompt will be taught by."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..magicapture.data import ReferenceSet
from ..magicapture.data.masks import is_empty
from ..magicapture.errors import InputError
from ..magicapture.labels import label_sheet, of_recipe, report
from ..magicapture.recipes import recipe as named_recipe
from ._comfy import images_to_socket, node_id, show_text
from ._node import Node, schema
from ._sockets import RecipeSocket, References


class MagiCapturePreviewLabels(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Preview Labels",
            "training",
            aliases="pseudo-label, face laid in, face swap, composed prompt, training targets, "
            "contact sheet",
            description="Before training: the portraits with the person's face laid in, which the "
            "composed prompt is taught by. What lies under violet is not taught.",
            inputs=[
                References.Input(
                    "person", tooltip="The person's photos, with masks: from Make Face Masks."
                ),
                References.Input(
                    "style", tooltip="The portraits in the style, with masks as well."
                ),
                RecipeSocket.Input(
                    "recipe",
                    optional=True,
                    tooltip="Its settings of labels and its resolution count. Without one: the "
                    "recipe magicapture.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="contact_sheet"),
                io.String.Output(display_name="report"),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, person, style, recipe=None) -> io.NodeOutput:
        for name, references in (("person", person), ("style", style)):
            _require_masks(name, references)
        made = of_recipe(style, person, recipe or named_recipe())
        sheet, text = images_to_socket(label_sheet(made)[None]), report(made)
        show_text(text, node_id(cls))  # new pages show no text of `ui`
        return io.NodeOutput(sheet, text, ui=ui.PreviewImage(sheet, cls=cls))


def _require_masks(name: str, references: ReferenceSet) -> None:
    """Raise InputError for an input whose photos lack masks, by which faces are laid in."""
    masks = [(photo.name, photo.face_mask) for photo in references]
    if lacking := [photo for photo, mask in masks if mask is None or is_empty(mask)]:
        raise InputError(
            f"The input '{name}' has no mask of the face in {', '.join(lacking)}; expected one in "
            "every photo. Put Make Face Masks before it, or give masks to Load Photo Set."
        )
