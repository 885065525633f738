"""What a pass over tensors without values takes: the bytes that are alive at the most, and FLOPs.

A network whose weights are fake (PyTorch's FakeTensor: shape, dtype and device, no memory) runs as
it would, autograd, checkpoints, hooks and all, and computes nothing.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

Result = TypeVar("Result")

_ATEN = torch.ops.aten
_COUNTED_AS = {  # the CPU's attention is as the GPU's; flop_counter knows the latter alone
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _ATEN._scaled_dot_product_flash_attention,
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: (
        _ATEN._scaled_dot_product_flash_attention_backward
    ),
}


class Ledger(TorchDispatchMode):
    """Counts what the fake tensors made inside would take.

    present: fake tensors that are there already; neither they nor views of them count.
    live, peak: bytes alive now and at the most. flops: floating-point operations of matrix
    products, convolutions and attentions, a multiplication and an addition being two.
    """

    def __init__(self, present: Iterable[Tensor]) -> None:
        super().__init__()
        self.live = self.peak = self.flops = 0
        self._sizes = {tensor.untyped_storage()._cdata: 0 for tensor in present}

    def counting(
        self, function: Callable[..., Result], add: Callable[[int], None]
    ) -> Callable[..., Result]:
        """The function, each call of which tells `add` how many FLOPs it took."""

        def call(*args: Any) -> Result:
            before = self.flops
            result = function(*args)
            add(self.flops - before)
            return result

        return call

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        kind = _COUNTED_AS.get(func._overloadpacket, func._overloadpacket)
        if (count := flop_registry.get(kind)) is not None:
            self.flops += count(*args, **kwargs, out_val=result)
        for tensor in tree_leaves(result):
            if isinstance(tensor, FakeTensor):
                self._see(tensor)
        return result

    def _see(self, tensor: FakeTensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.live += self._sizes[key]
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.live -= self._sizes.pop(key)


def fake_mode() -> FakeTensorMode:
    """The mode that fake tensors which meet each other have in common."""
    return FakeTensorMode(allow_non_fake_inputs=True)


@contextmanager
def faked(
    modules: Iterable[nn.Module], mode: FakeTensorMode, dtype: torch.dtype | None = None
) -> Iterator[list[Tensor]]:
    """Hang fake parameters and buffers into modules, and put back the very same ones after.

    dtype: of the frozen ones that hold floats; None leaves it. Yields the fake ones. What is
    computed with them is fake as well; what is not stays real.
    """
    made: dict[int, tuple[Tensor, Tensor]] = {}  # with the real one, whose id is then not reused
    before: list[tuple[dict[str, Any], str, Tensor]] = []
    try:
        for owner in (owner for module in modules for owner in module.modules()):
            places: tuple[dict[str, Any], ...] = owner._parameters, owner._buffers
            for place in places:
                for name, tensor in _present(place):
                    if id(tensor) not in made:
                        made[id(tensor)] = _fake(tensor, mode, dtype), tensor
                    before.append((place, name, tensor))
                    place[name] = made[id(tensor)][0]
        yield [fake for fake, _ in made.values()]
    finally:
        for place, name, tensor in reversed(before):
            place[name] = tensor


def _present(place: Mapping[str, Tensor | None]) -> list[tuple[str, Tensor]]:
    return [(n, t) for n, t in place.items() if t is not None and not isinstance(t, FakeTensor)]


def _fake(tensor: Tensor, mode: FakeTensorMode, dtype: torch.dtype | None) -> Tensor:
    """One of the same shape, strides and device; a parameter for a parameter."""
    is_weight = isinstance(tensor, nn.Parameter)
    frozen = is_weight and not tensor.requires_grad and tensor.is_floating_point()
    device = torch.device("cpu") if tensor.is_meta else tensor.device
    with torch.inference_mode(False), mode:
        fake = torch.empty_strided(
            tensor.size(),
            tensor.stride(),
            dtype=dtype if frozen and dtype else tensor.dtype,
            device=device,
        )
    return nn.Parameter(fake, requires_grad=tensor.requires_grad) if is_weight else fake
