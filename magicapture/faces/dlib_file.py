"""The layers in a network file of dlib's, which is a plain row of numbers and holds no code.

The format as dlib 19.1 wrote it (dlib/serialize.h, dlib/dnn), in which its face recognition
network was published: whole numbers of up to eight bytes behind one that counts them and holds the
sign; a real number as mantissa and exponent; float32 tensors behind their four sizes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, StorageError

_LARGEST = 64 * 2**20  # bytes; the network has 22 million
_HEAD = 4096  # bytes before the first layer
_INPUT = b"\x01\x15input_rgb_image_sized"

_FIELDS = {
    "con_4": "t iiiiiii ss rrrr",
    "affine_": "t ss i",
    "relu_": "",
    "max_pool_2": "iiiiii",
    "avg_pool_2": "iiiiii",
    "add_prev_": "",
    "fc_2": "ii t ss i rrrr",
}
"""What each kind of layer holds: t a tensor, s a tensor's sizes, i whole and r real numbers."""


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer: its kind, its weights in a row (empty for none), and its whole numbers in order."""

    kind: str
    values: Tensor
    numbers: tuple[int, ...]


def is_network(path: Path) -> bool:
    """Whether a file begins as a network of dlib's for pictures of one size; False if unreadable.

    The first bytes alone are read.
    """
    try:
        with path.open("rb") as file:
            return _INPUT in file.read(_HEAD)
    except OSError:
        return False


def read_layers(path: Path) -> tuple[tuple[float, float, float], list[Layer]]:
    """The means of R, G and B in 0..255 that a network subtracts, and its layers from the input on.

    No more is allocated than the file is long. Raises StorageError for a file that is damaged or
    cut short, InputError for one that is too large or holds something else.
    """
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= _LARGEST else b""
    except OSError as error:
        raise StorageError(
            f"{path} cannot be opened ({error.strerror}); check that it may be read."
        ) from error
    if size > _LARGEST:
        raise InputError(
            f"{path.name} has {size / 2**20:.0f} MB; expected dlib's face recognition network, "
            f"which has 22, and no more than {_LARGEST // 2**20}."
        )
    start = data.find(_INPUT, 0, _HEAD)
    if start < 0:
        raise InputError(
            f"{path.name} is no network of dlib's for pictures of one size; expected "
            "dlib_face_recognition_resnet_model_v1.dat."
        )
    stream = _Stream(data, start + len(_INPUT), path.name)
    means = (stream.real(), stream.real(), stream.real())
    stream.integer(), stream.integer()  # height and width, which the embedder's alignment states
    layers = [_layer(stream)]
    stream.integer()  # pictures a sample, after the first layer alone
    while stream.left:
        layers.append(_layer(stream))
    return means, layers


def _layer(stream: _Stream) -> Layer:
    kind = stream.text()
    if kind not in _FIELDS:
        raise InputError(
            f"{stream.name} holds a layer {kind!r}, which is unknown; expected dlib's face "
            "recognition network as it was published. If that is what it is, download it again."
        )
    values, numbers = torch.empty(0), []
    for field in _FIELDS[kind].replace(" ", ""):
        if field == "t":
            values = stream.tensor()
        elif field == "s":
            numbers += stream.sizes(1)
        elif field == "i":
            numbers.append(stream.integer())
        else:
            stream.real()  # a rate of learning
    stream.take(3)  # flags of its training, and what was kept of it: gradients and an output
    for _ in range(3):
        stream.tensor()
    return Layer(kind, values, tuple(numbers))


class _Stream:
    """Numbers, one after another; raises StorageError where they end too soon or make no sense."""

    def __init__(self, data: bytes, at: int, name: str) -> None:
        self.data, self.at, self.name = data, at, name

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, count: int) -> memoryview:
        if count > self.left:
            self._refuse("it ends too soon")
        self.at += count
        return memoryview(self.data)[self.at - count : self.at]

    def integer(self) -> int:
        (head,) = self.take(1)
        if head & 0x7F > 8:
            self._refuse("a whole number is too long")
        value = int.from_bytes(self.take(head & 0x7F), "little")
        return -value if head & 0x80 else value

    def real(self) -> float:
        mantissa, exponent = self.integer(), self.integer()
        if abs(exponent) > 200:
            self._refuse("a number is not finite")
        return math.ldexp(mantissa, exponent)

    def text(self) -> str:
        size = self.integer()
        if not 0 < size < _HEAD:
            self._refuse("a layer has no name")
        return bytes(self.take(size)).decode("ascii", errors="replace")

    def sizes(self, version: int) -> list[int]:
        found, *sizes = (self.integer() for _ in range(5))
        if found != version or min(sizes) < 0:
            self._refuse("a tensor has no sizes")
        return sizes

    def tensor(self) -> Tensor:
        raw = self.take(4 * math.prod(self.sizes(2)))
        values = torch.from_numpy(np.frombuffer(raw, "<f4").astype(np.float32))
        if not values.isfinite().all():
            self._refuse("weights are not finite")
        return values

    def _refuse(self, why: str) -> None:
        raise StorageError(
            f"{self.name} is damaged or cut short ({why} at byte {self.at}); download it again."
        )
