"""What a gradient needs of a sampling: the sampler's own latents, and passes autograd can go back.

Other nodes' patches and ControlNets may change features in place, which autograd refuses, and may
have weights that it cannot save.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from functools import partial, wraps
from types import SimpleNamespace
from typing import Any

import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.samplers import KSAMPLER
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from .attention import OVERRIDE

Shown = Callable[[Tensor], Tensor]
"""What the network is shown of latents: mixed with the noised picture outside a noise mask."""

Move = Callable[[Any, Tensor, Tensor, Any, Shown], None]
"""Changes latents in place: gets the guider, them, their sigma, model options and `Shown`."""

# -- the sampler's latents ----------------------------------------------------------------------


@contextmanager
def moving(sampler: Any, move: Move) -> Iterator[bool]:
    """Let a sampler's own latents be moved before each of its predictions.

    Under a noise mask a guider gets a mixture, which the sampler never sees again. Gives whether
    the sampler is of ComfyUI's own kind, as all stock ones are; others are left alone.
    """
    if not isinstance(sampler, KSAMPLER):
        yield False
        return
    function = sampler.sampler_function

    @wraps(function)
    def sample(model: Any, *args: Any, **kwargs: Any) -> Tensor:
        return function(_Moving(model, move), *args, **kwargs)

    sampler.sampler_function = sample
    try:
        yield True
    finally:
        sampler.sampler_function = function


class _Moving:
    """A sampler's model, KSamplerX0Inpaint, which is called with the sampler's own latents."""

    def __init__(self, model: Any, move: Move) -> None:
        self._model, self._move = model, move

    def __call__(
        self,
        x: Tensor,
        sigma: Tensor,
        denoise_mask: Tensor | None = None,
        model_options: Any = None,
        seed: Any = None,
    ) -> Tensor:
        options = model_options or {}
        shown = partial(_shown, self._model, sigma, denoise_mask, options)
        self._move(self._model.inner_model, x, sigma, options, shown)
        return self._model(x, sigma, denoise_mask, model_options=options, seed=seed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _shown(
    model: Any, sigma: Tensor, denoise_mask: Tensor | None, options: Any, x: Tensor
) -> Tensor:
    if denoise_mask is None:
        return x
    seen = _Seen(model.inner_model)
    mixing = copy(model)
    mixing.inner_model = seen
    mixing(x, sigma.clone(), denoise_mask.clone(), model_options=options)
    return seen.shown


class _Seen:
    """A guider that keeps what it is called with, in place of predicting from it."""

    shown: Tensor

    def __init__(self, guider: Any) -> None:
        self._guider = guider

    def __call__(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        self.shown = x
        return x

    def __getattr__(self, name: str) -> Any:
        return getattr(self._guider, name)


# -- passes that autograd can go back -------------------------------------------------------------


def differentiable(options: Mapping[str, Any]) -> dict[str, Any]:
    """The transformer_options of a pass, such that autograd can go back through it.

    Attention is PyTorch's, which has a gradient, whichever kernel ComfyUI was started with.
    """
    patches = {
        kind: [_apart(patch) for patch in listed]
        for kind, listed in options.get("patches", {}).items()
    }
    return {**options, "patches": patches, OVERRIDE: _pytorch}


def unseen(options: Mapping[str, Any]) -> dict[str, Any]:
    """The transformer_options of passes that EasyCache is not to learn from, nor to skip."""
    wrappers = {
        kind: {key: own for key, own in keyed.items() if key != "easycache"}
        for kind, keyed in options.get("wrappers", {}).items()
    }
    return {**options, "wrappers": wrappers}


def _apart(patch: Callable[..., Any]) -> Callable[..., Any]:
    """A patch of features that may change them in place (FreeU): it gets copies.

    A transformer hands them over in a dict, and takes a dict back. What a patch has autograd keep
    is copied as well, as it may change that in turn. Where autograd cannot keep the patch's own
    weights, what it adds counts as a constant.
    """

    def patched(*args: Any, **kwargs: Any) -> Any:
        try:
            with saved_tensors_hooks(_kept, _given_back):
                return patch(*(_each(Tensor.clone, a) for a in args), **kwargs)
        except RuntimeError as error:
            if "nference tensor" not in str(error):
                raise
        with torch.no_grad():
            out = patch(*(_each(_kept, a) for a in args), **kwargs)
        if isinstance(out, Tensor):
            return _added(args[0], out)
        if isinstance(out, dict):
            given = args[0] if isinstance(args[0], dict) else dict(zip("qkv", args, strict=False))
            return {name: _added(given.get(name), value) for name, value in out.items()}
        return tuple(_added(a, o) for a, o in zip(args, out, strict=False))

    return patched


def _each(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """A tensor changed, or those right in a dict; anything else as it is."""
    if isinstance(value, dict):
        return {n: change(v) if isinstance(v, Tensor) else v for n, v in value.items()}
    return change(value) if isinstance(value, Tensor) else value


def _added(before: Any, after: Any) -> Any:
    """What a patch made, with the gradient of what came in."""
    if not (isinstance(before, Tensor) and isinstance(after, Tensor)):
        return after
    return before + (after - before.detach()) if before.shape == after.shape else after


def _kept(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def _given_back(tensor: Tensor) -> Tensor:
    return tensor


def _pytorch(_: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    return attention_pytorch(*args, **kwargs)


# -- ControlNets ----------------------------------------------------------------------------------


class _Hint(Tensor):
    """What a ControlNet adds; ComfyUI's `features += hint` makes a new tensor of it.

    Changed in place, the features would not be those that autograd has kept, or would compute
    anew from.
    """

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        function = Tensor.add if function is Tensor.add_ else function
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))


class _Frozen:
    """A ControlNet whose output counts as a constant: it has no gradient and needs none."""

    def __init__(self, control: Any) -> None:
        self._control = control

    def get_control(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch.inference_mode():
            output = self._control.get_control(x.detach(), *args, **kwargs)
        return {
            name: [None if hint is None else hint.clone().as_subclass(_Hint) for hint in hints]
            for name, hints in (output or {}).items()
        }

    def __getattr__(self, name: str) -> Any:
        return getattr(self._control, name)


class _FrozenBoxes:
    """A GLIGEN whose boxes count as constants; what its layers make of them is for `_apart`."""

    def __init__(self, network: Any) -> None:
        self._network = network

    def set_position(self, *args: Any) -> Any:
        with torch.no_grad():
            return self._network.set_position(*args)

    def set_empty(self, *args: Any) -> Any:
        with torch.no_grad():
            return self._network.set_empty(*args)


def frozen_controls(conds: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A sampler's conditionings with every ControlNet and GLIGEN frozen, the same one staying one.

    Autograd cannot keep their weights.
    """
    frozen: dict[int, _Frozen] = {}
    return [_frozen(cond, frozen) for cond in conds]


def _frozen(cond: dict[str, Any], controls: dict[int, _Frozen]) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    if (control := cond.get("control")) is not None:
        changed["control"] = controls.setdefault(id(control), _Frozen(control))
    if (boxes := cond.get("gligen")) is not None:
        kind, patcher, *rest = boxes
        changed["gligen"] = (kind, SimpleNamespace(model=_FrozenBoxes(patcher.model)), *rest)
    return {**cond, **changed}
