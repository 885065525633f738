"""`magicapture evaluate`."""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..clip import Clip, load_clip
from ..data.companions import found_in
from ..data.folder import read_caption
from ..errors import MagiCaptureError
from ..evaluation import (
    COMMAND,
    CSV,
    JSON,
    PAGE,
    Given,
    Models,
    References,
    load_aesthetic_head,
    write_csv,
    write_page,
)
from ..evaluation import (
    evaluate as measure,
)
from ..faces.analyzer import FaceAnalyzer
from ..faces.embed import FaceEmbeddingNetwork, load_face_embedder
from ..faces.find import best, places
from ..files import check_writable, printable
from ..images import read_picture
from .faces import NONE, detector_from, loss_from, parser_from
from .groups import add_device, add_faces, add_loss_model
from .images import photos_in
from .model import device_from
from .options import option, require_text
from .outputs import check_report, write_json

logger = logging.getLogger(__name__)


def evaluate(arguments: argparse.Namespace) -> None:
    """Measure pictures as the paper does, several adapters beside each other, on one page."""
    require_text("--prompt", arguments.prompt)
    out: Path = arguments.out
    check_report(out, JSON, (CSV, PAGE), COMMAND)
    check_writable(out)
    groups = dict(_groups(arguments.pictures, arguments.prompt))
    photos = photos_in(arguments.person)
    portraits = photos_in(arguments.style) if arguments.style else None
    loss = loss_from(arguments)
    clip = _clip(arguments)
    models = Models(
        FaceAnalyzer(detector_from(arguments), parser_from(arguments), _embedder(arguments, loss)),
        clip,
        clip if clip is not None and clip.tokenizer is not None else None,
        load_aesthetic_head(arguments.aesthetic) if arguments.aesthetic else None,
    )
    against = References.of(photos, portraits, models, tones=arguments.by_skin_tone)
    told = load_face_embedder(loss, arguments.face_model_input) if isinstance(loss, Path) else loss
    with _Bar(sum(map(len, groups.values()))) as bar:
        found = measure(groups, against, models, loss=told, on_progress=bar)
    for line in str(found).splitlines():
        logger.info("%s", line)
    write_csv(found, out / CSV)
    write_page(found, out / PAGE)
    write_json(out / JSON, found.as_dict(), COMMAND)
    for name in (JSON, CSV, PAGE):
        logger.info("Wrote %s", out / name)


def _embedder(
    arguments: argparse.Namespace, loss: Path | str | None
) -> FaceEmbeddingNetwork | None:
    """The face embedder named, else the best found that is not the loss's, else None."""
    file = arguments.face_model
    if file == NONE:
        return None
    if not file:
        try:
            other_than = None if loss is None else Path(loss)
            file = best("embedder", places(arguments.models), other_than=other_than)
        except MagiCaptureError as error:
            logger.warning("%s", str(error).partition("\n")[0])
            return None
    return load_face_embedder(file, arguments.face_model_input).to(device_from(arguments))


def _clip(arguments: argparse.Namespace) -> Clip | None:
    if arguments.clip is None:
        return None
    clip = load_clip(arguments.clip)
    clip.model.to(device_from(arguments))
    return clip


def _groups(paths: Sequence[Path], prompt: str | None) -> Iterator[tuple[str, list[Given]]]:
    """The pictures of each folder, and together those named one by one."""
    folders = [path for path in paths if path.is_dir() or not path.is_file()]
    names = [folder.resolve().name for folder in folders]
    for folder, name in zip(folders, names, strict=True):
        found = found_in(folder, most=math.inf)
        for warning in found.warnings:
            logger.warning("%s", warning)
        given = [
            Given(printable(file.name), _reading(file), read_caption(file, found) or prompt)
            for file in found.photos
        ]
        yield (printable(folder) if names.count(name) > 1 else printable(name)), given
    files = [path for path in paths if path.is_file()]
    if files:
        yield "pictures", [Given(printable(file.name), _reading(file), prompt) for file in files]


def _reading(file: Path) -> Any:
    def read() -> Tensor:
        return read_picture(file).image

    return read


class _Bar:
    """A progress bar over pictures."""

    def __init__(self, total: int) -> None:
        from tqdm import tqdm

        self._bar: tqdm[Any] = tqdm(desc="Measuring", total=total, unit="picture")

    def __call__(self, done: int, total: int) -> None:
        self._bar.update(done - self._bar.n)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `evaluate`."""
    add = parser.add_argument
    pictures = "Folders of pictures, one for each adapter, beside each other; or pictures."
    add("pictures", metavar="PICTURES", nargs="+", type=Path, help=pictures)
    add("--person", required=True, metavar="DIR", help="Photos of the person.")
    option(parser, "--style", str, "Portraits in the style.", shown="none", metavar="DIR")
    option(
        parser,
        "--prompt",
        str,
        "What the pictures were to show, in plain words; a picture's own is in a .txt beside it.",
        shown="none",
    )
    option(
        parser,
        "--clip",
        Path,
        "A CLIP model: a transformers folder, or one .safetensors file.",
        shown="none",
        metavar="PATH",
    )
    option(
        parser,
        "--aesthetic",
        Path,
        "An aesthetic predictor over that CLIP model, such as LAION's.",
        shown="none",
        metavar="FILE",
    )
    add("--by-skin-tone", action="store_true", help="Read skin tones, and tell them apart.")
    where = Path("magicapture-evaluation")
    option(parser, "--out", Path, "The folder to write into.", default=where, metavar="DIR")
    add_loss_model(parser)
    add_device(parser)
    add_faces(parser.add_argument_group("faces"), parser_model=True, optional=True)
