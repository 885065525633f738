"""dlib's face recognition network (King 2017) as a differentiable module, filled from its file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from .align import Alignment
from .dlib_file import Layer, read_layers

DLIB_ALIGNMENT = Alignment(
    torch.tensor([[46.7, 45.8], [101.5, 45.6], [72.8, 76.8], [50.9, 101.5], [98.1, 101.3]]), 150
)
"""Where the landmarks of YuNet lie, on average, in the faces that dlib cuts out by its own 68.

Measured on 93 faces; the descriptors differ by 0.16, as those by dlib's 68 and 5 points do (0.13).
"""

PUBLISHED = "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30"
"""SHA-256 of dlib_face_recognition_resnet_model_v1.dat, to whose weights the centre belongs."""

_CENTRE = """
    -0.101 0.077 0.063 -0.059 -0.110 0.000 -0.015 -0.110 0.155 -0.095 0.185 -0.038 -0.235 -0.041
    -0.023 0.148 -0.150 -0.136 -0.102 -0.056 0.013 0.031 0.022 0.033 -0.139 -0.322 -0.073 -0.093
    0.027 -0.074 -0.021 0.060 -0.167 -0.044 0.036 0.080 -0.068 -0.081 0.208 -0.002 -0.193 -0.004
    0.058 0.237 0.208 -0.010 0.030 -0.073 0.150 -0.274 0.051 0.134 0.099 0.080 0.085 -0.149
    0.016 0.152 -0.183 0.063 0.051 -0.089 -0.037 -0.042 0.177 0.108 -0.109 -0.146 0.170 -0.142
    -0.034 0.073 -0.119 -0.179 -0.264 0.028 0.387 0.128 -0.169 0.008 -0.064 -0.018 0.045 0.067
    -0.057 -0.040 -0.082 0.024 0.207 -0.038 -0.021 0.225 0.013 0.004 0.031 0.057 -0.104 -0.009
    -0.123 -0.010 0.040 -0.086 0.006 0.105 -0.178 0.163 -0.025 -0.005 -0.008 -0.031 -0.088
    -0.012 0.160 -0.245 0.187 0.168 0.003 0.136 0.056 0.048 0.011 -0.015 -0.149 -0.084 0.058
    -0.018 0.017 0.033
