"""What the labels of real photos are like: their seam, whom they show, whom they no longer show.

    python benchmarks/labels.py --model FILE[:imagenet] ...

The first photos of one folder are laid into the portraits of another, by the default's settings
and, beside them, every photo into every portrait. Each label is measured along its seam, and by
face recognition models that had no part in making it:

    seam        the gradient of luma where the face fades, over the portrait's in the same place
    face        the same where the face is taught: whether it has more texture than the portrait
    identity    its mean cosine to the person's other photos (all of the folder but the one laid
                in), over the mean cosine of these photos to each other
    portrait    its cosine to the portrait's own face

Pictures of people are not written, figures alone: a CSV line a label and model, and a table to
standard output. Notes on them are in docs/benchmarks/labels.md.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch

import torch
from paperdoll_table import markdown
from study import command
from torch import Tensor

from magicapture import (
    FaceAnalyzer,
    MagiCaptureError,
    Photo,
    ReferenceSet,
    load_detector,
    load_face_embedder,
    load_folder,
    load_parser,
    with_faces,
)
from magicapture.config import LabelSettings
from magicapture.faces.analyzer import embed_faces
from magicapture.faces.find import best, places
from magicapture.labels import Label, LabelSet, labelled
from magicapture.labels.seams import relative_slope
from magicapture.metrics import likeness
from magicapture.person import Person

ROOT = Path(__file__).resolve().parent.parent
ASSETS = Path(os.environ.get("MAGICAPTURE_SHARED", ROOT.parent / "shared")) / "assets"
MODEL = f"{ASSETS / 'face' / 'foamliu_MobileFaceNet.onnx'}:imagenet"
FORMS = {
    "default": LabelSettings(),
    "every photo in every portrait": LabelSettings(photos=999, nearness=10),
}
COLUMNS = {
    "seam": "seam",
    "face": "face",
    "identity": "identity",
    "own": "a photo's own",
    "portrait": "to the portrait's face",
    "stranger": "a photo to it",
}
AIMS = {"seam": "at most 1.1", "identity": "at least 0.9", "portrait": "at most 0.1"}


@dataclass(frozen=True, eq=False)
class Judge:
    """A face recognition model, with the person as it sees them.

    photos: the embeddings (N,D) of all the person's photos.
    """

    name: str
    embedder: Any
    photos: Tensor

    @classmethod
    def of(cls, model: str, person: ReferenceSet) -> Judge:
        """By a file, with its normalisation behind a colon where it is not ArcFace's."""
        path, _, normalisation = model.partition(":")
        embedder = load_face_embedder(path, normalisation or "arcface")
        return cls(Path(path).name, embedder, embedded(embedder, person.photos))

    def scores(self, label: Label) -> dict[str, float]:
        """Of a label with a face laid in, and of the photo that it is of.

        own: the photo's identity, which is a label's ceiling. stranger: the photo's cosine to the
        portrait's face, which is a label's floor.
        """
        laid_in, number = label.shown, label.match.photo
        others = torch.cat([self.photos[:number], self.photos[number + 1 :]])
        own = Person(others).own
        seen, face = embedded(self.embedder, (laid_in, label.portrait)).split(1)
        photo = self.photos[number : number + 1]
        return {
            "identity": float(likeness(seen, others)) / own,
            "own": float(likeness(photo, others)) / own,
            "portrait": float(likeness(seen, face)),
            "stranger": float(likeness(photo, face)),
        }


def embedded(embedder: Any, photos: Sequence[Photo]) -> Tensor:
    """The embeddings (N,D) of the faces in photos."""
    images, points = [photo.image for photo in photos], [photo.landmarks for photo in photos]
    return embed_faces(embedder, images, points).cpu()


def found(folder: Path, analyzer: FaceAnalyzer) -> ReferenceSet:
    """The photos of a folder in which there is a face, with masks and landmarks."""
    filled, seen = with_faces(load_folder(folder), analyzer)
    kept = filled.only(i for i, one in enumerate(seen) if one.face is not None)
    return ReferenceSet(kept.photos)


