"""Nodes that choose and tune a recipe."""

from __future__ import annotations

from dataclasses import replace

from comfy_api.latest import io

from ..magicapture.config import (
    IdentitySettings,
    LoraSettings,
    Rates,
    Recipe,
    RefocusSettings,
    Weights,
)
from ..magicapture.errors import InputError
from ..magicapture.recipes import (
    DEFAULT,
    RECIPE_NAMES,
    recipe,
    with_rates,
    with_steps,
    with_weights,
)
from ._inputs import choice, given, number
from ._node import Node, schema
from ._sockets import RecipeSocket

FACTORS = {"16x16 and 32x32": (2, 4), "16x16": (4,), "8x8 to 64x64": (1, 2, 4, 8)}


class MagiCaptureChooseRecipe(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Choose Recipe",
            "training",
            aliases="training settings, dreambooth, textual inversion, custom diffusion, "
            "preset, hyperparameters",
            description="The settings of a training: ours, the authors', or another method's.",
            inputs=[
                io.Combo.Input(
                    "name",
                    options=list(RECIPE_NAMES),
                    default=DEFAULT,
                    tooltip="magicapture: ours. paper, release: the authors'. The rest: other "
                    "methods, for comparison.",
                ),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=100_000,
                    tooltip="Steps in all; the phases keep their proportion. 0: the recipe's own.",
                ),
                number(LoraSettings, "rank"),
                number(Recipe, "resolution", step=64, high=2048),
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
        )

    @classmethod
    def execute(cls, name, steps, rank, resolution, rate_factor, save_memory) -> io.NodeOutput:
        chosen = with_rates(recipe(name), rate_factor)
        if steps:
            chosen = with_steps(chosen, steps)
        if resolution > 0:
            chosen = replace(chosen, resolution=resolution)
        if save_memory:
            chosen = replace(chosen, batching="in_turn", checkpointing=True)
        return io.NodeOutput(replace(chosen, lora=replace(chosen.lora, **given(rank=rank))))


class MagiCaptureTuneRecipe(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Tune Recipe",
            "training",
            aliases="training settings, learning rate, loss weight, lora rank, "
            "hyperparameters, batch size",
            description='Change single settings of a recipe; -1 and "recipe\'s own" leave them.',
            inputs=[
                RecipeSocket.Input("recipe"),
                number(Weights, "composed", id="composed_weight", step=0.05),
                number(Weights, "identity", id="identity_weight", step=0.05),
                number(Weights, "attention", id="attention_weight", step=0.001),
                choice(RefocusSettings, "scaling", id="attention_scaling", keep=True),
                io.Combo.Input(
                    "attention_maps",
                    options=["recipe's own", *FACTORS],
                    default="recipe's own",
                    tooltip="Size of the attention maps to look at, as it is for SD 1.5 at 512 px.",
                ),
                number(IdentitySettings, "max_timestep", id="identity_max_timestep", high=1000),
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
                    options=["recipe's own", "on", "off"],
                    default="recipe's own",
                    tooltip="off trains on whole pictures and needs no masks; attention refocusing "
                    "is then off as well.",
                ),
            ],
            outputs=[RecipeSocket.Output(display_name="recipe")],
        )

    @classmethod
    def execute(
        cls,
        recipe,
        composed_weight,
        identity_weight,
        attention_weight,
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
        tuned = replace(recipe, **given(**settings))
        tuned = with_weights(
            tuned,
            **given(composed=composed_weight, identity=identity_weight, attention=attention_weight),
        )
        factors = FACTORS.get(attention_maps, -1)
        tuned = replace(
            tuned,
            lora=replace(tuned.lora, **given(targets=lora_targets, alpha=alpha)),
            refocus=replace(tuned.refocus, **given(scaling=attention_scaling, factors=factors)),
            identity=replace(tuned.identity, **given(max_timestep=identity_max_timestep)),
        )
        rates = given(tokens=token_rate, unet=unet_rate, text_encoder=text_encoder_rate)
        phases = tuple(_with_rates(phase, rates) for phase in tuned.phases)
        tuned = replace(tuned, phases=phases)
        if masks == "off":
            tuned = with_weights(replace(tuned, masked=False), attention=0.0)
        elif masks == "on":
            tuned = replace(tuned, masked=True)
        if not tuned.steps:
            raise InputError("The recipe has no steps left to train.")
        return io.NodeOutput(tuned)


def _with_rates(phase, rates):
    """The phase with these rates; a phase of token vectors alone takes no other."""
    trained = {
        name: value
        for name, value in rates.items()
        if getattr(phase.rates, name) or (name == "text_encoder" and phase.rates.unet)
    }
    return replace(phase, rates=replace(phase.rates, **trained))
