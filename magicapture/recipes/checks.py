"""The look at a recipe before anything is loaded: what cannot train stops here, by its path."""

from __future__ import annotations

from collections.abc import Iterator

from ..config import Phase, Recipe, Task
from ..errors import InputError
from ..losses import LOSSES, tasks_of

_CELL = 8  # pixels to a side of Stable Diffusion's latent cells


def check(recipe: Recipe, *, vectors: bool = True) -> tuple[str, ...]:
    """Return what the user should know of a recipe; raises InputError for one that cannot train.

    vectors: whether the subject has any, or else is spelled.
    """
    problems = list(_problems(recipe))
    if problems:
        start = f"The recipe {recipe.name!r} cannot be trained:"
        if len(problems) == 1:
            raise InputError(f"{start} {problems[0]}")
        raise InputError("\n".join([start, *(f"- {problem}" for problem in problems)]))
    return tuple(_warnings(recipe, vectors))


def _problems(recipe: Recipe) -> Iterator[str]:
    if not recipe.steps:
        yield "phases: it has no steps to train; give it a phase with steps."
    if recipe.side % _CELL:
        yield f"resolution: expected a multiple of {_CELL}, got {recipe.side}."
    if recipe.uses("identity") and "prior" in recipe.identity.tasks:
        yield "identity.tasks: class images show other people; expected source or composed."
    if _runs("prior", recipe) and not recipe.prior.images:
        yield (
            "prior.images: expected 1 or more, since the loss prior has a weight; 200 is usual, or "
            "set that weight to 0."
        )
    for path, phase in _running(recipe):
        yield from _phase_problems(path, phase, recipe)


def _phase_problems(path: str, phase: Phase, recipe: Recipe) -> Iterator[str]:
    rates, weights = phase.rates, phase.weights
    if not (rates.tokens or rates.unet or rates.text_encoder):
        yield f"{path}.rates: every learning rate is 0, so nothing is trained; set one."
        return
    if not tasks_of(phase, recipe):
        yield (
            f"{path}.weights: no loss looks at a picture; give source, style, composed, prior or "
            "identity a weight."
        )
    if weights.prior and not (rates.unet or rates.text_encoder):
        yield (
            f"{path}.weights.prior: class images hold no token and teach nothing while the tokens "
            "alone are trained; set it to 0."
        )
    yield from _subject_problems(path, phase, recipe)
    if weights.token_norm and not rates.tokens:
        yield f"{path}.weights.token_norm: the tokens are not trained here; set it to 0."


def _subject_problems(path: str, phase: Phase, recipe: Recipe) -> Iterator[str]:
    """Losses of a person where a thing is learned, and the reverse."""
    if recipe.subject_is == "person":
        unfit = [name for name, loss in LOSSES.items() if "dino" in loss.needs]
        why = "compares a thing with its photo: set subject_is to thing, or this weight to 0."
    else:
        unfit = ["composed", "identity", "words"]
        why = (
            "asks for portraits and faces, and a thing has none: DINO's losses take its place. Set "
            "it to 0, or subject_is to person."
        )
    for name in unfit:
        if phase.weights[name]:
            yield f"{path}.weights.{name} {why}"


def _warnings(recipe: Recipe, vectors: bool) -> Iterator[str]:
    phases = list(_running(recipe))
    for path, phase in phases:
        if phase.weights.attention and not set(recipe.refocus.tasks).intersection(
            tasks_of(phase, recipe)
        ):
            tasks = ", ".join(recipe.refocus.tasks)
            yield (
                f"{path}.weights.attention does nothing: it looks at {tasks} (refocus.tasks), "
                "which no loss of the phase calls for."
            )
        if phase.warmup >= phase.steps:
            yield (
                f"{path}.warmup: the learning rates rise over {phase.warmup} steps, and the phase "
                f"has {phase.steps}, so they are never reached."
            )
    if recipe.uses("identity") and "style" in recipe.identity.tasks:
        yield "identity.tasks: with style, the people of its portraits get the person's face too."
    still = vectors and not any(phase.rates.tokens for _, phase in phases)
    if still and recipe.subject_init == "class word":
        yield (
            "subject_init: the subject's token starts from its class word and is not trained, so "
            "prompts say that word twice, unless the concept starts from something else; random "
            "gives it a meaning of its own."
        )


def _running(recipe: Recipe) -> Iterator[tuple[str, Phase]]:
    """The phases that have steps, by path."""
    for index, phase in enumerate(recipe.phases):
        if phase.steps:
            yield f"phases[{index}]", phase


def _runs(task: Task, recipe: Recipe) -> bool:
    return any(task in tasks_of(phase, recipe) for _, phase in _running(recipe))
