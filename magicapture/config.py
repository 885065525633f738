"""Every setting of a training run, as frozen dataclasses whose fields carry their own help.

A node's tooltip, the command line's help and the documentation read `help_of`; a default exists
here alone. P is the paper (arXiv 2309.06895), C the authors' release.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from .families import FAMILIES
from .loss import LOSSES, Weights
from .older import current
from .schedule import at_side
from .sentences import check_sentence
from .settings import Checked, from_dict, help_of, refuse, setting, to_dict

__all__ = [
    "Batching",
    "Checked",
    "DinoSettings",
    "IdentitySettings",
    "Kept",
    "LabelSettings",
    "LoraSettings",
    "LoraTargets",
    "OptimizerName",
    "Phase",
    "Precision",
    "PriorSettings",
    "PromptTemplates",
    "PseudoLabel",
    "RateSchedule",
    "Rates",
    "Recipe",
    "RefocusSettings",
    "Role",
    "Scaling",
    "SubjectInit",
    "SubjectIs",
    "Task",
    "Weighting",
    "Weights",
    "WordsSettings",
    "from_dict",
    "help_of",
    "setting",
    "to_dict",
]

Role = Literal["subject", "style"]
Task = Literal["source", "style", "composed", "prior", "words", "unconditional"]
Scaling = Literal["minmax", "max", "mean", "none", "share"]
LoraTargets = Literal["cross", "cross_kv", "cross_and_self", "all_linear"]
Weighting = Literal["none", "min_snr", "v"]
PseudoLabel = Literal["portrait", "face_laid_in"]
Batching = Literal["together", "in_turn", "one_task"]
Precision = Literal["model", "fp32", "bf16", "fp16"]
RateSchedule = Literal["constant", "linear", "cosine"]
OptimizerName = Literal["adamw", "adamw_8bit"]
SubjectInit = Literal["class word", "random"]
SubjectIs = Literal["person", "thing"]
Kept = Literal["change", "answer"]
Networks = Literal["transformers", "all"]

AUTO, FIXED = "auto", "fixed"
"""What `RefocusSettings.blocks` says beside names."""


def _sentence(
    *, holds: tuple[str, ...] = (), lacks: tuple[str, ...] = ()
) -> Callable[[str, str], None]:
    """The check of a task's sentences: the tokens they must have, and must not have."""
    return lambda sentence, path: check_sentence(sentence, path, holds, lacks)


def _check_blocks(value: str, path: str) -> None:
    if not value.replace(",", " ").strip():
        refuse(path, f"{AUTO}, {FIXED} or names of blocks", value)


@dataclass(frozen=True)
class LoraSettings(Checked):
    """The low-rank update of the UNet and, where a phase trains it, of the text encoder."""

    rank: int = setting(16, "Rank of the LoRA.", low=1, high=512, release=4)
    alpha: float | None = setting(
        None,
        "Scale of the LoRA is alpha / rank; empty makes alpha equal to the rank.",
        low=0.01,
        high=10_000,
    )
    targets: LoraTargets = setting(
        "cross",
        "Layers that get a LoRA: cross (every projection of cross-attention), cross_kv (its keys "
        "and values), cross_and_self (both kinds of attention), all_linear (attention and "
        "feed-forward).",
        paper="cross",
        release="all_linear",
    )

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


