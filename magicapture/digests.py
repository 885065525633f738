"""Hashes that tell models and settings apart by all their bytes, wherever the weights lie."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (str, bytes, int, float, complex, type(None), Enum, torch.dtype, torch.Size)
_ORDINARY = (Tensor, nn.Parameter)
_NO_MATTER = frozenset(["training", "gradient_checkpointing", "name", "transformers_version"])
"""Attributes that change nothing of what a network computes once it is in evaluation mode."""


def digest(*values: object) -> str:
    """One hash of values: equal values have an equal one, in any process and on any device.

    Tensors count with dtype, shape and every byte; networks with every parameter, buffer and
    public attribute and the class of every layer; containers with what they hold; a function with
    its name and what it closes over; any other object with its class and public attributes.
    """
    parts: list[str | Tensor] = []
    _collect(values, parts, {})
    # hashlib lets go of the interpreter's lock: 2 GB of Stable Diffusion 1.5 take about a second.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        lines = [p if isinstance(p, str) else pool.submit(_tensor_line, p) for p in parts]
        texts = [line if isinstance(line, str) else line.result() for line in lines]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def file_digest(file: Path) -> str:
    """The SHA-256 of a file's bytes."""
    found = hashlib.sha256()
    with file.open("rb") as opened:
        while part := opened.read(2**22):
            found.update(part)
    return found.hexdigest()


def tokenizer_digest(tokenizer: Any) -> str:
    """A hash of the words of a CLIPTokenizer from transformers, and of how it finds them."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # transformers 4's own, in Python
        text = repr((sorted(tokenizer.get_vocab().items()), list(tokenizer.bpe_ranks)))
    else:  # what comes before in the JSON is how it was last used: truncation and padding
        text = backend.to_str().partition('"added_tokens"')[2]
    return hashlib.sha256(text.encode()).hexdigest()


def _tensor_line(part: Tensor) -> str:
    tensor = part.detach()
    if type(part) not in _ORDINARY:  # a quantised one keeps its numbers elsewhere
        tensor = tensor.dequantize()
    line = f"{tensor.dtype} {tuple(tensor.shape)}"
    if tensor.is_meta:
        return line
    data = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return f"{line} {hashlib.sha256(data).hexdigest()}"


def _collect(value: Any, parts: list[str | Tensor], seen: dict[int, object]) -> None:
    """Add what makes a value what it is, in order: texts, and tensors that are yet to be hashed."""
    if isinstance(value, _PLAIN):
        parts.append(repr(value))
    elif isinstance(value, Tensor):
        parts.append(value)
    elif isinstance(value, type | BuiltinFunctionType):
        parts.append(_name(value))
    elif isinstance(value, list | tuple):
        parts.append(f"{len(value)} items")
        for item in value:
            _collect(item, parts, seen)
    elif isinstance(value, set | frozenset):
        _collect(sorted(value, key=repr), parts, seen)
    elif isinstance(value, Mapping):
        _collect(sorted(value.items(), key=lambda item: repr(item[0])), parts, seen)
    elif id(value) in seen:
        parts.append("seen before")
    else:
        seen[id(value)] = value  # which also keeps its id from being given to another
        _collect(_made_of(value, seen), parts, seen)


def _made_of(value: Any, seen: dict[int, object]) -> Any:
    """An object as a list or tuple of what it consists of."""
    if isinstance(value, nn.Module):
        modules = dict(value.named_modules())
        seen.update({id(module): module for module in modules.values()})
        return [(name, *_layer(module)) for name, module in modules.items()]
    if isinstance(value, partial):
        return "partial", value.func, value.args, value.keywords
    if isinstance(value, MethodType):
        return "method", value.__func__, value.__self__
    if isinstance(value, FunctionType):
        closed = [cell.cell_contents for cell in value.__closure__ or ()]
        return _name(value), value.__defaults__, closed
    return _name(type(value)), _attributes(value)


def _layer(module: nn.Module) -> tuple[object, ...]:
    """What one layer is, but for the layers inside it."""
    config = getattr(module, "config", None)  # diffusers' is a dict that it keeps to itself
    return (
        _name(type(module)),
        _code(module),
        _public(config) if isinstance(config, Mapping) else None,
        _attributes(module),
        list(module.named_parameters(recurse=False)),
        list(module.named_buffers(recurse=False)),
    )


def _attributes(value: object) -> dict[str, Any]:
    return _public(getattr(value, "__dict__", {}))


def _public(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in values.items() if not k.startswith("_") and k not in _NO_MATTER}


def _code(module: nn.Module) -> object:
    """What a network read from TorchScript or ONNX does, which its class does not tell."""
    if isinstance(module, torch.fx.GraphModule):
        return module.code
    if isinstance(module, torch.jit.ScriptModule):
        try:
            text, constants = module.code_with_constants  # a trace keeps tensors in its code
        except (AttributeError, RuntimeError):  # a part without a `forward`
            return None
        return text, constants.const_mapping
    return None


def _name(of: Any) -> str:
    return f"{of.__module__}.{of.__qualname__}"
