"""The node that measures pictures as the paper does, and writes a page about them."""

from __future__ import annotations

import json

from comfy_api.latest import io, ui

from ..magicapture.clip import load_clip_text
from ..magicapture.data import ReferenceSet
from ..magicapture.evaluation import (
    COMMAND,
    CSV,
    JSON,
    PAGE,
    Given,
    Models,
    evaluate,
    load_aesthetic_head,
    write_csv,
    write_page,
)
from ..magicapture.evaluation import (
    References as Against,
)
from ..magicapture.faces.analyzer import FaceAnalyzer
from ..magicapture.files import atomic_write, safe_name
from ._comfy import ComfyEyes, Progress, images_from_socket, node_id, show_text
from ._comfy.files import (
    AESTHETIC,
    aesthetic_names,
    aesthetic_path,
    clip_names,
    clip_path,
    new_report_folder,
    stamp,
)
from ._detector import detector_input, detector_or_best
from ._inputs import training_face_model, training_face_model_inputs
from ._node import Node, refusal, schema
from ._sockets import FaceModelSocket, ParserSocket, References

NONE = "none"


class MagiCaptureEvaluatePictures(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Evaluate Pictures",
            "faces",
            aliases="benchmark, metrics, clip score, csim, aesthetic score, compare loras, "
            "quality, report, diversity",
            description="Measures pictures as the paper does: identity, style, aesthetic, "
            "diversity, copies, prompt. Writes a page, a CSV and a JSON file into the output "
            "folder.",
            is_input_list=True,
            inputs=[
                io.MultiType.Input(
                    "images",
                    types=[io.Image, References],
                    tooltip="The pictures: from VAE Decode, say, or from Load Photo Set.",
                ),
                References.Input("person", tooltip="The person's photos that were trained on."),
                References.Input(
                    "style",
                    optional=True,
                    tooltip="The portraits in the style. Without them style is left out.",
                ),
                io.MultiType.Input(
                    "compared_with",
                    types=[io.Image, References],
                    optional=True,
                    tooltip="Pictures of another adapter, to stand beside the first.",
                ),
                detector_input(),
                ParserSocket.Input(
                    "parser",
                    optional=True,
                    tooltip="Outlines the faces that style leaves out. Without one: ovals.",
                ),
                FaceModelSocket.Input(
                    "face_model",
                    optional=True,
                    tooltip="Tells how alike faces are. Use a different one than in training: "
                    "'second best found' in Load Face Recognition Model.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="For style, diversity, aesthetic and prompt: CLIP-ViT-L-14, say, from "
                    "Load CLIP Vision.",
                ),
                *training_face_model_inputs(),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    tooltip="What the pictures were to show, in plain words without tokens.",
                ),
                io.Combo.Input(
                    "clip_text",
                    options=[NONE, *clip_names()],
                    default=NONE,
                    tooltip="A file in models/clip_vision or models/text_encoders with the text "
                    "half of the same CLIP model, for the prompt; a whole CLIP model will do.",
                ),
                io.Combo.Input(
                    "aesthetic",
                    options=[NONE, *aesthetic_names()],
                    default=NONE,
                    tooltip=f"A file in models/{AESTHETIC}: LAION's aesthetic predictor for the "
                    "CLIP model at clip_vision.",
                ),
                io.Boolean.Input(
                    "by_skin_tone",
                    default=False,
                    tooltip="Reads the skin's tone in each picture and tells the figures apart "
                    "by it.",
                ),
                io.String.Input(
                    "name",
                    default="evaluation",
                    tooltip="Of the folder below output/magicapture/evaluations.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="report"),
                io.String.Output(display_name="data", tooltip="The report as JSON."),
                io.String.Output(display_name="page", tooltip="Where the web page lies."),
            ],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, images, person, prompt, clip_text, aesthetic, by_skin_tone, name, **more
    ) -> io.NodeOutput:
        one = {key: values[0] for key, values in more.items() if values}
        eyes = one.get("clip_vision") and ComfyEyes(one["clip_vision"])
        words = clip_text[0] != NONE and eyes
        models = Models(
            FaceAnalyzer(
                detector_or_best(one.get("detector")), one.get("parser"), one.get("face_model")
            ),
            eyes,
            load_clip_text(clip_path(clip_text[0])) if words else None,
            None if aesthetic[0] == NONE else load_aesthetic_head(aesthetic_path(aesthetic[0])),
        )
        folder = new_report_folder(name[0])
        against = Against.of(person[0], one.get("style"), models, tones=by_skin_tone[0])
        given = {"images": images, "compared with": more.get("compared_with")}
        groups = {title: _given(some, prompt[0].strip()) for title, some in given.items() if some}
        bar = Progress(sum(map(len, groups.values())), node_id(cls))
        loss = training_face_model(one.get("loss_face_model"), one.get("adapter"))
        found = evaluate(
            groups, against, models, loss=loss, on_progress=lambda done, total: bar.update(done)
        )
        data = json.dumps({"made_by": COMMAND, **found.as_dict()}, ensure_ascii=False)
        write_csv(found, folder / CSV)
        write_page(found, folder / PAGE)
        atomic_write(folder / JSON, lambda file: file.write_text(data, "utf-8"))
        report = f"{found}\nWritten into {folder}"
        show_text(report, node_id(cls))  # new pages show no text of `ui`
        return io.NodeOutput(report, data, str(folder / PAGE), ui=ui.PreviewText(report))

    @classmethod
    def validate_inputs(cls, clip_text=(NONE,), aesthetic=(NONE,), name=(None,)) -> bool | str:
        """Say what is wrong before anything runs."""
        told = [refusal(safe_name, name[0], "report's name")]
        for choice, find in ((clip_text[0], clip_path), (aesthetic[0], aesthetic_path)):
            told += [] if choice == NONE else [refusal(find, choice)]
        return next((text for text in told if text is not True), True)

    @classmethod
    def fingerprint_inputs(cls, clip_text, aesthetic, **other) -> str:
        """Measure again when a file has changed."""
        files = ((clip_text[0], clip_path), (aesthetic[0], aesthetic_path))
        return " ".join(stamp(find(choice)) for choice, find in files if choice != NONE)


def _given(sets, prompt: str) -> list[Given]:
    """The pictures of IMAGE batches and of photo sets; a photo's own caption is its prompt."""
    found = []
    for some in sets:
        if isinstance(some, ReferenceSet):
            found += [
                Given(photo.name, lambda photo=photo: photo.image, photo.caption or prompt or None)
                for photo in some
            ]
            continue
        start = len(found) + 1
        found += [
            Given(
                str(start + i),
                lambda some=some, i=i: images_from_socket(some[i : i + 1])[0],
                prompt or None,
            )
            for i in range(len(some))
        ]
    return found
