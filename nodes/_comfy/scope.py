"""The gradient scope: ComfyUI's models opened for autograd, and put back bit by bit.

ComfyUI runs nodes in inference mode, so the weights it loads are inference tensors, which autograd
refuses to save. They may also lie on another device (--novram, streamed weights), or wait for a
cast, for a LoRA's patch or to be dequantised at every use. Linear layers, nearly all of a large
model, stay as they are: `FrozenLinear` has ComfyUI make their weights anew in both passes. For the
rest (convolutions, norms, embeddings) the scope hangs ordinary tensors in place, holding what
sampling would compute with; where a weight is already that, the tensor shares its memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.model_management as management
import torch
from comfy.ldm.modules.diffusionmodules.model import pytorch_attention
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...magicapture.errors import UnsupportedModelError
from .frozen import frozen, is_known_linear, is_linear, patched, present
from .inplace import out_of_place

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
    ComfyUI load or unload these models meanwhile. Raises UnsupportedModelError for layers replaced
    by a LoRA in bypass mode, and for weights quantised in a way that ComfyUI's cast cannot undo.
    """
    parts = list({id(part.module): part for part in parts}.values())
    for part in parts:
        _check_trainable(part)
    _load(parts)
    try:
        with _differentiable(), ExitStack() as opened:
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
    casts them. Those that wait elsewhere (low VRAM, streamed) are brought over for the while,
    linear layers' at each use.
    """
    device = part.patcher.load_device
    with _differentiable(), ExitStack() as opened:
        for module in part.module.modules():
            own = [p for p in module._parameters.values() if p is not None]
            lies = all(p.device == device for p in own) and not hasattr(module, "_v")
            opened.enter_context(_opened(module, None if lies else device, part.dtype))
        yield


def _check_trainable(part: Part) -> None:
    name = type(part.patcher.model).__name__
    if part.patcher.injections:
        raise UnsupportedModelError(
            f"The {name} carries a LoRA in bypass mode (or other replaced layers), through which "
            "nothing can be trained: load the LoRA without bypass, or connect the plain model."
        )
    for module in part.module.modules():
        if _is_quantised(module) and not _is_cast_in_use(module):
            raise UnsupportedModelError(
                f"The {name} has weights quantised in a way that nothing can be trained through "
                f"({type(module).__name__}): load a checkpoint in fp8, fp16, bf16 or fp32."
            )


def _is_quantised(module: nn.Module) -> bool:
    return getattr(module, "scale_weight", None) is not None or any(
        type(p) is not nn.Parameter for p in module._parameters.values() if p is not None
    )


def _is_cast_in_use(module: nn.Module) -> bool:
    """Whether weights stay the very same: autograd needs none of an embedding's either."""
    return is_known_linear(module) or (isinstance(module, nn.Embedding) and _is_quantised(module))


def _load(parts: Iterable[Part]) -> None:
    """Load the models together, as the executor would; whole where the device can hold them."""
    patchers = list(dict.fromkeys(part.patcher for part in parts))
    whole = all(_fit(patchers, device) for device in {one.load_device for one in patchers})
    with torch.inference_mode():
        management.load_models_gpu(patchers, memory_required=_EVERYTHING, force_full_load=whole)


def _fit(patchers: Iterable[ModelPatcher], device: torch.device) -> bool:
    """Whether the weights fit on a device once others have made room; else ComfyUI streams them."""
    if management.is_device_cpu(device):  # where they are already
        return True
    known = [one for one in management.current_loaded_models if one.model is not None]
    freed = sum(one.model_loaded_memory() for one in known if one.device == device)
    weights = sum(one.model_size() for one in patchers if one.load_device == device)
    return bool(weights <= management.get_free_memory(device) + freed)


@contextmanager
def _differentiable() -> Iterator[None]:
    """Autograd on, and 0.33 told to leave out its fused kernels, which have no gradient."""
    told = {"in_training": True} if hasattr(management, "in_training") else {}
    with torch.inference_mode(False), torch.enable_grad(), _entries(vars(management), told):
        yield


@contextmanager
def _opened(module: nn.Module, device: torch.device | None, dtype: torch.dtype) -> Iterator[None]:
    """One module with weights that autograd takes, and with nothing changed in place.

    device: where the weights are to be, in `dtype`; None uses them as they lie.
    """
    attributes: dict[str, Any] = {"training": False}
    if "optimized_attention" in vars(module):  # the VAE's: xformers has no gradient at its width
        attributes["optimized_attention"] = pytorch_attention
    if "frames_to_trim" in vars(module):  # a film's tiny VAE keeps no gradient frame by frame
        attributes["parallel"] = True
    if (forward := _forward_of(module)) is not None:
        attributes["forward"] = forward
    weights: dict[str, Any] = {}
    buffers: dict[str, Any] = {}
    if not _is_cast_in_use(module):
        if is_linear(module):  # of another pack, which casts in a `forward` of its own
            device = None
        weights, buffers = _tensors(module, device, dtype)
        if device is not None and hasattr(module, "comfy_cast_weights"):
            attributes |= _AS_IT_IS
    with (
        _entries(module._parameters, weights),
        _entries(module._buffers, buffers),
        _entries(vars(module), attributes),
    ):
        yield


def _forward_of(module: nn.Module) -> Callable[..., Any] | None:
    """A `forward` for gradients, or None where the own will do."""
    if is_known_linear(module):
        return frozen(module)
    if is_linear(module):  # of another pack: whatever it makes of its weight is not kept either
        return partial(checkpoint, module.forward, use_reentrant=False)
    return out_of_place(module)


@torch.no_grad()
def _tensors(
    module: nn.Module, device: torch.device | None, dtype: torch.dtype
) -> tuple[dict[str, nn.Parameter], dict[str, Tensor]]:
    """Ordinary parameters and buffers, patched and cast, or (device None) as they lie."""
    own = {n: p for n, p in module._parameters.items() if type(p) is nn.Parameter}
    buffers = {n: b for n, b in module._buffers.items() if b is not None}
    if device is None:
        weights = {name: _ordinary(parameter) for name, parameter in own.items()}
        return _parameters(weights), {name: _ordinary(b) for name, b in buffers.items()}
    weights = {n: _ordinary(patched(module, n, device, dtype), device, dtype) for n in own}
    return _parameters(weights), {n: _ordinary(b, device, dtype) for n, b in buffers.items()}


def _parameters(weights: dict[str, Tensor]) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(w, requires_grad=False) for name, w in weights.items()}


def _ordinary(
    tensor: Tensor, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """The tensor on the device and, if it holds floats, in the dtype; never an inference tensor."""
    tensor = (
        present(tensor)
        .detach()
        .to(device=device, dtype=dtype if tensor.is_floating_point() else None)
    )
    if not tensor.is_inference():
        return tensor
    # Inference belongs to a tensor, not to its memory: an ordinary one may look at the same.
    sharing = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return sharing.set_(
        tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
    )


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
