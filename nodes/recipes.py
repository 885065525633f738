"""Nodes that choose, load and tune a recipe."""

from __future__ import annotations

from dataclasses import replace

from comfy_api.latest import io

from ..magicapture.config import (
    LoraSettings,
    Rates,
    Recipe,
    RefocusSettings,
)
from ..magicapture.errors import InputError
from ..magicapture.losses import LOSSES
from ..magicapture.recipes import (
    DEFAULT,
    RECIPE_NAMES,
    changed,
    check,
    comment_of,
    parse_changes,
    read_recipe,
    recipe,
    with_rate,
    with_rates,
    with_steps,
    with_weights,
    without_masks,
)
from ._comfy import node_id, show_text
from ._comfy.files import RECIPES, recipe_names, recipe_path, stamp
from ._inputs import KEEP, choice, given, number, weight
from ._node import Node, refusal, schema
from ._sockets import RecipeSocket

NO_FILE = f"(none: put .json files into models/{RECIPES})"
FIRST_LOSSES = ("source", "style", "composed", "prior", "attention", "identity", "token_norm")
"""Their weights come first; those of losses that came later stand at the end, so that the values
in saved workflows keep their places."""

FACTORS = {"16x16 and 32x32": (2, 4), "16x16": (4,), "8x8 to 64x64": (1, 2, 4, 8)}


def _sizes(recipe: Recipe) -> str:
    """What 0 and -1 stand for: "1,400 steps, rank 16", and the pictures' size where it has one."""
    steps = sum(phase.steps for phase in recipe.phases)
    size = f", {recipe.resolution} px" if recipe.resolution else ""
    return f"{steps:,} steps, rank {recipe.lora.rank}{size}"


class MagiCaptureChooseRecipe(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Choose Recipe",
            "training",
            aliases="training settings, dreambooth, textual inversion, custom diffusion, preset, "
            "hyperparameters",
            description="How to train. The defaults are ours; paper and release are the authors', "
            "and textual-inversion, dreambooth and custom-diffusion the usual methods, for "
            "comparison.",
            inputs=[
                io.Combo.Input(
                    "name",
                    options=list(RECIPE_NAMES),
                    default=DEFAULT,
                    tooltip="\n".join(
                        f"{name} ({_sizes(recipe(name))}): {comment_of(name)}"
                        for name in RECIPE_NAMES
                    ),
                ),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=100_000,
                    tooltip="Steps in all; the phases keep their proportion. 0: the recipe's own.",
                ),
                number(LoraSettings, "rank"),
                number(Recipe, "resolution"),  # a step of 64 from -1 would make 512 a 511
                io.Float.Input(
                    "rate_factor",
                    default=1.0,
                    min=0.01,
                    max=100.0,
                    step=0.01,
                    tooltip="Multiplies every learning rate of the recipe.",
                ),
                io.Boolean.Input(
                    "save_memory",
                    default=False,
                    tooltip="One task after another and activations recomputed: the same result, "
                    "slower, in the least memory.",
                ),
            ],
            outputs=[RecipeSocket.Output(display_name="recipe")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, name, steps, rank, resolution, rate_factor, save_memory) -> io.NodeOutput:
        chosen = with_rates(recipe(name), rate_factor)
        if steps:
            chosen = with_steps(chosen, steps)
        if save_memory:
            chosen = replace(chosen, batching="in_turn", checkpointing=True)
        changes = given(**{"lora.rank": rank, "resolution": resolution})
        chosen = changed(chosen, changes)
        show_text(f"{name}: {_sizes(chosen)}", node_id(cls))
        return io.NodeOutput(chosen)


class MagiCaptureLoadRecipe(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Load Recipe",
            "training",
            aliases="training config, recipe file, json, preset",
            description="A recipe of your own from a file, with every setting that there is.",
            inputs=[
                io.Combo.Input(
                    "file",
                    options=recipe_names() or [NO_FILE],
                    tooltip=f"A .json file in models/{RECIPES}. `magicapture recipes NAME` prints "
                    "one to start from; what a file leaves out takes its default.",
                ),
                io.String.Input(
                    "changes",
                    multiline=True,
                    default="",
                    optional=True,
                    tooltip="Other values for some settings, one a line: lora.rank=16, "
                    "phases[1].weights.identity=0.25 or phases[*].schedule=linear. Lines that "
                    "begin with # are skipped.",
                ),
            ],
            outputs=[RecipeSocket.Output(display_name="recipe")],
        )

    @classmethod
    def execute(cls, file, changes="") -> io.NodeOutput:
        if file == NO_FILE:
            raise InputError(f"There is no recipe file; put one into models/{RECIPES}.")
        loaded = read_recipe(recipe_path(file))
        loaded = changed(loaded, parse_changes(changes.splitlines()))
        check(loaded)
        return io.NodeOutput(loaded)

    @classmethod
    def validate_inputs(cls, file=None) -> bool | str:
        """Instead of "Value not in list", what to do."""
        return file == NO_FILE or refusal(recipe_path, file)

    @classmethod
    def fingerprint_inputs(cls, file, changes="") -> str:
        """Look again when the file has changed."""
        return "" if file == NO_FILE else stamp(recipe_path(file))