def texture(label: Label) -> float:
    """The gradient of what is taught of the laid-in face, over the portrait's in that place."""
    shown = label.shown
    assert shown.face_mask is not None and shown.taught is not None
    where = (shown.face_mask > 0.5) & (shown.taught > 0.5)
    return relative_slope(shown.image, label.portrait.image, where)


def lines_of(form: str, made: LabelSet, judges: Sequence[Judge]) -> Iterator[dict[str, Any]]:
    """A line for each label and model; those of plain labels have no scores."""
    for label in made.labels:
        known = {
            "form": form,
            "portrait_file": label.portrait.name,
            "photo_file": label.photo.name,
            "laid_in": int(label.laid_in),
            "pose": label.match.pose,
            "light": label.match.light,
        }
        if not label.laid_in:
            yield known
            continue
        known |= {"seam": label.steepness, "face": texture(label), "taught": label.share_taught}
        for judge in judges:
            yield known | {"model": judge.name} | judge.scores(label)


def write(lines: Sequence[Mapping[str, Any]], file: Path) -> None:
    """All lines as CSV, with four decimals."""
    columns = list(dict.fromkeys(name for line in lines for name in line))
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, columns)
        writer.writeheader()
        for line in lines:
            writer.writerow(
                {k: round(v, 4) if isinstance(v, float) else v for k, v in line.items()}
            )


def table(lines: Sequence[Mapping[str, Any]], judges: Sequence[Judge]) -> str:
    """A row for each form and model: the median, the least and the most of each figure."""
    body = []
    for form in dict.fromkeys(line["form"] for line in lines):
        of_form = [line for line in lines if line["form"] == form]
        portraits = {line["portrait_file"] for line in of_form}
        shown = {line["portrait_file"] for line in of_form if line["laid_in"]}
        for judge in judges:
            scored = [line for line in of_form if line.get("model") == judge.name]
            count = f"{len(scored)}; {len(shown)} of {len(portraits)}"
            cells = [_spread([line[name] for line in scored]) for name in COLUMNS]
            body.append([form, judge.name, count, *cells])
    aims = ["aim", "", "", *(AIMS.get(name, "") for name in COLUMNS)]
    head = ["photos", "model", "labels; portraits with one", *COLUMNS.values()]
    return markdown(head, [*body, aims])


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def page(lines: Sequence[Mapping[str, Any]], judges: Sequence[Judge], masks: str) -> str:
    """The table with what it was made with."""
    machine = f"{os.cpu_count()} cores of {platform.processor() or platform.machine()}"
    how = f"Medians (least to most). Masks: {masks}. torch {torch.__version__}, {machine}."
    return "\n\n".join([f"`{command()}`", how, table(lines, judges)])


def main() -> None:
    """Measure, and write the CSV and the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--person", type=Path, default=ASSETS / "photos" / "person")
    parser.add_argument("--style", type=Path, default=ASSETS / "photos" / "styles")
    parser.add_argument("--count", type=int, default=5, help="of the photos, laid in")
    parser.add_argument("--model", nargs="+", default=[MODEL], metavar="FILE[:imagenet]")
    parser.add_argument("--detector", type=Path, help="the one of the pack without it")
    parser.add_argument("--parser", type=Path, help="ovals without it")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks" / "labels.csv")
    asked = parser.parse_args()
    for folder in (asked.person, asked.style):
        if not folder.is_dir():
            print(f"Skipped: there are no photos at {folder}; name a folder of them.")  # noqa: T201
            return
    faces = FaceAnalyzer(
        load_detector(asked.detector or best("detector", places())),
        load_parser(asked.parser) if asked.parser else None,
    )
    person, portraits = found(asked.person, faces), found(asked.style, faces)
    judges = [Judge.of(model, person) for model in asked.model]
    source = person.only(range(min(asked.count, len(person))))
    lines = []
    for form, settings in FORMS.items():
        lines += lines_of(form, labelled(portraits, source, settings), judges)
    write(lines, asked.out)
    masks = asked.parser.name if asked.parser else "ovals over the landmarks, no parser"
    print(page(lines, judges, masks))  # noqa: T201


if __name__ == "__main__":
    try:
        main()
    except MagiCaptureError as error:
        raise SystemExit(str(error)) from None
