"""The gradient scope: ComfyUI's models opened for autograd, and put back bit by bit.

ComfyUI runs nodes in inference mode, so the weights it loads are inference tensors, which autograd
refuses to save. They may also lie on another device (--novram, streamed weights), wait for a cast
or for a LoRA's patch at every use, or be changed in place while a text encoder runs. The scope
hangs ordinary tensors in their place, holding what sampling would compute with. Where a weight is
already that, the tensor shares its memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.model_management as management
import torch
from comfy.clip_model import CLIPLayer
from comfy.ldm.modules.diffusionmodules.model import pytorch_attention
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ...magicapture.errors import UnsupportedModelError

_ABSENT = object()
_EVERYTHING = 1e20  # bytes; training needs what memory there is, so other models make room
_AS_IT_IS: dict[str, Any] = {  # a layer's weights are used without cast, patch or stream
    "comfy_cast_weights": False,
    "weight_function": (),
    "bias_function": (),
    "_v": _ABSENT,
}


@dataclass(frozen=True)
class Part:
    """A network to open: the patcher that manages it, its root module, the dtype it computes in."""

    patcher: ModelPatcher
    module: nn.Module
    dtype: torch.dtype


@contextmanager
def gradients(parts: Iterable[Part]) -> Iterator[None]:
    """Let gradients flow through frozen models, also from inside the executor's inference mode.

    The models are loaded first, as for sampling and with the LoRAs applied to them. On the way out
    the very same tensors, flags and functions are back, also after an exception. Do not let
    ComfyUI load or unload these models meanwhile. Raises UnsupportedModelError for weights that
    cannot be trained through: quantised ones, or layers replaced by a LoRA in bypass mode.
    """
    parts = list({id(part.module): part for part in parts}.values())
    for part in parts:
        _check_trainable(part)
    _load(parts)
    try:
        with torch.inference_mode(False), torch.enable_grad(), ExitStack() as opened:
            for part in parts:
                for module in part.module.modules():
                    opened.enter_context(_opened(module, part.patcher.load_device, part.dtype))
            yield
    finally:
        management.soft_empty_cache()


@contextmanager
def gradients_while_sampling(part: Part) -> Iterator[None]:
    """`gradients` for a model in the middle of sampling: nothing is loaded or unloaded.

    Weights that lie on the computing device are used as they lie, cast at each use where sampling
    casts them. Those that wait elsewhere (low VRAM, streamed) are brought over for the while.
    """
    device = part.patcher.load_device
    with torch.inference_mode(False), torch.enable_grad(), ExitStack() as opened:
        for module in part.module.modules():
            own = [p for p in module._parameters.values() if p is not None]
            if all(p.device == device for p in own) and not hasattr(module, "_v"):
                opened.enter_context(_as_it_lies(module))
            else:
                opened.enter_context(_opened(module, device, part.dtype))
        yield


@contextmanager
def _as_it_lies(module: nn.Module) -> Iterator[None]:
    """One module with ordinary weights over the same memory; quantised ones are left alone."""
    with torch.no_grad():
        weights = {
            name: nn.Parameter(_ordinary(p, p.device, p.dtype), requires_grad=False)
            for name, p in module._parameters.items()
            if type(p) is nn.Parameter
        }
        buffers = {
            name: _ordinary(b, b.device, b.dtype)
            for name, b in module._buffers.items()
            if b is not None
        }
    with _entries(module._parameters, weights), _entries(module._buffers, buffers):
        yield


def _check_trainable(part: Part) -> None:
    name = type(part.patcher.model).__name__
    if part.patcher.injections:
        raise UnsupportedModelError(
            f"The {name} carries a LoRA in bypass mode (or other replaced layers), through which "
            "nothing can be trained. Load the LoRA without bypass, or connect the plain model."
        )
    for module in part.module.modules():
        quantised = getattr(module, "scale_weight", None) is not None or any(
            type(p) is not nn.Parameter for p in module._parameters.values() if p is not None
        )
        if quantised:
            raise UnsupportedModelError(
                f"The {name} has quantised weights ({type(module).__name__}); training needs "
                "plain ones. Load a checkpoint in fp16, bf16 or fp32."
            )


def _load(parts: Iterable[Part]) -> None:
    """Load the models together as the executor would, but keep what is cast off the GPU."""
    patchers = list(dict.fromkeys(part.patcher for part in parts))
    with torch.inference_mode():
        management.load_models_gpu(patchers, memory_required=_EVERYTHING, force_full_load=True)
        for part in parts:
            if _is_cast(part) and not _is_streamed(part.patcher):
                # Else both the cast copies and the originals would take the GPU's memory.
                part.patcher.partially_unload(part.patcher.offload_device, _EVERYTHING)


def _is_cast(part: Part) -> bool:
    dtypes = {p.dtype for p in part.module.parameters() if p.is_floating_point()}
    return dtypes != {part.dtype}


def _is_streamed(patcher: ModelPatcher) -> bool:
    """Whether weights stay in RAM and are streamed (0.33's dynamic VRAM)."""
    return getattr(patcher, "is_dynamic", lambda: False)()


@contextmanager
def _opened(module: nn.Module, device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """One module with ordinary weights, ready to compute, and without in-place additions."""
    with torch.no_grad():
        weights = {
            name: nn.Parameter(_weight(module, name, device, dtype), requires_grad=False)
            for name, parameter in module._parameters.items()
            if parameter is not None
        }
        buffers = {
            name: _ordinary(buffer, device, dtype)
            for name, buffer in module._buffers.items()
            if buffer is not None
        }
    attributes: dict[str, Any] = {"training": False}
    if hasattr(module, "comfy_cast_weights"):
        attributes |= _AS_IT_IS
    if "optimized_attention" in vars(module):  # the VAE's: xformers has no gradient at its width
        attributes["optimized_attention"] = pytorch_attention
    if isinstance(module, CLIPLayer):
        attributes["forward"] = partial(_clip_layer, module)
    with (
        _entries(module._parameters, weights),
        _entries(module._buffers, buffers),
        _entries(vars(module), attributes),
    ):
        yield


@contextmanager
def _entries(mapping: MutableMapping[str, Any], values: dict[str, Any]) -> Iterator[None]:
    """Set entries of a dict, or take away those that are _ABSENT, for a while."""
    before = {name: mapping.get(name, _ABSENT) for name in values}
    try:
        _put(mapping, values)
        yield
    finally:
        _put(mapping, before)


def _put(mapping: MutableMapping[str, Any], values: dict[str, Any]) -> None:
    for name, value in values.items():
        if value is _ABSENT:
            mapping.pop(name, None)
        else:
            mapping[name] = value


def _weight(module: nn.Module, name: str, device: torch.device, dtype: torch.dtype) -> Tensor:
    """What sampling would compute with: moved, cast and patched."""
    weight = module._parameters[name]
    streamed = getattr(module, f"{name}_lowvram_function", None) if hasattr(module, "_v") else None
    patches = [p for p in (streamed, *getattr(module, f"{name}_function", ())) if p is not None]
    if not patches:
        return _ordinary(weight, device, dtype)
    weight = weight.to(device=device, dtype=dtype, copy=True)
    for patch in patches:
        weight = patch(weight)
    return weight


def _ordinary(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The tensor on the device and, if it holds floats, in the dtype; never an inference tensor."""
    if tensor.is_meta:  # missing from the checkpoint; ComfyUI takes zeros as well
        tensor = torch.zeros(tensor.shape, dtype=tensor.dtype)
    tensor = tensor.detach().to(device=device, dtype=dtype if tensor.is_floating_point() else None)
    if not tensor.is_inference():
        return tensor
    # Inference belongs to a tensor, not to its memory: an ordinary one may look at the same.
    sharing = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return sharing.set_(
        tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
    )


def _clip_layer(
    layer: CLIPLayer, x: Tensor, mask: Tensor | None = None, optimized_attention: Any = None
) -> Tensor:
    """A layer of CLIP's text encoder; ComfyUI's own adds in place, which autograd refuses."""
    x = x + layer.self_attn(layer.layer_norm1(x), mask, optimized_attention)
    return x + layer.mlp(layer.layer_norm2(x))
