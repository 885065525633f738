"""Where the UNet looks for a token: cross-attention maps, recorded from its own forward pass.

Forward hooks on `to_q` and `to_k` keep the queries and keys and nothing else, so the UNet's fused
attention and its outputs stay as they are. The maps are computed afterwards, outside any gradient
checkpoint, and their gradient runs back through the recorded queries and keys.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .errors import InputError, UnsupportedModelError

Positions = Sequence[Mapping[str, Sequence[int]]]


@dataclass(frozen=True)
class LayerMaps:
    """One layer's attention to some tokens.

    layer: its name in the UNet.
    factor: latent cells a side that one query covers; 4 is 16x16 for SD 1.5 at 512 px.
    keys: (row of the batch, token name) of each map.
    values: (R,h,w) float32 in 0..1, one map a key: the share of attention the token receives.
    """

    layer: str
    factor: int
    keys: tuple[tuple[int, str], ...]
    values: Tensor


def cross_attentions(unet: nn.Module) -> dict[str, nn.Module]:
    """The cross-attention layers by name, in diffusers' UNet and ComfyUI's, LoRA or not."""
    return _attentions(unet, "attn2")


def self_attentions(unet: nn.Module) -> dict[str, nn.Module]:
    """The self-attention layers by name, in diffusers' UNet and ComfyUI's, LoRA or not."""
    return _attentions(unet, "attn1")


def select(unet: nn.Module, *, middle: bool = False) -> list[str]:
    """Names of the cross-attention layers, those of the middle block only if asked for."""
    return [
        name
        for name in cross_attentions(unet)
        if middle or not {"mid_block", "middle_block"} & set(name.split("."))
    ]


def token_attention(query: Tensor, key: Tensor, columns: Tensor, heads: int) -> Tensor:
    """softmax(Q K^T / sqrt d), averaged over the heads and summed over each token's columns.

    query (B,N,heads*d) and key (B,L,heads*d) of any float type; columns (B,L,T), 1 where a token
    has a vector. Returns (B,N,T), computed in float32 also under autocast.
    """
    with torch.autocast(query.device.type, enabled=False):
        return head_mean(query, key, heads) @ columns


def head_mean(query: Tensor, key: Tensor, heads: int) -> Tensor:
    """softmax(Q K^T / sqrt d), averaged over the heads: (B,N,L) float32, rows summing to 1.

    query (B,N,heads*d) and key (B,L,heads*d) of any float type.
    """
    with torch.autocast(query.device.type, enabled=False):
        q, k = (x.float().unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key))
        return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(dim=-1).mean(dim=1)


def map_size(queries: int, latent_size: tuple[int, int]) -> tuple[int, int, int]:
    """Factor, height and width of a layer's map, from its number of queries.

    Raises InputError for a number that no halving of the latents' height and width gives.
    """
    factor, (height, width) = 1, latent_size
    while height * width > queries:  # each level of the UNet halves the size, rounding up
        factor, height, width = factor * 2, (height + 1) // 2, (width + 1) // 2
    if height * width != queries:
        raise InputError(
            f"A layer has {queries} queries, which no halving of {latent_size[0]}x"
            f"{latent_size[1]} gives; pass the size of the latents that the UNet was run on."
        )
    return factor, height, width


class AttentionCapture:
    """Records queries and keys of some attention layers and turns them into token maps.

    factors: which layers to map, by `LayerMaps.factor`; None maps all of them.
    """

    def __init__(
        self, layers: Mapping[str, nn.Module], factors: Collection[int] | None = None
    ) -> None:
        self._layers = layers
        self._factors = None if factors is None else set(factors)
        self._queries: dict[str, Tensor] = {}
        self._keys: dict[str, Tensor] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the forward pass run inside; a later pass inside replaces an earlier one.

        The hooks exist only here, on `to_q` and `to_k` as they are now, so a LoRA injected before
        counts, and a backward pass outside recomputes its checkpoints unrecorded.
        """
        self.forget()
        with ExitStack() as hooks:
            for name, layer in self._layers.items():
                for projection, store in (("to_q", self._queries), ("to_k", self._keys)):
                    hook = _keep(store, name)
                    handle = layer.get_submodule(projection).register_forward_hook(hook)
                    hooks.callback(handle.remove)
            yield

    def recorded_factors(self, latent_size: tuple[int, int]) -> set[int]:
        """The factors of the layers that the recorded pass went through."""
        return {map_size(q.shape[1], latent_size)[0] for q in self._queries.values()}

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
        recorded = {n: (self._queries[n], self._keys[n]) for n in self._queries if n in self._keys}
        self.forget()
        if not recorded:
            raise InputError(
                "No attention was recorded; run the UNet inside recording(), with separate to_q "
                "and to_k projections (unfuse them if they were fused)."
            )
        sizes = {n: map_size(q.shape[1], latent_size) for n, (q, _) in recorded.items()}
        asked = self._factors if factors is None else set(factors)
        wanted = [n for n in recorded if asked is None or sizes[n][0] in asked]
        if not wanted:
            raise InputError(
                f"No recorded layer covers {sorted(asked or ())} latent cells a side with "
                f"one query; this UNet has {sorted({f for f, _, _ in sizes.values()})}."
            )
        _, key = recorded[wanted[0]]
        if len(key) != len(positions):
            raise InputError(
                f"The UNet was run on {len(key)} rows, but positions are given for "
                f"{len(positions)}; give one entry a row, empty where it has no token."
            )
        if not any(positions):
            return []
        tokens = _Tokens.of(positions, key.shape[1], key.device)
        maps = []
        for name in wanted:
            factor, height, width = sizes[name]
            heads = int(self._layers[name].heads)  # type: ignore[arg-type]
            values = tokens.attention(*recorded[name], heads).unflatten(1, (height, width))
            maps.append(LayerMaps(name, factor, tokens.keys, values))
        return maps

    def spread(self, values: Tensor, latent_size: tuple[int, int]) -> Tensor:
        """Maps averaged over what each cell attends to: mean over layers of S a; forgets the pass.

        For recorded self-attention, S being its softmax and a the maps. values: (B,T,h,w) for the
        B rows of the pass, at the size of the layers looked at; layers of other sizes are left
        out. Returns (B,T,h,w) float32, `values` itself where no layer has that size.
        """
        recorded = [(n, q, self._keys[n]) for n, q in self._queries.items() if n in self._keys]
        self.forget()
        cells = values.float().flatten(2).transpose(1, 2)
        spread = [
            token_attention(q, k, cells, int(self._layers[name].heads))  # type: ignore[arg-type]
            for name, q, k in recorded
            if map_size(q.shape[1], latent_size)[1:] == tuple(values.shape[-2:])
        ]
        if not spread:
            return values
        return torch.stack(spread).mean(0).transpose(1, 2).unflatten(2, values.shape[-2:])

    def forget(self) -> None:
        """Drop what was recorded."""
        self._queries.clear()
        self._keys.clear()


