"""The columns of a report: what each says, and how it is read off a trial's line."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ..metrics import Interval, Metric, bootstrap

Lines = Sequence[Mapping[str, Any]]


class Column(NamedTuple):
    """A column and its value in a line; None where the line has none."""

    metric: Metric
    value: Callable[[Mapping[str, Any]], float | None]


def _scored(name: str) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda line: _mean(line.get("scores", {}).get(name))


def _edited(name: str) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda line: _mean([_mean(edit["scores"][name]) for edit in line.get("edits", ())])


def _cost(name: str) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda line: line.get("cost", {}).get(name)


def _mean(values: Sequence[float | None] | None) -> float | None:
    known = [value for value in values or () if value is not None]
    return statistics.fmean(known) if known else None


COLUMNS = (
    Column(
        Metric(
            "identity",
            help="Mean cosine of the picture's face to the person's training photos, as a share of "
            "those photos' own (each to the others), by the judge: a face recognition model that "
            "no training used. 1 is as alike as another photo, 0 a stranger, and no face counts 0.",
            low=None,
            better="higher",
            place="headline",
        ),
        _scored("identity"),
    ),
    Column(
        Metric(
            "style",
            help="The same for the style's portraits: cosine of means and spreads of the channels "
            "that the base model's autoencoder sees off the face, relative to all pictures trained "
            "on here. Textures, media and colours count, not what is where; it depends on the set.",
            low=None,
            better="higher",
            place="headline",
        ),
        _scored("style"),
    ),
    Column(
        Metric(
            "both",
            help="The harmonic mean of identity and style, each cut to 0..1, picture by picture.",
            high=1.0,
            better="higher",
            place="headline",
        ),
        _scored("both"),
    ),
    Column(
        Metric(
            "portraits",
            help="Highest cosine to a face in the style's portraits, as a share of the person's "
            "own: how much of the style's people is in the face.",
            title="like the portraits' people",
            low=None,
            better="lower",
            place="table",
        ),
        _scored("portraits"),
    ),
    Column(
        Metric(
            "collapse",
            help="Share of pictures without a face, or no more like the person, or the style, than "
            "95 % of the set's pictures without it are.",
            high=1.0,
            better="lower",
            place="table",
        ),
        _scored("collapse"),
    ),
    Column(
        Metric(
            "copies",
            help="Share of pictures nearer to a training picture, or its mirror image, than half "
            "of what any two of them come to each other (mean difference at 32 x 32).",
            high=1.0,
            better="lower",
            place="table",
        ),
        _scored("copies"),
    ),
    Column(
        Metric(
            "faces",
            help="Share of pictures in which a face is found.",
            title="faces found",
            high=1.0,
            better="higher",
            place="table",
        ),
        _scored("faces"),
    ),
    Column(
        Metric(
            "identity_edited",
            help="Identity of the pictures drawn with an edit.",
            title="identity, edited",
            low=None,
            better="higher",
            place="table",
        ),
        _edited("identity"),
    ),
    Column(
        Metric(
            "obedience",
            help="How much nearer, by CLIP, an edit's words bring pictures to a text with them, as "
            "a share of what they do without any training. Needs --clip.",
            title="obeys edits",
            low=None,
            better="higher",
            place="table",
        ),
        lambda line: _mean([edit["obedience"] for edit in line.get("edits", ())]),
    ),
    Column(
        Metric(
            "style_clip",
            help="Style by CLIP's picture embeddings, faces and all. Needs --clip.",
            title="style by CLIP",
            low=None,
            better="higher",
            place="table",
        ),
        _scored("style_clip"),
    ),
    Column(
        Metric("step_seconds", help="Median of all steps.", title="a step", unit="s"),
        _cost("step_seconds"),
    ),
    Column(
        Metric(
            "train_seconds",
            help="Preparation included; unknown where a training was stopped and went on.",
            title="a training",
            unit="s",
        ),
        _cost("train_seconds"),
    ),
    Column(
        Metric("picture_seconds", help="Without an edit.", title="a picture", unit="s"),
        _cost("picture_seconds"),
    ),
    Column(
        Metric(
            "train_gpu_mib",
            help="The most that PyTorch had allocated while training.",
            title="GPU, training",
            unit="MiB",
        ),
        _cost("train_gpu_mib"),
    ),
    Column(
        Metric("draw_gpu_mib", help="While drawing.", title="GPU, drawing", unit="MiB"),
        _cost("draw_gpu_mib"),
    ),
    Column(
        Metric(
            "train_process_mib",
            help="The most main memory that the program had while training.",
            title="memory, training",
            unit="MiB",
        ),
        _cost("train_process_mib"),
    ),
)
"""In the order of tables; those of place "file" are what it costs."""


def of_people(lines: Lines, column: Column) -> dict[int, float]:
    """The mean of a column over each person's lines that have it, by the person's number."""
    known: dict[int, list[float]] = {}
    for line in lines:
        if (value := column.value(line)) is not None:
            known.setdefault(line["person"], []).append(value)
    return {person: statistics.fmean(values) for person, values in sorted(known.items())}


def means(lines: Lines, column: Column) -> Interval | None:
    """The mean over people with its 95 % bootstrap interval; None where no line has the column."""
    values = of_people(lines, column)
    return bootstrap(list(values.values())) if values else None


def difference(lines: Lines, others: Lines, column: Column) -> Interval | None:
    """How much higher the column is in lines than in others, over the people that both have."""
    one, other = of_people(lines, column), of_people(others, column)
    both = [one[person] - other[person] for person in one if person in other]
    return bootstrap(both) if both else None
