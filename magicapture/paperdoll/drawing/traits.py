"""What a doll is made of: identity (the face), style (all else), pose and light; each from a seed.

Lengths are in head units: the canonical head is 1 wide on each side of its axis.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..seeds import stream
from .colours import (
    HAIR_COLOURS,
    HAIR_HSV,
    HSV,
    IRIS_COLOURS,
    IRIS_HSV,
    SCENE_COLOURS,
    Colour,
    jittered,
)

BEARDS = ("none", "stubble", "moustache", "goatee", "beard")
GLASSES = ("none", "round", "square")
MARKS = ("none", "mole", "scar", "freckles")
BACKGROUNDS = ("plain", "gradient", "striped", "dotted", "checked", "sunburst")
CLOTHES = ("shirt", "hoodie", "suit", "turtleneck", "dress", "sweater")
HAIRS = ("bald", "short", "parted", "bob", "long", "curly", "bun", "beanie")
MEDIA = ("photo", "sepia", "noir", "pastel", "poster", "sketch")


@dataclass(frozen=True)
class Identity:
    """A face: everything by which one doll is told from another."""

    face_width: float
    chin: float  # how far the chin lies below the eye line
    jaw: float  # 0 round .. 1 square
    taper: float  # how much the face narrows towards the chin
    tone: float  # 0 light .. 1 deep
    undertone: float  # -1 cool .. 1 warm
    eye_gap: float  # from the axis to an eye's centre
    eye_width: float
    eye_height: float
    eye_tilt: float  # radians, outer corner up
    iris_name: str
    iris: Colour
    brow_thickness: float
    brow_angle: float
    brow_height: float  # above the eye line
    brow_colour: Colour
    nose_width: float
    nose_length: float
    mouth_width: float
    lip_fullness: float
    lip_redness: float  # 0 the skin's own .. 1 red
    ear_size: float
    blush: float
    beard: str
    glasses: str
    glasses_colour: Colour
    mark: str
    mark_at: tuple[float, float]
    mark_seed: int


@dataclass(frozen=True)
class Style:
    """Everything in the picture that is not the face."""

    background: str
    background_name: str
    background_colour: Colour
    pattern_name: str
    pattern_colour: Colour
    pattern_scale: float
    pattern_angle: float
    clothes: str
    clothes_name: str
    clothes_colour: Colour
    accent_colour: Colour
    hair: str
    hair_name: str
    hair_colour: Colour
    hair_length: float  # 0..1, within what the kind of hair allows
    medium: str
    fringe: float = 0.0  # hair over the forehead: 0 none .. 1 down to the eyes


@dataclass(frozen=True)
class Pose:
    """Where the head is, what the face does, and the light on the scene."""

    shift: tuple[float, float] = (0.0, 0.0)  # of the half picture
    scale: float = 1.0
    turn: float = 0.0  # -1 to the left of the picture .. 1 to the right; 2.8 is far
    tilt: float = 0.0  # radians, clockwise
    nod: float = 0.0  # -1 up .. 1 down
    smile: float = 0.4  # -0.4 frown .. 1 broad
    gaze: tuple[float, float] = (0.0, 0.0)
    lids: float = 1.0  # how far the eyes are open
    light_angle: float = -0.6  # where the light comes from: -1 left .. 1 right
    light_strength: float = 0.8
    exposure: float = 1.0
    warmth: float = 0.0
    side_light: float = 0.0  # -1 from the left alone .. 1 from the right alone; 0 soft, as above
    shadow: float = 0.0  # cast on the face: -1 on its left half .. 1 on its right half


def identity_from_seed(seed: int) -> Identity:
    """The face that belongs to a seed."""
    rng = stream("identity", seed)
    between = rng.uniform

    def pick(options: tuple[str, ...], weights: tuple[float, ...] | None = None) -> str:
        return str(rng.choice(options, p=weights))

    iris = pick(IRIS_COLOURS, (0.36, 0.12, 0.18, 0.22, 0.12))
    natural = pick(("black", "brown", "blond", "red", "grey"), (0.3, 0.32, 0.16, 0.12, 0.1))
    frame = pick(("black", "red", "blue", "brown", "yellow"), (0.45, 0.15, 0.15, 0.15, 0.1))
    side = float(rng.choice((-1.0, 1.0)))
    return Identity(
        face_width=between(0.86, 1.02),
        chin=between(1.06, 1.32),
        jaw=between(0, 1),
        taper=between(0.05, 0.42),
        tone=between(0, 1),
        undertone=between(-1, 1),
        eye_gap=between(0.37, 0.50),
        eye_width=between(0.21, 0.30),
        eye_height=between(0.105, 0.19),
        eye_tilt=between(-0.16, 0.24),
        iris_name=iris,
        iris=jittered(IRIS_HSV[iris], rng),
        brow_thickness=between(0.03, 0.085),
        brow_angle=between(-0.28, 0.28),
        brow_height=between(0.29, 0.40),
        brow_colour=jittered(HAIR_HSV[natural], rng),
        nose_width=between(0.11, 0.24),
        nose_length=between(0.28, 0.46),
        mouth_width=between(0.27, 0.44),
        lip_fullness=between(0.045, 0.12),
        lip_redness=between(0, 1) ** 1.5,
        ear_size=between(0.15, 0.24),
        blush=between(0, 1) ** 2,
        beard=pick(BEARDS, (0.52, 0.1, 0.12, 0.1, 0.16)),
        glasses=pick(GLASSES, (0.66, 0.18, 0.16)),
        glasses_colour=jittered(HSV[frame], rng),
        mark=pick(MARKS, (0.4, 0.25, 0.15, 0.2)),
        mark_at=(side * between(0.36, 0.62), between(0.30, 0.56)),
        mark_seed=int(rng.integers(1 << 31)),
    )


def style_from_seed(seed: int) -> Style:
    """The style that belongs to a seed."""
    rng = stream("style", seed)
    between = rng.uniform

    def pick(options: tuple[str, ...], weights: tuple[float, ...] | None = None) -> str:
        return str(rng.choice(options, p=weights))

    ground = pick(SCENE_COLOURS)
    pattern = pick(tuple(name for name in SCENE_COLOURS if name != ground))
    clothes = pick(SCENE_COLOURS)
    accent = pick(tuple(name for name in SCENE_COLOURS if name != clothes))
    hair = pick(HAIR_COLOURS, (0.16, 0.17, 0.13, 0.13, 0.08, 0.07, 0.07, 0.07, 0.06, 0.06))
    return Style(
        background=pick(BACKGROUNDS),
        background_name=ground,
        background_colour=jittered(HSV[ground], rng),
        pattern_name=pattern,
        pattern_colour=jittered(HSV[pattern], rng),
        pattern_scale=between(0.8, 1.3),
        pattern_angle=between(-0.5, 0.5),
        clothes=pick(CLOTHES),
        clothes_name=clothes,
        clothes_colour=jittered(HSV[clothes], rng),
        accent_colour=jittered(HSV[accent], rng),
        hair=pick(HAIRS, (0.08, 0.14, 0.14, 0.14, 0.16, 0.13, 0.11, 0.10)),
        hair_name=hair,
        hair_colour=jittered(HAIR_HSV[hair], rng),
        hair_length=between(0, 1),
        medium=pick(MEDIA, (0.4, 0.12, 0.12, 0.12, 0.12, 0.12)),
    )


def pose_from_seed(seed: int) -> Pose:
    """The pose and light that belong to a seed."""
    rng = stream("pose", seed)
    between = rng.uniform
    return Pose(
        shift=(between(-0.08, 0.08), between(-0.05, 0.05)),
        scale=between(0.94, 1.07),
        turn=between(-1, 1),
        tilt=between(-0.12, 0.12),
        nod=between(-1, 1),
        smile=between(-0.3, 1.0),
        gaze=(between(-1, 1), between(-0.6, 0.6)),
        lids=between(0.85, 1.05),
        light_angle=between(-1, 1),
        light_strength=between(0.5, 1.0),
        exposure=between(0.9, 1.06),
        warmth=between(-1, 1),
    )