@dataclass(frozen=True)
class RefocusSettings(Checked):
    """Attention Refocusing (P eq. 8): where and how a token's attention is measured."""

    scaling: Scaling = setting(
        "mean",
        "How a map is scaled before the mask is applied: minmax (P's S, subtracts the floor), max "
        "(divides by the peak alone, so that a uniform floor still counts), mean (divides by the "
        "mean, with its gradient, so that attention is moved rather than given up; not bounded: a "
        "single peak outside the mask can outweigh all other losses), none (the attention's own "
        "values), share (the part of all the token's attention that is outside, 0 to 1, not "
        "squared: bounded, and likewise nothing is gained by giving attention up).",
        paper="minmax",
        release="minmax",
    )
    factors: tuple[int, ...] = setting(
        (2, 4),
        "Layers to look at, by how many latent cells a side one query of the map covers: 4 is "
        "16x16 for SD 1.5 at 512 px.",
        low=1,
        release=(4,),
    )
    middle: bool = setting(False, "Take the UNet's middle block as well.", release=False)
    blocks: str = setting(
        FIXED,
        "Blocks of a transformer to look at: fixed (those that keep words and picture apart, "
        "Flux's double ones), auto (those whose map of the class word agrees best with the faces "
        "in the person's photos, measured before step 1), or names with commas between, such as "
        "double_blocks.2, single_blocks.0. It has no effect on a UNet, whose layers are chosen by "
        "factors.",
        check=_check_blocks,
    )
    map_size: int | None = setting(
        None,
        "Enlarge every map to this many cells a side before comparing it with the mask; empty "
        "brings the mask to the map's own size.",
        low=8,
        high=512,
        release=64,
    )
    tasks: tuple[Task, ...] = setting(
        ("source", "style", "composed"),
        "Tasks whose attention is refocused.",
        paper="all three",
        release="all three",
    )


@dataclass(frozen=True)
class IdentitySettings(Checked):
    """The identity loss (P eq. 7): when it acts and how x0 is shown to the face embedder."""

    min_snr: float = setting(
        0.383,
        "T' as a signal-to-noise ratio: the loss acts where it is at least this. Below, x0 is too "
        "blurred to hold a face. Stated for 512 px, and scaled by (512 / side)^2. In Stable "
        "Diffusion 0.383 is t < 500 and 0.0385 t < 800; 0 is every t.",
        low=0,
        release="0.0385, its T' of 800",
    )
    separate_pass: bool = setting(
        False,
        "Draw a timestep for this loss apart and run the UNet once more, instead of sharing the "
        "composed task's pass. Costs about a third of a step.",
        release=True,
    )
    tasks: tuple[Task, ...] = setting(
        ("composed",), "Tasks the loss acts on.", paper="composed", release="composed and source"
    )
    weight_by_signal: bool = setting(
        True,
        "Multiply the loss by SNR / (1 + SNR), abar_t in Stable Diffusion, so that sharper "
        "estimates count more.",
    )
    colour_blind: bool = setting(
        False,
        "Show the face recognition model greys alone, so that a face in sepia or in charcoal is "
        "not asked for the colours of the photos.",
        paper=False,
        release=False,
    )
    straight_through: bool = setting(
        True, "Clamp x0 to 0..1 without cutting its gradient.", release=False
    )
    mean_target: bool = setting(
        True,
        "Compare with the mean embedding of all source photos instead of with each photo (the mean "
        "of those losses).",
        release=False,
    )


@dataclass(frozen=True)
class DinoSettings(Checked):
    """The losses that look at a thing through DINO (P, supplement): when they act."""

    min_snr: float = setting(
        0.383,
        "The losses act where the signal-to-noise ratio is at least this, since below x0 is too "
        "blurred to hold a thing. Stated for 512 px, as identity.min_snr.",
        low=0,
    )
    weight_by_signal: bool = setting(
        True, "Multiply the losses by SNR / (1 + SNR), so that sharper estimates count more."
    )


@dataclass(frozen=True)
class PriorSettings(Checked):
    """Prior preservation: class images that the base model makes itself before training."""

    images: int = setting(
        0, "How many class images to make; 0 trains without a prior.", low=0, high=2000
    )
    steps: int = setting(30, "Denoising steps for each class image.", low=1, high=1000)
    guidance: float = setting(7.5, "Guidance scale for the class images.", low=1, high=30)


@dataclass(frozen=True)
class UnconditionalSettings(Checked):
    """Where and how often the loss that keeps the empty prompt's answer looks."""

    networks: Networks = setting(
        "transformers",
        "Base models that it acts on: transformers (what is learned shows there for the empty "
        "prompt too, and guidance leads away from it; a UNet on dolls gained nothing), all.",
    )
    every: int = setting(
        2, "Look once in this many steps; the loss then counts as many times.", low=1, high=100
    )


