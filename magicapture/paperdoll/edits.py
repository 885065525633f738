"""Edits of the composed prompt: words for something that neither person nor style has."""

from __future__ import annotations

from dataclasses import dataclass

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


_ON_FACE = (
    Edit("with round glasses", "glasses", "round"),
    Edit("with goatee", "beard", "goatee"),
    Edit("smiling", "mood", "smiling"),
)


def edits(identity: Identity, style: Style) -> tuple[Edit, Edit]:
    """One edit of the face and one of the scene, both of something the pair does not have.

    Media without colour are asked for another pattern of the background, not for a colour.
    """
    bare = {"glasses": identity.glasses == "none", "beard": identity.beard == "none", "mood": True}
    face = next(edit for edit in _ON_FACE if bare[edit.attribute])
    if style.medium in COLOURLESS:
        kind = "striped" if style.background != "striped" else "dotted"
        return face, Edit(f"on a {kind} black and white background", "background", kind)
    colour = "red" if style.background_name != "red" else "blue"
    return face, Edit(f"on a plain {colour} background", "background colour", colour)
