"""What may be asked for on the command line."""

from __future__ import annotations

import argparse

from ..version import __version__
from . import (
    batch,
    bench,
    card,
    demo,
    doctor,
    evaluate,
    identity,
    labels,
    masks,
    models,
    plan,
    recipe,
    sample,
    train,
)
from .options import Parser


def parser() -> argparse.ArgumentParser:
    """The parser; what it returns holds the command to run as `run`."""
    root = Parser(
        prog="magicapture",
        description="A person's face in a portrait's style, learned from a few photos of each.",
    )
    root.add_argument("--version", action="version", version=f"magicapture {__version__}")
    commands = root.add_subparsers(required=True, metavar="COMMAND")
    for command, add_options in (
        (demo.demo, demo.add_options),
        (train.train, train.add_options),
        (plan.plan, plan.add_options),
        (batch.batch, batch.add_options),
        (sample.sample, sample.add_options),
        (card.card, card.add_options),
        (masks.masks, masks.add_options),
        (doctor.doctor, doctor.add_options),
        (labels.labels, labels.add_options),
        (identity.identity, identity.add_options),
        (evaluate.evaluate, evaluate.add_options),
        (bench.bench, bench.add_options),
        (models.models, models.add_options),
        (recipe.recipes, recipe.add_options),
    ):
        help = command.__doc__ or ""
        one = commands.add_parser(command.__name__, help=help, description=help)
        add_options(one)
        one.add_argument("--verbose", action="store_true", help="Show where an error arose.")
        one.set_defaults(run=command)
    return root