@dataclass(frozen=True)
class WordsSettings(Checked):
    """What the words loss keeps of what further words in a prompt do."""

    kept: Kept = setting(
        "change",
        "change: words move the composed prompt's answer as they move the base model's answer to "
        "the class prompt; answer: the base model's answers to class prompts with words are kept "
        "(differential output preservation).",
    )
    every: int = setting(
        2, "Look once in this many steps; the loss then counts as many times.", low=1, high=100
    )
    edits: tuple[str, ...] = setting(
        (
            "wearing a hat",
            "wearing sunglasses",
            "wearing a red jacket",
            "with short hair",
            "with long hair",
            "with a moustache",
            "laughing",
            "with closed eyes",
            "looking to the side",
            "on a beach",
            "in a forest",
            "in the snow",
            "in a city street at night",
            "in front of a brick wall",
            "under water",
            "in the rain",
            "holding flowers",
            "holding a cat",
        ),
        "Words put behind the prompt, one of these a look; they hold no token.",
        check=_sentence(lacks=("subject", "style")),
    )


@dataclass(frozen=True)
class LabelSettings(Checked):
    """The pseudo-labels that show the person's face in the portraits: of which photos, and what
    of them is taught."""

    photos: int = setting(
        6, "How many photos at most are laid into each portrait, the nearest first.", low=1
    )
    nearness: float = setting(
        0.2,
        "How far a photo's pose may be from the portrait's: the distance of their aligned "
        "landmarks, in distances between the eyes. A portrait without a near photo keeps its own "
        "face, which is then not taught.",
        low=0,
        high=10,
    )
    seam: float = setting(
        2.0,
        "Width of the band along the laid-in face's edge that is not taught, in latent cells.",
        low=0,
        high=32,
    )
    max_snr: float | None = setting(
        None,
        "The label's face is taught where the signal-to-noise ratio is below this alone, where "
        "noise hides what is left to see of the laying in; under weaker noise the identity loss "
        "draws it. Stated for 512 px, as identity.min_snr; empty teaches it at all levels.",
        low=0,
    )


@dataclass(frozen=True)
class PromptTemplates(Checked):
    """Sentences for each task; one is drawn a step. {subject} and {style} are the tokens,
    {noun} the subject's class word.

    The same sentences serve at inference, so that nothing is asked for in words never trained on.
    """

    source: tuple[str, ...] = setting(
        (
            "a photo of {subject} {noun}",
            "a portrait of {subject} {noun}",
            "a close-up photo of {subject} {noun}",
            "a cropped photo of {subject} {noun}",
            "a photo of the {subject} {noun}",
        ),
        "Sentences for the person's photos; each holds {subject}.",
        check=_sentence(holds=("subject",), lacks=("style",)),
        paper="a photo of [V1] person",
    )
    style: tuple[str, ...] = setting(
        (
            "a photo of a {noun} in the {style} style",
            "a portrait of a {noun} in the {style} style",
            "a close-up photo of a {noun} in the {style} style",
            "a cropped photo of a {noun} in the {style} style",
            "a photo of the {noun} in the {style} style",
        ),
        "Sentences for the style's portraits; each holds {style}.",
        check=_sentence(holds=("style",), lacks=("subject",)),
        paper="a photo of a person in the [V2] style",
    )
    composed: tuple[str, ...] = setting(
        (
            "a photo of {subject} {noun} in the {style} style",
            "a portrait of {subject} {noun} in the {style} style",
            "a close-up photo of {subject} {noun} in the {style} style",
            "a cropped photo of {subject} {noun} in the {style} style",
            "a photo of the {subject} {noun} in the {style} style",
        ),
        "Sentences for the person in the style; each holds {subject} and {style}.",
        check=_sentence(holds=("subject", "style")),
        paper="a photo of a [V1] person in the [V2] style",
    )
    prior: tuple[str, ...] = setting(
        ("a photo of a {noun}",),
        "Sentences for class images; none holds a token.",
        check=_sentence(lacks=("subject", "style")),
    )


