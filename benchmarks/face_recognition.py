"""How well face recognition models tell people apart: AUC, cosines, seconds a face.

    python benchmarks/face_recognition.py PEOPLE MODEL[:imagenet] ... --detector FILE

PEOPLE holds a sub-folder of photos for each person; of several faces the largest counts. Who has
one photo is a stranger to those with more; strangers are not compared with each other. Pairs of
photos of one person are compared with pairs of two persons', as the photos are and altered, each
by its own noise: small (the face shrunk to 24 pixels), dark (a third of the light, grain of 0.04),
misplaced (landmarks off by 8 % of the eyes' distance, standard deviation), and all of these.
Nothing is written.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import process_time

import torch
import torch.nn.functional as F
from torch import Tensor

from magicapture import load_detector, load_face_embedder, load_folder
from magicapture.errors import MagiCaptureError
from magicapture.faces.analyzer import embed_faces


@dataclass(frozen=True)
class Photo:
    """A photo (3,H,W) with its face's landmarks (5,2) and width in pixels, and whose it is."""

    person: str
    image: Tensor
    landmarks: Tensor
    width: float


def small(photo: Photo) -> Photo:
    shape = photo.image.shape[-2:]
    share = min(1.0, 24 / photo.width)
    little = F.interpolate(photo.image[None], scale_factor=share, mode="area")
    image = F.interpolate(little, shape, mode="bicubic").clamp(0, 1)[0]
    return Photo(photo.person, image, photo.landmarks, photo.width)


def dark(photo: Photo) -> Photo:
    image = photo.image / 3 + 0.04 * torch.randn(photo.image.shape)
    return Photo(photo.person, image.clamp(0, 1), photo.landmarks, photo.width)


def misplaced(photo: Photo) -> Photo:
    off = 0.08 * float((photo.landmarks[1] - photo.landmarks[0]).norm())
    landmarks = photo.landmarks + off * torch.randn(5, 2)
    return Photo(photo.person, photo.image, landmarks, photo.width)


CHANGES: dict[str, Callable[[Photo], Photo]] = {
    "as they are": lambda photo: photo,
    "small": small,
    "dark": dark,
    "misplaced": misplaced,
    "all three": lambda photo: dark(misplaced(small(photo))),
}


def photos_of(folder: Path, detector: Callable[[Tensor], tuple]) -> list[Photo]:
    """The photos of a person in which a face is found."""
    references = load_folder(folder)
    found = [(image, detector(image)) for image in references.images]
    return [
        Photo(folder.name, image, faces[0].landmarks, faces[0].width)
        for image, faces in found
        if faces
    ]


def auc(same: Tensor, different: Tensor) -> float:
    """The chance that a pair of one person has a higher cosine than a pair of two."""
    ahead = (same[:, None] > different).double() + 0.5 * (same[:, None] == different).double()
    return float(ahead.mean())


def measure(embedder: Callable[[Tensor], Tensor], photos: list[Photo]) -> tuple[Tensor, Tensor]:
    """The cosines of all pairs of one person, and of two persons."""
    vectors = embed_faces(embedder, [p.image for p in photos], [p.landmarks for p in photos])
    i, j = torch.triu_indices(len(photos), len(photos), 1)
    cosines = (vectors @ vectors.T)[i, j].cpu()
    count = Counter(photo.person for photo in photos)
    pairs = [(photos[a].person, photos[b].person) for a, b in zip(i, j, strict=True)]
    same = torch.tensor([one == other for one, other in pairs])
    known = torch.tensor([max(count[one], count[other]) > 1 for one, other in pairs])
    return cosines[same], cosines[~same & known]


def row(model: str, photos: list[Photo]) -> str:
    """A line of the table: a model with its normalisation, and what it reaches."""
    path, _, normalisation = model.partition(":")
    embedder = load_face_embedder(path, normalisation or "arcface")
    cells, start = [], process_time()
    for name, change in CHANGES.items():
        torch.manual_seed(0)
        same, different = measure(embedder, [change(photo) for photo in photos])
        if name == "as they are":
            seconds = (process_time() - start) / len(photos)
            for cosines in (same, different):
                cells.append(f"{cosines.mean():.2f} ± {cosines.std():.2f}")
            cells.append(f"{same.min():.2f} / {different.max():.2f}")
        cells.append(f"{auc(same, different):.4f}")
    return f"| {Path(path).name} | {' | '.join(cells)} | {seconds:.2f} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("people", type=Path)
    parser.add_argument("models", nargs="+", metavar="MODEL[:imagenet]")
    parser.add_argument("--detector", type=Path, required=True)
    arguments = parser.parse_args()
    detector = load_detector(arguments.detector)
    folders = sorted(folder for folder in arguments.people.iterdir() if folder.is_dir())
    photos = [photo for folder in folders for photo in photos_of(folder, detector)]
    people = len({photo.person for photo in photos})
    if people < 2 or len(photos) == people:
        raise SystemExit("Give two people or more, and two photos or more of one of them.")
    print(f"{len(photos)} photos of {people} people")  # noqa: T201
    heads = ["model", "one person", "two", "least / most", *CHANGES, "s a face"]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")  # noqa: T201
    for model in arguments.models:
        print(row(model, photos), flush=True)  # noqa: T201


if __name__ == "__main__":
    try:
        main()
    except MagiCaptureError as error:
        raise SystemExit(str(error)) from None
