"""Captions in a small fixed vocabulary: what a prompt may ask of a doll."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from .drawing.colours import HAIR_COLOURS, IRIS_COLOURS, SCENE_COLOURS
from .drawing.traits import (
    BACKGROUNDS,
    BEARDS,
    CLOTHES,
    GLASSES,
    HAIRS,
    MARKS,
    MEDIA,
    Identity,
    Pose,
    Style,
)

TONES = ("pale", "tan", "dark")
MOODS = ("sad", "calm", "smiling")
_GRAMMAR = (
    "a photo of person face portrait picture in the style with and on wearing skin eyes hair "
    "glasses background , . no"
)
_MEDIUM_NOUNS = {
    "photo": "photo",
    "sepia": "sepia photo",
    "noir": "noir photo",
    "pastel": "pastel drawing",
    "poster": "poster",
    "sketch": "sketch",
}


# What a clause says, by slot, and the word of the clause at which all of it has been said.
SLOTS: dict[str, tuple[str, ...]] = {
    "medium": MEDIA,
    "tone": TONES,
    "iris": IRIS_COLOURS,
    "mood": MOODS,
    "glasses": GLASSES,
    "beard": BEARDS,
    "mark": MARKS,
    "hair": HAIRS,
    "hair colour": HAIR_COLOURS,
    "clothes": CLOTHES,
    "clothes colour": SCENE_COLOURS,
    "background": BACKGROUNDS,
    "background colour": SCENE_COLOURS,
    "pattern colour": SCENE_COLOURS,
}


def vocabulary() -> tuple[str, ...]:
    """Every word that captions use, sorted."""
    words = set(_GRAMMAR.split()) | set(" ".join(_MEDIUM_NOUNS.values()).split())
    for group in (TONES, MOODS, HAIR_COLOURS, IRIS_COLOURS, SCENE_COLOURS, BACKGROUNDS, BEARDS):
        words |= set(group)
    for group in (CLOTHES, GLASSES, HAIRS, MARKS, MEDIA):
        words |= set(group)
    return tuple(sorted(words - {"none"}))


class Said(NamedTuple):
    """That a caption says `word` of `slot`, and has said it by its token number `at`."""

    slot: str
    word: str
    at: int


def read(text: str) -> list[Said]:
    """What a caption says; the start token is number 0, every word, comma and stop one more."""
    found: list[Said] = []
    at = 1
    for clause in text.split(", "):
        words = re.findall(r"\w+", clause)
        at += len(words)
        found += [Said(slot, word, at - 1) for slot, word in _said(words).items()]
        at += 1
    opening = [said for said in found if said.slot == "medium"]
    return [said for said in found if said not in opening[:-1]]  # "in the ... style" overrules


def _said(words: list[str]) -> dict[str, str]:
    """What the words of one clause say, by slot."""
    match words:
        case ["a", *medium, "of", "a", _] if medium != ["picture"]:
            return {"medium": medium[0]}
        case ["in", "the", medium, "style"]:
            return {"medium": medium}
        case [tone, "skin"]:
            return {"tone": tone}
        case [iris, "eyes"]:
            return {"iris": iris}
        case ["with", glasses, "glasses"]:
            return {"glasses": glasses}
        case ["with", word]:
            return {"beard" if word in BEARDS else "mark": word}
        case ["wearing", "a", "beanie"]:
            return {"hair": "beanie"}
        case ["wearing", "a", colour, clothes]:
            return {"clothes colour": colour, "clothes": clothes}
        case [hair, colour, "hair"]:
            return {"hair": hair, "hair colour": colour}
        case ["on", "a", background, colour, *rest]:
            said = {"background": background, "background colour": colour}
            return said | ({"pattern colour": rest[1]} if rest[0] == "and" else {})
        case ["bald"]:
            return {"hair": "bald"}
        case [mood]:
            return {"mood": mood}
    return {}


def tone_word(identity: Identity) -> str:
    """The word for a skin tone; each covers a third of the range."""
    return TONES[min(int(identity.tone * len(TONES)), len(TONES) - 1)]


def mood_word(pose: Pose) -> str:
    """The word for what the mouth does."""
    return "sad" if pose.smile < -0.05 else "calm" if pose.smile < 0.45 else "smiling"


def caption(
    identity: Identity, style: Style, pose: Pose, rng: np.random.Generator | None = None
) -> str:
    """What the picture shows: everything, or with `rng` a random part of it in random order."""
    person, around = _person(identity, pose), _around(style)
    opening = f"a {_MEDIUM_NOUNS[style.medium]} of a person"
    if rng is None:
        return ", ".join([opening, *person, *around])
    noun = str(rng.choice(("person", "face", "portrait"), p=(0.8, 0.1, 0.1)))
    form = rng.random()
    closing: list[str] = []
    if form < 0.6:
        opening = f"a {_MEDIUM_NOUNS[style.medium]} of a {noun}"
    else:  # "a photo of ... in the sketch style": the style has the last word
        lead = "photo" if form < 0.85 else "picture"
        opening = f"a {lead} of a {noun}"
        closing = [f"in the {style.medium} style"]
    clauses = [c for c in person if rng.random() < 0.55] + [c for c in around if rng.random() < 0.7]
    order = rng.permutation(len(clauses)).tolist()
    return ", ".join([opening, *(clauses[i] for i in order), *closing])


def _person(identity: Identity, pose: Pose) -> list[str]:
    clauses = [f"{tone_word(identity)} skin", f"{identity.iris_name} eyes", mood_word(pose)]
    if identity.glasses != "none":
        clauses.append(f"with {identity.glasses} glasses")
    if identity.beard != "none":
        clauses.append(f"with {identity.beard}")
    if identity.mark != "none":
        clauses.append(f"with {identity.mark}")
    return clauses


def _around(style: Style) -> list[str]:
    if style.hair == "bald":
        hair = "bald"
    elif style.hair == "beanie":
        hair = "wearing a beanie"
    else:
        hair = f"{style.hair} {style.hair_name} hair"
    colours = style.background_name
    if style.background != "plain":
        colours += f" and {style.pattern_name}"
    return [
        hair,
        f"wearing a {style.clothes_name} {style.clothes}",
        f"on a {style.background} {colours} background",
    ]