class _EndedError(Exception):
    """Leaves a network's forward pass; never seen outside `ended_after`."""


@contextmanager
def ended_after(module: nn.Module) -> Iterator[None]:
    """A pass run inside ends, without a word, once the module has put out what is wanted of it."""

    def leave(_module: nn.Module, _inputs: object, _output: object) -> None:
        raise _EndedError

    handle = module.register_forward_hook(leave)
    try:
        yield
    except _EndedError:
        pass
    finally:
        handle.remove()


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


def _attentions(unet: nn.Module, suffix: str) -> dict[str, nn.Module]:
    return {
        name: module
        for name, module in unet.named_modules()
        if name.split(".")[-1] == suffix
        and all(hasattr(module, part) for part in ("to_q", "to_k", "heads"))
    }


def _keep(store: dict[str, Tensor], name: str) -> Callable[[nn.Module, Any, Tensor], None]:
    """A forward hook that keeps the output and performs no operation on it."""

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        store[name] = output

    return hook


@dataclass(frozen=True)
class _Tokens:
    """The special columns of a batch, laid out for one matrix product a layer.

    rows: the batch's rows that have tokens, B' of them; columns (B',L,T), 1 where a row's t-th
    token has a vector; places (2,R): row among B' and token of each key.
    """

    keys: tuple[tuple[int, str], ...]
    rows: Tensor
    columns: Tensor
    places: Tensor

    @classmethod
    def of(cls, positions: Positions, length: int, device: torch.device) -> _Tokens:
        rows = [row for row, tokens in enumerate(positions) if tokens]
        columns = torch.zeros(len(rows), length, max(len(positions[row]) for row in rows))
        keys, places = [], []
        for i, row in enumerate(rows):
            for t, (name, where) in enumerate(positions[row].items()):
                columns[i, list(where), t] = 1
                keys.append((row, name))
                places.append((i, t))
        index = torch.tensor(places, device=device).T
        return cls(tuple(keys), torch.tensor(rows, device=device), columns.to(device), index)

    def attention(self, query: Tensor, key: Tensor, heads: int) -> Tensor:
        """`token_attention` of each key: (R,N)."""
        # Recomputed in the backward pass: keeping the attention to every column would cost 7 MiB
        # a 16x16 layer and 15 MiB a 32x32 one at batch 3, to save less than 1 % of a step.
        values = checkpoint(
            token_attention,
            query[self.rows],
            key[self.rows],
            self.columns,
            heads,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        return values[self.places[0], :, self.places[1]]
