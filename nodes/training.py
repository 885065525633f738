"""The node that trains, and what it shows meanwhile."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from comfy_api.latest import io
from torch import Tensor

from ..magicapture.adapters import Adapter, check_names
from ..magicapture.errors import StorageError
from ..magicapture.files import check_writable
from ..magicapture.images import to_pil
from ..magicapture.plot import loss_curves
from ..magicapture.recipes import recipe as named_recipe
from ..magicapture.refocusing import TokenMap, grid
from ..magicapture.training import (
    Event,
    Prepared,
    Previewed,
    Resumed,
    Stepped,
    Trainer,
    TrainingJob,
    Warned,
)
from ._comfy import (
    Cancelled,
    ComfyBackbone,
    Progress,
    images_to_socket,
    model_folders,
    node_id,
    saved_when_stopped,
    show_text,
)
from ._comfy.files import state_folder
from ._common import pixels, side_by_side
from ._node import Node, schema
from ._sockets import AdapterSocket, ConceptSocket, FaceModelSocket, RecipeSocket

if TYPE_CHECKING:
    from PIL.Image import Image

REDRAW = 2.0
"""Seconds between two pictures of the loss curve."""


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
                io.Model.Input("model", tooltip="Stable Diffusion 1.x or 2.x. Left as it is."),
                io.Clip.Input("clip"),
                io.Vae.Input("vae"),
                ConceptSocket.Input("subject", tooltip="The person: a concept of role subject."),
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
                    tooltip="A TAESD for the base model (Load VAE: taesd). The identity loss and "
                    "the previews then cost much less.",
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
            ],
            outputs=[
                AdapterSocket.Output(display_name="adapter"),
                io.Image.Output(display_name="loss_curves"),
                io.Image.Output(display_name="previews"),
                io.String.Output(display_name="report"),
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
    ) -> io.NodeOutput:
        monitor = Monitor(node_id(cls))
        job = TrainingJob(subject, style, recipe or named_recipe(), training_seed)
        monitor.warnings += _unwritable()
        replaced = check_names(job.concepts, model_folders("embeddings"))
        backbone = ComfyBackbone(model, clip, vae, decoder=fast_decoder)
        with (
            saved_when_stopped(),
            Trainer.open(
                job,
                backbone,
                embedder=face_model,
                listener=monitor,
                state_folder=state_folder(),
                fresh=not resume,
            ) as trainer,
        ):
            monitor.history = trainer.history
            monitor.phases = trainer.phase_ends
            try:
                adapter = trainer.run(preview_every=preview_every)
            except Cancelled:
                monitor.say(trainer.farewell("queue again with the same inputs to go on."))
                raise
        curves = images_to_socket(pixels(monitor.curves(trainer.steps)))
        previews = images_to_socket(torch.stack(monitor.previews)) if monitor.previews else curves
        return io.NodeOutput(adapter, curves, previews, monitor.report(adapter, replaced))


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


class Monitor:
    """Turns a run's events into the node's progress bar, text and picture, and heeds Cancel."""

    def __init__(self, node: str | None) -> None:
        self.node = node
        self.history: list[dict[str, float]] = []
        self.phases: list[int] = []
        self.previews: list[Tensor] = []
        self.leakages: list[dict[str, float]] = []
        self.token_maps: Sequence[TokenMap] = ()
        self.warnings: list[str] = []
        self._bar = Progress(1, node)
        self._drawn = 0.0
        self._recent: list[float] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, Prepared):
            self._show(event.done, event.total, f"{event.stage}: {event.done} of {event.total}")
        elif isinstance(event, Warned):
            self.warnings.append(event.text)
        elif isinstance(event, Resumed):
            self._show(event.step, event.steps, f"Going on after step {event.step}")
        elif isinstance(event, Previewed):
            self.previews.extend(event.images.cpu())
            self.token_maps = event.token_maps
            if event.leakages:
                self.leakages.append(event.leakages)
            self._show(event.step, self.phases[-1], preview=self.picture(self.phases[-1]))
        elif isinstance(event, Stepped):
            self._stepped(event)

    def say(self, text: str) -> None:
        """Show a text under the node, below the warnings."""
        show_text("\n".join([*(f"Note: {warning}" for warning in self.warnings), text]), self.node)

    def _show(self, done: int, total: int, text: str = "", preview: Image | None = None) -> None:
        if self._bar.total != total:
            self._bar = Progress(total, self.node)
        self._bar.update(done, preview=preview)
        if text:
            self.say(text)

    def _stepped(self, event: Stepped) -> None:
        self._recent = [*self._recent[-49:], event.seconds]
        pace = len(self._recent) / max(sum(self._recent), 1e-9)
        now = time.monotonic()
        if now - self._drawn < REDRAW and event.step < event.steps:
            self._show(event.step, event.steps)
            return
        self._drawn = now
        losses = ", ".join(f"{name} {value:.3f}" for name, value in event.losses.items())
        text = (
            f"{event.phase}: step {event.step} of {event.steps}, {pace:.2f} it/s, "
            f"{_clock((event.steps - event.step) / pace)} left\n{losses}"
        )
        if self.leakages:
            text += f"\nleakage: {_shares(self.leakages[-1])}"
        self._show(event.step, event.steps, text, self.picture(event.steps))

    def curves(self, steps: int) -> Image:
        """The loss curves so far, as a Pillow image."""
        return loss_curves(self.history, steps, phases=self.phases[:-1])

    def picture(self, steps: int) -> Image:
        """The loss curves; beside them the newest preview, and where the tokens look."""
        shown = self.curves(steps)
        if self.previews:
            shown = side_by_side(shown, to_pil(self.previews[-1]))
        if self.token_maps:
            shown = side_by_side(shown, grid(self.token_maps))
        return shown

    def report(self, adapter: Adapter, remarks: Sequence[str] = ()) -> str:
        """What was trained, and what the user should know."""
        last = self.history[-20:]
        names = sorted({name for losses in last for name in losses})
        means = {
            name: sum(values) / len(values)
            for name in names
            if (values := [losses[name] for losses in last if name in losses])
        }
        tokens = ", ".join(f"embedding:{concept.name}" for concept in adapter.concepts)
        return "\n".join(
            [
                f"Trained {len(self.history)} steps of {adapter.recipe.name}: {tokens}.",
                "Last losses: " + ", ".join(f"{n} {value:.4f}" for n, value in means.items()),
                *self._leakage_report(),
                *(f"Note: {text}" for text in (*self.warnings, *remarks)),
            ]
        )

    def _leakage_report(self) -> list[str]:
        """How the leakage of the tokens changed over the run, where previews showed it."""
        if not self.leakages:
            return []
        first, last = _shares(self.leakages[0]), _shares(self.leakages[-1])
        return [f"Leakage at the first preview: {first}; at the last: {last}."]


def _shares(leakages: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {share:.0%}" for name, share in leakages.items())


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
