"""Drawn photos of a person and portraits in a style, as folders to try the commands on.

    python benchmarks/doll_photos.py FOLDER --identity 2000007 --style 2000100

FOLDER/person and FOLDER/style then hold the pictures with their face masks and landmarks. They are
of paperdoll's test split, drawn larger than its models see them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

from magicapture.data.writing import save_photo_set
from magicapture.errors import MagiCaptureError
from magicapture.paperdoll import (
    Doll,
    identity_from_seed,
    pose_from_seed,
    render,
    style_from_seed,
)
from magicapture.paperdoll.pairs import references


def photos(identity: int, number: int, size: int) -> list[Doll]:
    """A person in photos of other styles, each in a pose of its own."""
    person = identity_from_seed(identity)
    looks = [replace(style_from_seed(identity + 1 + i), medium="photo") for i in range(number)]
    return [
        render(person, look, pose_from_seed(identity + 1 + i), size) for i, look in enumerate(looks)
    ]


def portraits(style: int, number: int, size: int) -> list[Doll]:
    """Other people in a style."""
    look, seeds = style_from_seed(style), count(style + 1)
    return [
        render(identity_from_seed(seed), look, pose_from_seed(seed), size)
        for seed, _ in zip(seeds, range(number), strict=False)
    ]


def write(dolls: Sequence[Doll], folder: Path) -> None:
    """Dolls as 1.png, 2.png and so on, with masks and landmarks."""
    drawn = references(dolls)
    names = [f"{i + 1}.png" for i in range(len(drawn))]
    save_photo_set(drawn.known("names", names), folder)


def main() -> None:
    """Draw both sets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--identity", type=int, default=2_000_007)
    parser.add_argument("--style", type=int, default=2_000_100)
    parser.add_argument("--photos", type=int, default=4, help="of the person")
    parser.add_argument("--portraits", type=int, default=3, help="in the style")
    parser.add_argument("--size", type=int, default=256, help="their side in pixels")
    asked = parser.parse_args()
    write(photos(asked.identity, asked.photos, asked.size), asked.folder / "person")
    write(portraits(asked.style, asked.portraits, asked.size), asked.folder / "style")


if __name__ == "__main__":
    try:
        main()
    except MagiCaptureError as error:
        raise SystemExit(str(error)) from None
