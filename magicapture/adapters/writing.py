"""A safetensors file, written tensor by tensor so that its contents are in memory once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def writer(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Callable[[Path], None]:
    """A function that writes float tensors of the CPU, and text by name, to a path.

    safetensors' own `save_file` copies the tensors in older versions, leaves files of its own
    behind where it is killed, and writes for the file's owner alone.
    """

    def write(path: Path) -> None:
        header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
        position = 0
        for name, tensor in tensors.items():
            end = position + tensor.nbytes
            header[name] = {
                "dtype": _DTYPES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [position, end],
            }
            position = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for tensor in tensors.values():
                flat = tensor.detach().contiguous().reshape(-1)
                file.write(flat.view(torch.uint8).numpy().data)

    return write