class MagiCaptureTuneRecipe(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Tune Recipe",
            "training",
            aliases="training settings, learning rate, loss weight, lora rank, hyperparameters, "
            "batch size",
            description=f'Change single settings of a recipe; -1 and "{KEEP}" leave them.',
            inputs=[
                RecipeSocket.Input("recipe"),
                *(weight(LOSSES[name]) for name in FIRST_LOSSES),
                choice(RefocusSettings, "scaling", id="attention_scaling", keep=True),
                io.Combo.Input(
                    "attention_maps",
                    options=[KEEP, *FACTORS],
                    default=KEEP,
                    tooltip="Size of the attention maps to look at, as it is for SD 1.5 at 512 px.",
                ),
                io.Int.Input(
                    "identity_max_timestep",
                    default=-1,
                    min=-1,
                    max=1000,
                    tooltip="T' as a timestep of Stable Diffusion: the identity loss acts under "
                    "weaker noise alone, since above x0 is too blurred to hold a face. The recipe "
                    "keeps it as a signal-to-noise ratio, identity.min_snr. (Release: 800.) -1 "
                    "keeps the recipe's own.",
                ),
                number(Rates, "tokens", id="token_rate", step=1e-5),
                number(Rates, "unet", id="unet_rate", step=1e-5),
                number(Rates, "text_encoder", id="text_encoder_rate", step=1e-5),
                choice(LoraSettings, "targets", id="lora_targets", keep=True),
                number(LoraSettings, "alpha", step=0.5, high=512),
                choice(Recipe, "batching", keep=True),
                number(Recipe, "accumulation", high=64),
                choice(Recipe, "precision", keep=True),
                choice(Recipe, "optimizer", keep=True),
                number(Recipe, "variants", high=200),
                number(Recipe, "jitter", step=0.01),
                number(Recipe, "zoom", step=0.01),
                number(Recipe, "min_images", high=100),
                io.Combo.Input(
                    "masks",
                    options=[KEEP, "on", "off"],
                    default=KEEP,
                    tooltip="off trains on whole pictures and needs no masks; attention refocusing "
                    "is then off as well.",
                ),
                choice(Recipe, "pseudo_label", keep=True),
                *(weight(loss) for name, loss in LOSSES.items() if name not in FIRST_LOSSES),
            ],
            outputs=[RecipeSocket.Output(display_name="recipe")],
        )

    @classmethod
    def execute(
        cls,
        recipe,
        attention_scaling,
        attention_maps,
        identity_max_timestep,
        token_rate,
        unet_rate,
        text_encoder_rate,
        lora_targets,
        alpha,
        masks,
        **settings,
    ) -> io.NodeOutput:
        weights = {name: settings.pop(f"{name}_weight", KEEP) for name in LOSSES}
        changes = {
            "lora.targets": lora_targets,
            "lora.alpha": alpha,
            "refocus.scaling": attention_scaling,
            "refocus.factors": FACTORS.get(attention_maps, KEEP),
            "identity.max_timestep": identity_max_timestep,
            **settings,
        }
        tuned = with_weights(changed(recipe, given(**changes)), **given(**weights))
        # The UNet's before the text encoder's, which goes where the UNet is trained.
        rates = {"tokens": token_rate, "unet": unet_rate, "text_encoder": text_encoder_rate}
        for group, rate in given(**rates).items():
            tuned = with_rate(tuned, group, rate)
        if masks == "off":
            if weights["attention"] not in (KEEP, -1, 0):
                raise InputError(
                    "attention_weight needs masks, and masks is off; set one of them otherwise."
                )
            tuned = without_masks(tuned)
        elif masks == "on":
            tuned = replace(tuned, masked=True)
        return io.NodeOutput(tuned)
