"""Whether a model does what it is for: each is tried on drawn faces when it is loaded."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..errors import InputError
from .content import first_line
from .square import SquareDetector

if TYPE_CHECKING:
    from .embed import FaceEmbeddingNetwork

logger = logging.getLogger(__name__)

T = TypeVar("T")

_PICTURE = Path(__file__).with_name("drawn_faces.jpg")
_SIDE, _FACE = 256, 128  # pixels: of the picture, of each of its four faces
_MIDDLES = np.array([[60, 70], [199, 70], [60, 199], [191, 199]])
"""Where the five landmarks of each drawn face have their mean, in pixels."""

_LIMIT = 120.0  # seconds; the slowest that is known, with all imports, takes a tenth
_FEWEST = 16  # numbers of an embedding; those in use have 128 to 512
_ALIKE = 0.999  # cosine from which embeddings of unlike pictures count as the same

_ADVICE = "it is damaged, not trained, or another model. Download it again, or take another file."


def within_limit(work: Callable[[], T], name: str, seconds: float = _LIMIT) -> T:
    """What `work` returns or raises; InputError if reading the file `name` takes longer.

    What hangs cannot be ended and goes on in a thread of its own, which ends with the process.
    """
    done: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()

    def run() -> None:
        try:
            done.put((work(), None))
        except BaseException as error:
            done.put((None, error))

    Thread(target=run, name=f"reading {name}", daemon=True).start()
    try:
        result, error = done.get(timeout=seconds)
    except Empty:
        raise InputError(
            f"{name} was not read and tried on a picture within {seconds:g} seconds; {_ADVICE}"
        ) from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


def try_detector(detector: SquareDetector, name: str) -> None:
    """Raise InputError unless a detector finds drawn faces, and few where there are none."""
    side = detector.canvas or _SIDE
    small = min(side, _SIDE)
    shown = np.zeros((side, side, 3), np.uint8)
    sheet = Image.fromarray(_drawn_faces()).resize((small, small))
    shown[:small, :small] = np.asarray(sheet)[..., ::-1]
    rows = _rows(detector, shown, name)
    middles = rows[:, 4:14].reshape(-1, 5, 2).mean(1) * (_SIDE / small)
    apart = np.linalg.norm(middles[:, None] - _MIDDLES, axis=-1)
    right = int((apart.min(axis=1) < _FACE / 8).sum())
    if right == 0 or right < len(rows) - right:
        raise InputError(
            f"{name} finds {len(rows)} faces in a picture of {len(_MIDDLES)} drawn ones, {right} "
            f"of them in place; {_ADVICE}"
        )
    empty = np.full_like(shown[: detector.canvas or _FACE, : detector.canvas or _FACE], 128)
    if len(_rows(detector, empty, name)):
        raise InputError(f"{name} finds faces in an empty picture; {_ADVICE}")


def _rows(detector: SquareDetector, picture: NDArray[np.uint8], name: str) -> NDArray[np.float32]:
    """The faces (N,15) that a detector finds in a square picture."""
    try:
        rows = np.asarray(detector.find(picture), np.float32)
    except Exception as error:  # whatever a foreign network raises
        raise InputError(
            f"{name} cannot look at a picture of {len(picture)} pixels ({first_line(error)}); "
            f"{_ADVICE}"
        ) from error
    if rows.ndim != 2 or rows.shape[1] != 15:
        raise InputError(
            f"{name} gives numbers of shape {rows.shape} for a picture; expected (faces, 15): box, "
            f"five landmarks, score. For a face detector, {_ADVICE}"
        )
    return rows[np.isfinite(rows).all(axis=1)]


def try_embedder(embedder: FaceEmbeddingNetwork, name: str) -> None:
    """Embed noise and a drawn face; raise InputError unless both differ, with a gradient.

    Sets `embedder.batched`, by whether both together give what each gives alone.
    """
    side = embedder.alignment.size
    noise = torch.rand(3, side, side, generator=torch.Generator().manual_seed(0))
    drawn = torch.from_numpy(_drawn_faces()[:side, :side].copy()).permute(2, 0, 1) / 255
    faces = torch.stack([noise, drawn]).requires_grad_()
    with torch.enable_grad():
        try:
            alone = torch.cat([embedder(face[None]) for face in faces])
            # Not the sum of squares, which is constant where the network scales to unit length.
            one_number = (alone * torch.linspace(-1, 1, alone.shape[-1])).sum()
            (gradient,) = torch.autograd.grad(one_number, faces)
        except Exception as error:  # whatever a foreign network raises
            raise InputError(
                f"{name} does not embed a face of 3x{side}x{side} differentiably "
                f"({first_line(error)}); give an ArcFace-like face recognition model."
            ) from error
    _judge(alone.detach(), gradient, name)
    embedder.batched = True
    try:
        with torch.no_grad():
            together = embedder(faces)
        embedder.batched = together.shape == alone.shape and torch.allclose(
            together, alone, rtol=1e-3, atol=1e-4
        )
    except Exception:  # an export fixed to one face; running face by face is right for it
        embedder.batched = False
    if not embedder.batched:
        logger.info("%s takes one face at a time.", name)


def _judge(embeddings: Tensor, gradient: Tensor, name: str) -> None:
    """Raise InputError unless these can be the embeddings of noise and of a face."""
    shape = tuple(embeddings.shape)
    if len(shape) != 2 or shape[0] != 2 or shape[1] < _FEWEST:
        raise InputError(
            f"{name} turns two faces into numbers of shape {shape}; expected embeddings (2, D), D "
            f"at least {_FEWEST}. For a face recognition model, {_ADVICE}"
        )
    if not (embeddings.isfinite().all() and gradient.isfinite().all()):
        raise InputError(f"{name} gives numbers that are not finite; {_ADVICE}")
    alike = abs(float(F.cosine_similarity(embeddings[0], embeddings[1], dim=0)))
    if alike > _ALIKE or not gradient.flatten(1).any(dim=1).all():
        raise InputError(f"{name} says the same of noise and of a face; {_ADVICE}")


@cache
def _drawn_faces() -> NDArray[np.uint8]:
    """Four faces drawn by paperdoll, RGB (256,256,3)."""
    with Image.open(_PICTURE, formats=["JPEG"]) as picture:
        return np.asarray(picture.convert("RGB"))
