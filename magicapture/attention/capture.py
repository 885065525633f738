"""The one recorder of attention: what layers project in a pass, kept while it is wanted.

Training, previews, refocusing and MagicFace all read through it. Forward hooks on the projections
keep their outputs and nothing else, so the UNet's fused attention and its result stay bit-equal.
Maps are computed afterwards, outside any gradient checkpoint, and their gradient runs back through
the recorded queries and keys.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ..errors import InputError, UnsupportedModelError
from .layers import cross_attentions, select
from .maps import LayerMaps, Positions, TokenColumns, head_mean, map_size, token_attention

Hook = Callable[[nn.Module, Any, Tensor], None]


class AttentionCapture:
    """Records what some attention layers project, and turns queries and keys into maps.

    factors: which layers to map, by `LayerMaps.factor`; None maps all of them. projections: which
    to record, in the order in which a layer computes them.
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        factors: Collection[int] | None = None,
        projections: tuple[str, ...] = ("to_q", "to_k"),
    ) -> None:
        self.layers = dict(layers)
        self._factors = None if factors is None else set(factors)
        self._projections = projections
        self._found: dict[str, dict[str, Tensor]] = {}

    @contextmanager
    def recording(self, until: str | None = None) -> Iterator[None]:
        """Record the forward pass run inside; a later pass inside replaces an earlier one.

        until: a layer behind whose last projection the pass is stopped, silently; what follows it
        in the `with` block is skipped. The hooks exist only here, on the projections as they are
        now, so a LoRA injected before counts, and a backward pass outside recomputes its
        checkpoints unrecorded. An exception drops what was recorded.
        """
        self.forget()
        stop = _StopError()
        try:
            with ExitStack() as hooks:
                for name, layer in self.layers.items():
                    for projection in self._projections:
                        last = name == until and projection == self._projections[-1]
                        hook = self._keep(name, projection, stop if last else None)
                        handle = layer.get_submodule(projection).register_forward_hook(hook)
                        hooks.callback(handle.remove)
                yield
        except _StopError as reached:
            if reached is not stop:
                raise
        except BaseException:
            self.forget()
            raise

    def _keep(self, name: str, projection: str, stop: _StopError | None) -> Hook:
        """A forward hook that keeps the output and performs no operation on it."""

        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self._found.setdefault(name, {})[projection] = output
            if stop is not None:
                raise stop

        return hook

    def has(self, name: str) -> bool:
        """Whether the pass has gone through all of a layer's projections."""
        return len(self._found.get(name, {})) == len(self._projections)

    def queries(self, name: str) -> int:
        """How many places a recorded layer maps."""
        return self._found[name]["to_q"].shape[1]

    def take(self, name: str) -> tuple[Tensor, ...]:
        """A layer's projections, each (B,N,heads*d), now forgotten.

        Raises UnsupportedModelError where the pass did not go through them.
        """
        if not self.has(name):
            raise UnsupportedModelError(
                f"The model did not compute its attention layer {name!r} as usual: it is compiled "
                "or patched by something else. Leave that out."
            )
        found = self._found.pop(name)
        return tuple(found[projection] for projection in self._projections)

    def heads(self, name: str) -> int:
        """A layer's number of heads."""
        return int(self.layers[name].heads)  # type: ignore[arg-type]

    def recorded_factors(self, latent_size: tuple[int, int]) -> set[int]:
        """The factors of the layers that the recorded pass went through."""
        return {map_size(of["to_q"].shape[1], latent_size)[0] for of in self._found.values()}

    def maps(
        self,
        positions: Positions,
        latent_size: tuple[int, int],
        factors: Collection[int] | None = None,
    ) -> list[LayerMaps]:
        """The maps of the recorded pass, one entry a layer; forgets the recorded tensors.

        positions: for each row of the batch, the columns of each token (`Conditioning.positions`);
        rows without tokens cost nothing. latent_size: height and width of the latents, in cells.
        factors: in place of the capture's own.
        Raises InputError when no pass was recorded, its batch is another, or no layer has one of
        the wanted factors.
        """
        recorded = self._taken()
        if not recorded:
            raise InputError(
                "No attention was recorded; run the UNet inside recording(), with separate to_q "
                "and to_k projections (unfuse them if they were fused)."
            )
        sizes = {n: map_size(of["to_q"].shape[1], latent_size) for n, of in recorded.items()}
        asked = self._factors if factors is None else set(factors)
        wanted = [n for n in recorded if asked is None or sizes[n][0] in asked]
        if not wanted:
            raise InputError(
                f"No attention layer of this UNet has the maps asked for, of "
                f"{_listed(asked or ())} latent cells a side to a cell; it has "
                f"{_listed({f for f, _, _ in sizes.values()})}. Ask for one of these: factors, in "
                "a recipe refocus.factors."
            )
        key = recorded[wanted[0]]["to_k"]
        if len(key) != len(positions):
            raise InputError(
                f"The UNet was run on {len(key)} rows, but positions are given for "
                f"{len(positions)}; give one entry a row, empty where it has no token."
            )
        if not any(positions):
            return []
        tokens = TokenColumns.of(positions, key.shape[1], key.device)
        maps = []
        for name in wanted:
            factor, height, width = sizes[name]
            query, key = recorded[name]["to_q"], recorded[name]["to_k"]
            values = tokens.attention(query, key, self.heads(name)).unflatten(1, (height, width))
            maps.append(LayerMaps(name, factor, tokens.keys, values))
        return maps

    def spread(self, values: Tensor, latent_size: tuple[int, int]) -> Tensor:
        """Maps averaged over what each cell attends to: mean over layers of S a; forgets the pass.

        For recorded self-attention, S being its softmax and a the maps. values: (B,T,h,w) for the
        B rows of the pass, at the size of the layers looked at; layers of other sizes are left
        out. Returns (B,T,h,w) float32, `values` itself where no layer has that size.
        """
        recorded = self._taken()
        cells = rearrange(values.float(), "b t h w -> b (h w) t")
        spread = [
            token_attention(of["to_q"], of["to_k"], cells, self.heads(name))
            for name, of in recorded.items()
            if map_size(of["to_q"].shape[1], latent_size)[1:] == tuple(values.shape[-2:])
        ]
        if not spread:
            return values
        return rearrange(torch.stack(spread).mean(0), "b (h w) t -> b t h w", h=values.shape[-2])

    def whole_map(self, name: str) -> Tensor:
        """A layer's softmax(Q K^T / sqrt d), the mean over its heads: (B,N,L) float32."""
        of = self._found[name]
        return head_mean(of["to_q"], of["to_k"], self.heads(name))

    def forget(self) -> None:
        """Drop what was recorded."""
        self._found = {}

    def _taken(self) -> dict[str, dict[str, Tensor]]:
        """What was recorded of whole layers, in the order of the pass, now forgotten."""
        found = {name: of for name, of in self._found.items() if self.has(name)}
        self.forget()
        return found


class _StopError(Exception):
    """Stops a network's forward pass; never seen outside the recording that raised it."""


@contextmanager
def captured(
    unet: nn.Module,
    names: Iterable[str] | None = None,
    *,
    factors: Collection[int] | None = None,
) -> Iterator[AttentionCapture]:
    """Capture the cross-attention of a UNet while open; leaves no hook and no tensor behind.

    names: of the layers, from `select` or `cross_attentions`; None takes what `select` does.
    factors: see `AttentionCapture`. Raises UnsupportedModelError when there is no such layer.
    """
    layers = cross_attentions(unet)
    names = select(unet) if names is None else list(names)
    missing = [name for name in names if name not in layers]
    if missing or not names:
        raise UnsupportedModelError(
            f"{type(unet).__name__} has {len(layers)} cross-attention layers ('...attn2' with "
            f"to_q, to_k and heads), but not {', '.join(missing) or 'one to look at'}. Use a "
            "Stable Diffusion 1.x, 2.x or XL UNet, and layers from select() or cross_attentions()."
        )
    capture = AttentionCapture({name: layers[name] for name in names}, factors)
    try:
        yield capture
    finally:
        capture.forget()


def _listed(factors: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(factors))) or "none"