@dataclass(frozen=True)
class Rates(Checked):
    """Learning rates; 0 leaves the group as it is."""

    tokens: float = setting(0.0, "Learning rate of the token vectors.", low=0, high=1)
    unet: float = setting(0.0, "Learning rate of the UNet's LoRA.", low=0, high=1)
    text_encoder: float = setting(0.0, "Learning rate of the text encoder's LoRA.", low=0, high=1)


@dataclass(frozen=True)
class Phase(Checked):
    """One stretch of training: what moves, by which losses, for how long."""

    name: str = setting("phase", "Name shown while it runs.")
    steps: int = setting(500, "Optimiser steps.", low=0, high=100_000)
    rates: Rates = setting(Rates(tokens=5e-4), "Learning rates, by what they move.")
    weights: Weights = setting(Weights(), "Weights of the losses.")
    schedule: RateSchedule = setting("constant", "Course of the learning rates.", release="linear")
    warmup: int = setting(
        0, "Steps over which the learning rates rise from 0.", low=0, high=100_000
    )
    share: float = setting(
        1.0,
        "Share of the noise levels that are drawn, from the weakest: 0.8 is t < 800 of 1000.",
        low=0.001,
        high=1,
        release="0.8 in phase 2",
    )
    max_grad_norm: float | None = setting(
        1.0, "Gradients are scaled down to this norm; empty leaves them.", low=1e-6, release=1.0
    )
    boost: float = setting(
        1.0,
        "Factor on the weights of the boosted tasks in the first half of the phase.",
        low=0,
        release=2.0,
    )
    boosted: tuple[Task, ...] = setting(
        ("style",), "Tasks whose weight is boosted.", release="style and composed"
    )


