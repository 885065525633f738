"""Edits of the composed prompt: words for something that neither person nor style has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..metrics import METRICS, Metric
from . import Identity, Style
from .attributes import ATTRIBUTES, COLOURLESS


@dataclass(frozen=True)
class Edit:
    """Words behind a prompt, and what the probe reads off a picture that obeys them."""

    words: str
    attribute: str
    value: str

    @property
    def index(self) -> int:
        """The value's class among those of its attribute."""
        return ATTRIBUTES[self.attribute].index(self.value)


_SMILING, _CALM = (Edit(mood, "mood", mood) for mood in ("smiling", "calm"))


def _of_face(identity: Identity, style: Style) -> Edit:
    if identity.glasses == "none":
        return Edit("with round glasses", "glasses", "round")
    if identity.beard == "none":
        return Edit("with goatee", "beard", "goatee")
    return _SMILING


def _of_scene(identity: Identity, style: Style) -> Edit:
    """Media without colour are asked for another pattern of the background, not for a colour."""
    if style.medium in COLOURLESS:
        kind = "striped" if style.background != "striped" else "dotted"
        return Edit(f"on a {kind} black and white background", "background", kind)
    colour = "red" if style.background_name != "red" else "blue"
    return Edit(f"on a plain {colour} background", "background colour", colour)


def _of_expression(identity: Identity, style: Style) -> Edit:
    """Never sad: of true frowns under a beard the probe reads no half, of smiles all."""
    return _SMILING if _of_face(identity, style) != _SMILING else _CALM


KINDS: dict[str, tuple[Callable[[Identity, Style], Edit], str]] = {
    "face": (_of_face, "with round glasses"),
    "scene": (_of_scene, "on a plain red background"),
    "expression": (_of_expression, "smiling"),
}
"""By name how a kind of edit is chosen for a pair, and an example of its words."""


def edits(identity: Identity, style: Style) -> dict[str, Edit]:
    """An edit of each of KINDS, by its name; each of something that the pair does not have."""
    return {kind: choose(identity, style) for kind, (choose, _) in KINDS.items()}


for _kind, (_, _words) in KINDS.items():
    METRICS.add(
        Metric(
            f"obeys_{_kind}",
            help=f'How often an edit of the {_kind} ("{_words}"), by edit guidance, is read off '
            "the picture.",
            title=f"obeys, {_kind}",
            high=1.0,
            better="higher",
            place="table",
        )
    )
for _kind in KINDS:
    METRICS.add(
        Metric(
            f"obeys_{_kind}_in_words",
            help=f"The same for an edit of the {_kind} as words of the prompt.",
            title=f"obeys in words, {_kind}",
            high=1.0,
            better="higher",
            place="table",
        )
    )
for _name, _of in (("identity", "scene"), ("style", "face")):
    METRICS.add(
        Metric(
            f"{_name}_edited",
            help=f"The {_name} of pictures with the edit of the {_of}, to be held against "
            f"{_name} itself.",
            title=f"{_name}, {_of} edited",
            low=None,
            better="higher",
            place="table",
        )
    )
