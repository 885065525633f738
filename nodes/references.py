"""Nodes for what is learned from: reference sets and concepts."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from ..magicapture.data import Learnable, ReferenceSet, load_folder
from ..magicapture.data.companions import CAPTION, LANDMARKS, picture_endings
from ..magicapture.data.folder import caption_of
from ..magicapture.data.given import with_landmarks, with_masks
from ..magicapture.data.writing import save_photo_set
from ..magicapture.errors import InputError
from ..magicapture.images import bounded, resize
from ..magicapture.tokens import Concept
from ._comfy import given_faces, node_id, show_text
from ._comfy.files import input_folder, input_folders, input_name, new_input_folder, stamp
from ._common import single_images, single_masks
from ._node import Node, refusal, schema
from ._sockets import ConceptSocket, FaceLandmarks, References

NO_FOLDER = "(none: use images)"


def _bounded(image: Tensor) -> Tensor:
    """A photo or mask (C,H,W), no larger than those of a folder."""
    return resize(image, bounded(image.shape[-2], image.shape[-1]))


def _folder_input() -> io.Combo.Input:
    folder = io.Combo.Input(
        "folder",
        options=[NO_FOLDER, *input_folders()],
        default=NO_FOLDER,
        tooltip="A folder inside ComfyUI's input folder; the button below makes one from your "
        "photos. Beside photo.jpg it may hold photo.mask.png (white = face), photo.txt (a caption) "
        "and photo.landmarks.json.",
    )
    # What web/js/upload.js may send; 0.3.64 takes no further options in the call above.
    folder.extra_dict["endings"] = [*picture_endings(), CAPTION, LANDMARKS]
    return folder


class MagiCaptureLoadPhotoSet(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Load Photo Set",
            "references",
            aliases="load images from folder, image batch, reference images, dataset, "
            "training images, upload photos",
            description="4 to 6 photos of one person, or 4 to 6 portraits in one style, of any "
            "sizes: a folder, an image batch or an image list.",
            is_input_list=True,
            inputs=[
                _folder_input(),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="Photos instead of a folder: a batch, or a list of any sizes.",
                ),
                io.Mask.Input(
                    "face_masks",
                    optional=True,
                    tooltip="One mask a photo, in the same order, white on the face - for a style "
                    "too - or on the thing, from SAM or a background remover, say. Replaces the "
                    "folder's masks. One that marks nothing counts as none.",
                ),
                io.String.Input(
                    "captions",
                    multiline=True,
                    default="",
                    optional=True,
                    tooltip="Your own words for the photos, one line each; empty lines for none.",
                ),
                FaceLandmarks.Input(
                    "landmarks",
                    optional=True,
                    tooltip="From ComfyUI's own Detect Face Landmarks (MediaPipe), run on these "
                    "photos. Of several faces counts the one in the mask, or else the largest.",
                ),
            ],
            outputs=[References.Output(display_name="references")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, folder, images=None, face_masks=None, captions=None, landmarks=None
    ) -> io.NodeOutput:
        folder, captions = folder[0], (captions or [""])[0]
        if images is not None:
            references = ReferenceSet.of(map(_bounded, single_images(images)))
        elif folder != NO_FOLDER:
            references = load_folder(input_folder(folder))
        else:
            raise InputError("No photos are given: choose a folder or connect images.")
        if face_masks is not None:
            masks = [*map(_bounded, single_masks(face_masks))]
            references = with_masks(references, masks)
        if landmarks is not None:
            references = with_landmarks(references, given_faces(landmarks, references))
        if captions.strip():
            lines = [
                caption_of(line, f"Line {number}")
                for number, line in enumerate(captions.rstrip().split("\n"), start=1)
            ]
            lines += [None] * (len(references) - len(lines))
            references = references.known("captions", lines)
        if references.warnings:
            show_text("\n".join(references.warnings), node_id(cls))
        return io.NodeOutput(references)

    @classmethod
    def validate_inputs(cls, folder=(None,)) -> bool | str:
        """Instead of "Value not in list", what to do."""
        return folder[0] == NO_FOLDER or refusal(input_folder, folder[0])

    @classmethod
    def fingerprint_inputs(cls, folder, **other) -> str:
        """Look again when a file of the folder has changed."""
        return "" if folder[0] == NO_FOLDER else stamp(input_folder(folder[0]))


class MagiCaptureDefineConcept(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Define Concept",
            "references",
            aliases="trigger word, instance token, class word, textual inversion, subject, style",
            description="Name a token for the person (subject) or the look (style) in the photos.",
            inputs=[
                References.Input("references", tooltip="The photos to learn it from."),
                io.Combo.Input(
                    "role",
                    options=["subject", "style"],
                    default="subject",
                    tooltip="subject learns the face inside the masks; style learns everything "
                    "outside them.",
                ),
                io.String.Input(
                    "name",
                    default="my-person",
                    tooltip="The token's name. Prompts say embedding:NAME, and the file is "
                    "NAME.safetensors in the embeddings folder.",
                ),
                io.String.Input(
                    "class_word",
                    default="person",
                    tooltip="The ordinary noun for the subject: person, woman, man, dog, bag. A "
                    "style takes the subject's.",
                ),
                io.Int.Input(
                    "vectors",
                    default=1,
                    min=0,
                    max=16,
                    tooltip="How many words of the prompt the token takes. More hold more detail "
                    "and are harder to edit. 0: no token; prompts say the phrase, and the LoRA "
                    "alone learns what it means.",
                ),
                io.String.Input(
                    "start_from",
                    default="",
                    optional=True,
                    tooltip="The word whose embedding it starts from, or 'random'. Empty: the "
                    "class word for a subject, random for a style.",
                ),
                io.String.Input(
                    "phrase",
                    default="",
                    optional=True,
                    tooltip="With vectors 0: the ordinary words that prompts say, before the class "
                    "word, such as 'ada lovel'. Rare words are best, since the model knows little "
                    "of them. Empty: the name.",
                ),
            ],
            outputs=[ConceptSocket.Output(display_name="concept")],
        )

    @classmethod
    def execute(
        cls, references, role, name, class_word, vectors, start_from="", phrase=""
    ) -> io.NodeOutput:
        start, words = start_from.strip() or None, phrase.strip() or None
        concept = Concept(name.strip(), role, class_word.strip(), vectors, start, words)
        return io.NodeOutput(Learnable(concept, references))


class MagiCaptureSavePhotoSet(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Save Photo Set",
            "references",
            aliases="save masks, save captions, save landmarks, export dataset, save images to "
            "folder",
            description="Writes photos with their face masks, landmarks and captions into a folder "
            "of ComfyUI's input folder, from which Load Photo Set reads them again.",
            inputs=[
                References.Input("references", tooltip="From Make Face Masks or Check Photos."),
                io.String.Input(
                    "name",
                    default="my-person",
                    tooltip="The folder's name; people/ada puts it into a sub-folder. Photos that "
                    "lie there stay as they are, and get what is known about them. If other photos "
                    "lie there, the folder is NAME-2.",
                ),
            ],
            outputs=[
                References.Output(display_name="references"),
                io.String.Output(display_name="folder"),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, references, name) -> io.NodeOutput:
        saved = save_photo_set(references, new_input_folder(name))
        folder = input_name(saved.folder)
        lines = [f"Written into {folder}: {saved}."]
        lines += [f"Kept of before: {backup.name}." for backup in saved.backups]
        text = "\n".join(lines)
        show_text(text, node_id(cls))
        return io.NodeOutput(references, folder, ui={"text": [text]})

    @classmethod
    def validate_inputs(cls, name=None) -> bool | str:
        """Refuse a name before anything runs."""
        return refusal(new_input_folder, name)
