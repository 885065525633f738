"""What prompts ask for, as classes that a probe can read off a picture."""

from __future__ import annotations

from .captions import MOODS, TONES, mood_word, tone_word
from .drawing.colours import HAIR_COLOURS, SCENE_COLOURS
from .drawing.traits import (
    BACKGROUNDS,
    BEARDS,
    CLOTHES,
    GLASSES,
    HAIRS,
    MEDIA,
    Identity,
    Pose,
    Style,
)

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "tone": TONES,
    "mood": MOODS,
    "glasses": GLASSES,
    "beard": BEARDS,
    "hair": HAIRS,
    "hair colour": HAIR_COLOURS,
    "clothes": CLOTHES,
    "clothes colour": SCENE_COLOURS,
    "background": BACKGROUNDS,
    "background colour": SCENE_COLOURS,
    "medium": MEDIA,
}
UNSEEN = -100  # a class that the picture does not show, as the colour of a bald man's hair
COLOURLESS = ("sepia", "noir", "sketch")


def classes(identity: Identity, style: Style, pose: Pose) -> dict[str, int]:
    """The class of every attribute, or UNSEEN."""
    words = {
        "tone": tone_word(identity),
        "mood": mood_word(pose),
        "glasses": identity.glasses,
        "beard": identity.beard,
        "hair": style.hair,
        "hair colour": style.hair_name,
        "clothes": style.clothes,
        "clothes colour": style.clothes_name,
        "background": style.background,
        "background colour": style.background_name,
        "medium": style.medium,
    }
    found = {name: ATTRIBUTES[name].index(word) for name, word in words.items()}
    if style.hair in ("bald", "beanie"):
        found["hair colour"] = UNSEEN
    if style.medium in COLOURLESS:
        for name in ("hair colour", "clothes colour", "background colour"):
            found[name] = UNSEEN
    return found