"""
# The mean descriptor of 44 people, each the mean of theirs, in the 68 faces that YuNet and dlib
# both find in the photos of dlib's examples/faces.

_BLOCKS = (
    *((32, 32, 1),) * 3,
    (32, 64, 2),
    *((64, 64, 1),) * 3,
    (64, 128, 2),
    *((128, 128, 1),) * 2,
    (128, 256, 2),
    *((256, 256, 1),) * 2,
    (256, 256, 2),
)
"""Channels in and out of each residual block, and its stride."""


class _Block(nn.Module):
    """Two convolutions beside a short cut, which averages 2x2 pixels where the first has stride 2.

    The two then differ in channels, and by a row and a column where a side is odd: the smaller is
    filled up with zeros.
    """

    def __init__(self, inward: int, outward: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.first = nn.Conv2d(inward, outward, 3, stride, padding=2 - stride)
        self.second = nn.Conv2d(outward, outward, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(F.relu(self.first(x)))
        if self.stride == 1:
            return F.relu(x + y)
        x = F.avg_pool2d(x, 2)
        shape = torch.Size(map(max, x.shape, y.shape))
        return F.relu(_filled_up(x, shape) + _filled_up(y, shape))


def _filled_up(x: Tensor, shape: torch.Size) -> Tensor:
    channels, rows, columns = (want - has for want, has in zip(shape[1:], x.shape[1:], strict=True))
    return F.pad(x, (0, columns, 0, rows, 0, channels))


class DlibResNet(nn.Module):
    """29 convolutions: faces (B,3,150,150), normalised, to descriptors (B,128) less their centre.

    dlib compares descriptors by their distance; one person's are nearer than 0.6. All lie in one
    corner of space, so that strangers have a cosine of 0.8. From the centre they point in all
    directions and are alike in length, r = 0.6, and the cosine is 1 - distance^2 / (2 r^2), about:
    0 for strangers, 0.5 at dlib's threshold. dlib's scales and shifts after each convolution are
    part of its weights here.
    """

    centre: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(128))
        self.stem = nn.Conv2d(3, 32, 7, 2)
        self.blocks = nn.Sequential(*(_Block(*block) for block in _BLOCKS))
        self.head = nn.Linear(256, 128, bias=False)

    def forward(self, faces: Tensor) -> Tensor:
        """Normalised faces (B,3,150,150) to descriptors (B,128) less their centre."""
        features = self.blocks(F.max_pool2d(F.relu(self.stem(faces)), 3, 2))
        return cast(Tensor, self.head(features.mean(dim=(2, 3))) - self.centre)


def load_dlib(path: Path) -> tuple[DlibResNet, tuple[float, float, float]]:
    """The published network from its .dat file, and the means of R, G and B that it subtracts.

    The means are of 0..255. Raises StorageError for a file that is damaged, InputError for another
    network and for other weights of this one, whose centre is not known.
    """
    network, means = read_network(path)
    if hashlib.sha256(path.read_bytes()).hexdigest() != PUBLISHED:
        raise InputError(
            f"{path.name} holds other weights than the published ones; download "
            "dlib_face_recognition_resnet_model_v1.dat again."
        )
    network.centre.copy_(torch.tensor([float(value) for value in _CENTRE.split()]))
    return network, means


def read_network(path: Path) -> tuple[DlibResNet, tuple[float, float, float]]:
    """As `load_dlib`, with any weights and without a centre: dlib's own descriptors."""
    means, layers = read_layers(path)
    kinds = [layer.kind for layer in layers]
    network = DlibResNet()
    if kinds != _kinds():
        raise InputError(
            f"{path.name} holds another network of dlib's, of {len(layers)} layers; expected "
            f"dlib_face_recognition_resnet_model_v1.dat, which has {len(_kinds())}."
        )
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    found = [layer for layer in layers if layer.kind in ("con_4", "affine_")]
    for conv, own, scale in zip(convolutions, found[::2], found[1::2], strict=True):
        _fill(conv, own, scale, path.name)
    _require(layers[-1].values, network.head.weight.numel(), path.name)
    network.head.weight.data = layers[-1].values.view(256, 128).T.contiguous()
    return network, means


def _kinds() -> list[str]:
    """The kinds of the layers in the order of the file."""
    kinds = ["con_4", "affine_", "relu_", "max_pool_2"]
    for *_, stride in _BLOCKS:
        kinds += ["con_4", "affine_", "relu_", "con_4", "affine_"]
        kinds += ["avg_pool_2"] * (stride - 1) + ["add_prev_", "relu_"]
    return [*kinds, "avg_pool_2", "fc_2"]


def _fill(conv: nn.Conv2d, own: Layer, scale: Layer, name: str) -> None:
    """Give a convolution its weights, times the scale and plus the shift of what follows it."""
    wide, size = conv.out_channels, conv.weight.numel()
    wanted = (wide, *conv.kernel_size, *conv.stride, *conv.padding, *conv.weight.shape)
    if own.numbers[: len(wanted)] != wanted:
        raise InputError(
            f"{name} holds a convolution of {own.numbers[:11]}; expected {wanted}. It is another "
            "network of dlib's."
        )
    _require(own.values, size + wide, name)
    _require(scale.values, 2 * wide, name)
    factor, shift = scale.values.split(wide)
    conv.weight.data = own.values[:size].view_as(conv.weight) * factor.view(-1, 1, 1, 1)
    conv.bias.data = own.values[size:] * factor + shift  # type: ignore[union-attr]


def _require(values: Tensor, count: int, name: str) -> None:
    if len(values) != count:
        raise InputError(
            f"{name} holds a layer of {len(values)} weights; expected {count}. It is another "
            "network of dlib's."
        )