@dataclass(frozen=True)
class Recipe(Checked):
    """Everything a run needs beside the photos, the concepts and the base model."""

    name: str = setting("unnamed", "Name of the recipe.")
    phases: tuple[Phase, ...] = setting((), "The phases, in order.")
    lora: LoraSettings = setting(LoraSettings(), "The LoRA.")
    refocus: RefocusSettings = setting(RefocusSettings(), "Attention Refocusing.")
    identity: IdentitySettings = setting(IdentitySettings(), "The identity loss.")
    dino: DinoSettings = setting(DinoSettings(), "The losses of a thing, through DINO.")
    prior: PriorSettings = setting(PriorSettings(), "Prior preservation.")
    words: WordsSettings = setting(WordsSettings(), "What further words in a prompt do.")
    unconditional: UnconditionalSettings = setting(
        UnconditionalSettings(), "What is kept of the empty prompt."
    )
    labels: LabelSettings = setting(LabelSettings(), "Labels with the person's face laid in.")
    prompts: PromptTemplates = setting(PromptTemplates(), "Prompt templates.")
    subject_is: SubjectIs = setting(
        "person",
        "person: masks mark faces, and a style's portraits are learned outside theirs. thing: a "
        "pet, a toy, a bag; masks mark it in its own photos, a style's pictures are learned whole, "
        "and no face is looked for.",
    )
    masked: bool = setting(True, "Restrict each reconstruction to its concept's mask.")
    normalise_area: bool = setting(
        True, "Divide each masked loss by the mask's share of the picture.", release=True
    )
    pseudo_label: PseudoLabel = setting(
        "portrait",
        "What the composed task is shown: portrait (the style's portraits, supervised outside the "
        "face), face_laid_in (the same with the person's face laid in by its landmarks and "
        "coloured as the style's medium would, supervised but for its seam).",
        paper="portrait",
        release="portrait",
    )
    weighting: Weighting = setting(
        "none",
        "Weight of a reconstruction by its noise: none (every error in epsilon counts alike), "
        "min_snr (weak noise counts less), v (also strong noise more, as when v is predicted; "
        "for small models, which settle colour and composition there).",
        paper="none",
        release="none",
    )
    resolution: int | None = setting(
        None,
        "Side of the square training pictures, in pixels; empty is what the base model was made "
        "for: 1024 for XL, 512 for all others.",
        low=64,
        high=2048,
    )
    variants: int = setting(
        16,
        "Augmented variants (crop, flip, colour) kept of each photo, encoded once before step 1; "
        "0 makes and encodes one afresh at every step.",
        low=0,
        high=1000,
        release=1,
    )
    flip: bool = setting(
        False,
        "Mirror half of the augmented variants. A mole or a parting then changes sides.",
        paper=True,
        release=True,
    )
    jitter: float = setting(
        0.1, "Range of brightness and contrast changes.", low=0, high=1, release=0.1
    )
    zoom: float = setting(
        0.0,
        "Share of the picture that a random crop may cut away. Patterns of the style are then "
        "learned blurred.",
        low=0,
        high=0.9,
        paper=0,
        release=0,
    )
    batching: Batching = setting(
        "together",
        "together runs all tasks of a step in one batch; in_turn one after another, for small "
        "memory, with the same result; one_task draws a single task a step.",
        release="one_task",
    )
    accumulation: int = setting(
        1, "Batches whose gradients make one step.", low=1, high=1000, paper=4
    )
    precision: Precision = setting(
        "model", "Number format of the frozen model: its own, or fp32, bf16, fp16."
    )
    checkpointing: bool = setting(
        False, "Recompute activations in the backward pass: slower, less memory."
    )
    optimizer: OptimizerName = setting("adamw", "AdamW, or its 8-bit form from bitsandbytes.")
    weight_decay: float = setting(
        0.01, "AdamW's weight decay, for the LoRA.", low=0, high=10, release=0.001
    )
    subject_init: SubjectInit = setting(
        "class word",
        "What the subject's token starts from, where the concept does not say: its class word, or "
        "random numbers, for methods that leave the token as it is.",
    )
    min_images: int = setting(2, "Fewest photos a concept may have.", low=1, paper="4 to 6")

    @classmethod
    def read(cls, value: Any, path: str) -> Recipe:
        """As `Checked.read`, also of a recipe of an earlier version (`older.current`)."""
        return super().read(current(value), path)

    def snr(self, at_512_px: float) -> float:
        """An SNR that is stated for pictures of 512 px, at the recipe's resolution."""
        return at_side(at_512_px, self.side)

    @property
    def side(self) -> int:
        """The resolution; 512 where the base model is to say it and is not known yet."""
        return self.resolution or FAMILIES["sd1"].resolution

    def settings(self) -> dict[str, Any]:
        """All settings as plain data, for what tells recipes apart.

        A choice that came later is left out while it says what was done before there was it, so
        that runs and results from before still count.
        """
        found = to_dict(self)
        if self.refocus.blocks == FIXED:
            del found["refocus"]["blocks"]
        if not any(phase.weights.unconditional for phase in self.phases):
            del found["unconditional"]
            for phase in found["phases"]:
                del phase["weights"]["unconditional"]
        if self.subject_is == "person":  # without the losses of things, which refuse a person
            del found["subject_is"], found["dino"]
            for phase in found["phases"]:
                phase["weights"] = {
                    name: weight
                    for name, weight in phase["weights"].items()
                    if "dino" not in LOSSES[name].needs
                }
        return found

    def is_whole(self, role: Role) -> bool:
        """Whether a concept's pictures are learned whole and need no masks: a style of things."""
        return self.subject_is == "thing" and role == "style"

    @property
    def steps(self) -> int:
        """Optimiser steps of all phases."""
        return sum(phase.steps for phase in self.phases)

    def uses(self, loss: str) -> bool:
        """Whether any phase that runs gives this loss a weight."""
        return any(phase.weights[loss] > 0 for phase in self.phases if phase.steps)
