"""What is in a model file, read once, and only as far as it is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, StorageError
from ..memory import refuse_large
from .weights import read_weights


@dataclass(frozen=True)
class OnnxGraph:
    """The names of an ONNX model's outputs, and its inputs' shapes, 0 where a size is open."""

    outputs: tuple[str, ...]
    inputs: tuple[tuple[int, ...], ...]

    @property
    def picture(self) -> tuple[int, int] | None:
        """Height and width of the one picture that it takes, or None if it takes no such."""
        if len(self.inputs) != 1 or len(self.inputs[0]) != 4 or self.inputs[0][1] not in (0, 3):
            return None
        return self.inputs[0][2], self.inputs[0][3]


class Content:
    """A model file's content.

    Its properties raise StorageError for a file that is missing or damaged, InputError for one
    that holds something else, ImportError where the package onnx is needed and not installed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def graph(self) -> OnnxGraph | None:
        """Inputs and outputs of an ONNX model; None for other files."""
        if self.path.suffix.lower() != ".onnx":
            return None
        graph = read_onnx(self.path, load_external_data=False).graph
        return OnnxGraph(
            tuple(output.name for output in graph.output),
            tuple(
                tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
                for value in onnx_inputs(graph)
            ),
        )

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """The tensors of a .pth or .safetensors file, all finite; none for an ONNX model."""
        if self.path.suffix.lower() == ".onnx":
            return {}
        weights = read_weights(self.path)
        if wrong := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
            raise StorageError(
                f"{self.path} is damaged: {wrong[0]} holds numbers that are not finite; download "
                "it again."
            )
        return weights

    @cached_property
    def names(self) -> frozenset[str]:
        """The names of `weights`; of a .safetensors file its header alone is read."""
        if self.path.suffix.lower() != ".safetensors":
            return frozenset(self.weights)
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, "pt") as file:
                names = file.keys()
        except (SafetensorError, OSError) as error:
            raise StorageError(
                f"{self.path} is damaged or not a .safetensors file ({first_line(error)}); "
                "download it again."
            ) from error
        return frozenset(name.removeprefix("module.") for name in names)

    def __str__(self) -> str:
        held = (
            f"outputs {_few(self.graph.outputs)}" if self.graph else f"weights {_few(self.names)}"
        )
        return f"{self.path.name} with the {held}"


def read_onnx(path: Path, *, load_external_data: bool = True) -> Any:
    """An ONNX model with at least one layer; raises StorageError for another file."""
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=load_external_data)
    except Exception as error:  # protobuf's own error types
        refuse_large(path, error)
        raise StorageError(
            f"{path} is damaged or not an ONNX model ({first_line(error)}); download it again."
        ) from error
    if not model.graph.node:
        raise StorageError(
            f"{path} is damaged: an ONNX model without a single layer; download it again."
        )
    return model


def convolutions(path: Path) -> list[Tensor]:
    """The weight and the bias of each convolution of an ONNX model, in the order they are run.

    Raises InputError for one whose convolutions have other inputs, as quantised ones do.
    """
    from onnx import numpy_helper

    graph = read_onnx(path).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    names = [name for node in graph.node if node.op_type == "Conv" for name in node.input[1:]]
    if not tensors.keys() >= set(names):
        raise InputError(
            f"{path.name} holds quantised weights; take the file without int8 in its name."
        )
    return [torch.from_numpy(numpy_helper.to_array(tensors[name]).copy()) for name in names]


def onnx_inputs(graph: Any) -> list[Any]:
    """The inputs of an ONNX graph that are not weights."""
    weights = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in weights]


def first_line(error: BaseException) -> str:
    """The first line of an error's text, at most 200 letters; its type where it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__


def _few(names: tuple[str, ...] | frozenset[str]) -> str:
    listed = sorted(names) if isinstance(names, frozenset) else names
    return ", ".join(listed[:6]) + (", ..." if len(listed) > 6 else "") or "none"
