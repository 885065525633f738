"""Aesthetic scores by a linear head on CLIP's picture embeddings, as LAION's predictors are.

Both of LAION's are read: one layer (LAION-AI/aesthetic-predictor), and five with nothing between
them but dropout (christophschuhmann/improved-aesthetic-predictor), which fold into one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from ..errors import InputError
from ..weight_files import read_tensors

_WEIGHT = "weight"


@dataclass(frozen=True, eq=False)
class AestheticHead:
    """weight (D,) and bias over unit embeddings; its scores go from about 1 to 10."""

    weight: Tensor
    bias: float
    name: str = ""

    def __call__(self, embeddings: Tensor) -> Tensor:
        """The scores (N,) of unit embeddings (N,D); raises InputError for another width."""
        if embeddings.shape[-1] != len(self.weight):
            raise InputError(
                f"{self.name or 'The aesthetic head'} is for CLIP embeddings of "
                f"{len(self.weight)} numbers, and this CLIP model's have {embeddings.shape[-1]}; "
                "give the head that was made for it. LAION's are for ViT-L/14, which has 768."
            )
        return embeddings.float() @ self.weight + self.bias


def load_aesthetic_head(path: Path) -> AestheticHead:
    """The head of a file: linear layers, one after the other, from an embedding to one number.

    Raises StorageError for a file that is missing or damaged, InputError for anything else in it.
    """
    tensors = read_tensors(path)
    names = [name for name in tensors if name.rpartition(".")[2] == _WEIGHT]
    names.sort(key=lambda name: [int(part) for part in re.findall(r"\d+", name)])
    biases = [name.removesuffix(_WEIGHT) + "bias" for name in names]
    layers = [tensors[name].double() for name in names]
    shapes = [tuple(layer.shape) for layer in layers]
    fits = (
        bool(layers)
        and all(len(shape) == 2 for shape in shapes)
        and all(one[0] == after[1] for one, after in pairwise(shapes))
        and shapes[-1][0] == 1
        and tensors.keys() <= {*names, *biases}
        and all(
            name not in tensors or tensors[name].shape == shape[:1]
            for name, shape in zip(biases, shapes, strict=True)
        )
    )
    if not fits:
        raise InputError(
            f"{path} holds weights of shapes {shapes[:6]}; expected linear layers that lead from "
            "a CLIP embedding to one number, as LAION's aesthetic predictors are."
        )
    whole, bias = torch.eye(shapes[0][1]).double(), torch.zeros(shapes[0][1]).double()
    for layer, name in zip(layers, biases, strict=True):
        whole, bias = layer @ whole, layer @ bias + tensors.get(name, torch.zeros(len(layer)))
    return AestheticHead(whole[0].float(), float(bias[0]), path.name)
