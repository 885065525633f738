"""The one recorder of attention: a tap that keeps what layers attend to in a pass.

Training, previews, refocusing and MagicFace all read through it. The kernel runs as it would, so
the network's result stays bit-equal. Maps are computed afterwards, outside any gradient
checkpoint, and their gradient runs back through the recorded queries and keys.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from einops import rearrange
from torch import Tensor

from ..errors import InputError, UnsupportedModelError
from .layers import cross_attentions, select
from .maps import LayerMaps, Positions, TokenColumns, factor_of
from .tap import Attention, Network, Run, Size, thinned


class AttentionCapture:
    """Records some attention layers of a network, and turns what they attend to into maps.

    factors: which layers to map, by `LayerMaps.factor`; None maps all of them.
    """

    def __init__(
        self,
        network: Network,
        sites: Iterable[str],
        factors: Collection[int] | None = None,
    ) -> None:
        self.sites = tuple(sites)
        self._network = network
        self._factors = None if factors is None else set(factors)
        self._found: dict[str, list[Attention]] = {}  # several of a layer where rows run apart
        self._ended: tuple[str, _StopError] | None = None

    @contextmanager
    def recording(self, until: str | None = None) -> Iterator[None]:
        """Record the forward pass run inside; a later pass inside replaces an earlier one.

        until: a layer at whose attention the pass is stopped, silently; what follows it in the
        `with` block is skipped. Rows that run apart are not stopped. The taps exist only here, so a
        backward pass outside recomputes its checkpoints unrecorded. An exception drops what was
        recorded.
        """
        self.forget()
        stop = _StopError()
        self._ended = None if until is None else (until, stop)
        try:
            with self._network.tapped(self, self.sites):
                yield
        except _StopError as reached:
            if reached is not stop:
                raise
        except BaseException:
            self.forget()
            raise

    def __call__(self, attention: Attention, run: Run) -> Tensor:
        """The tap: keeps an attention and performs no operation on it."""
        rows, found = attention.index, self._found.get(attention.site, [])
        again = rows is None or any(row in (other.index or rows) for other in found for row in rows)
        self._found[attention.site] = [attention] if again else [*found, attention]
        if self._ended is not None and attention.site == self._ended[0] and rows is None:
            raise self._ended[1]
        return run(attention)

    def has(self, site: str) -> bool:
        """Whether the pass has come to a layer."""
        return site in self._found

    def recorded(self) -> tuple[str, ...]:
        """The layers that the pass has come to, in its order."""
        return tuple(self._found)

    def seen(self, site: str) -> Attention:
        """A layer's attention, as recorded; that of the first rows where they run apart."""
        return self._found[site][0]

    def take(self, site: str) -> Attention:
        """A layer's attention, as `seen`, now forgotten.

        Raises UnsupportedModelError where the pass did not come to it.
        """
        if not self.has(site):
            raise UnsupportedModelError(
                f"The model did not compute its attention layer {site!r} as usual: it is compiled "
                "or patched by something else. Leave that out."
            )
        return self._found.pop(site)[0]

    def recorded_factors(self, latent_size: Size) -> set[int]:
        """The factors of the layers that the recorded pass went through."""
        return {factor_of(size, latent_size) for size in _sizes(self._found).values()}

    def maps(
        self,
        positions: Positions,
        latent_size: Size,
        factors: Collection[int] | None = None,
        *,
        most: int | None = None,
    ) -> list[LayerMaps]:
        """The maps of the recorded pass, one entry a layer; forgets the recorded tensors.

        positions: for each row of the batch, the columns of each token (`Conditioning.positions`);
        rows without tokens cost nothing. latent_size: height and width of the latents, in cells.
        factors: in place of the capture's own. most: cells a side of a map of joint attention; a
        larger one is looked at from every second cell, or third.
        Raises InputError when no pass was recorded, its batch is another, or no layer has one of
        the wanted factors.
        """
        recorded = self._taken()
        if not recorded:
            raise InputError(
                "No attention was recorded; run the network inside recording(), with attention "
                "that nothing replaces, merges or tiles."
            )
        factor = {site: factor_of(size, latent_size) for site, size in _sizes(recorded).items()}
        asked = self._factors if factors is None else set(factors)
        wanted = {s: a for s, a in recorded.items() if asked is None or factor[s] in asked}
        if not wanted:
            raise InputError(
                f"No attention layer of this UNet has the maps asked for, of "
                f"{_listed(asked or ())} latent cells a side to a cell; it has "
                f"{_listed(set(factor.values()))}. Ask for one of these: factors, in "
                "a recipe refocus.factors."
            )
        first = next(iter(wanted.values()))
        if (rows := sum(len(part.key) for part in first)) != len(positions):
            raise InputError(
                f"The UNet was run on {rows} rows, but positions are given for "
                f"{len(positions)}; give one entry a row, empty where it has no token."
            )
        if not any(positions):
            return []
        tokens = [TokenColumns.of(positions, part) for part in first]
        keys = [key for part in tokens for key in part.keys]
        order = sorted(range(len(keys)), key=lambda place: keys[place][0])
        maps = []
        for site, parts in wanted.items():
            stride = parts[0].stride(most)
            looks = zip(tokens, parts, strict=True)
            values = [token.attention(part, stride) for token, part in looks if token.keys]
            whole = values[0] if len(parts) == 1 else torch.cat(values)[order]
            sized = whole.unflatten(1, [thinned(side, stride) for side in parts[0].size or ()])
            maps.append(LayerMaps(site, factor[site], tuple(keys[i] for i in order), sized))
        return maps

    def spread(self, values: Tensor) -> Tensor:
        """Maps averaged over what each cell attends to: mean over layers of S a; forgets the pass.

        For recorded self-attention, S being its softmax and a the maps. values: (B,T,h,w) for the
        B rows of the pass, at the size of the layers looked at; layers of other sizes are left
        out. Returns (B,T,h,w) float32, `values` itself where no layer has that size.
        """
        recorded = self._taken()
        cells = rearrange(values.float(), "b t h w -> b (h w) t")
        spread = [
            _averaged(parts, cells)
            for parts in recorded.values()
            if parts[0].size == tuple(values.shape[-2:])
        ]
        if not spread:
            return values
        return rearrange(torch.stack(spread).mean(0), "b (h w) t -> b t h w", h=values.shape[-2])

    def forget(self) -> None:
        """Drop what was recorded."""
        self._found = {}

    def _taken(self) -> dict[str, list[Attention]]:
        """What was recorded of whole pictures, in the order of the pass, now forgotten."""
        found = {site: parts for site, parts in self._found.items() if parts[0].size is not None}
        self.forget()
        return found


class _StopError(Exception):
    """Stops a network's forward pass; never seen outside the recording that raised it."""


@contextmanager
def captured(
    network: Network,
    sites: Iterable[str] | None = None,
    *,
    factors: Collection[int] | None = None,
) -> Iterator[AttentionCapture]:
    """Capture the cross-attention of a UNet while open; leaves no tap and no tensor behind.

    sites: names of layers, from `select` or `cross_attentions`; None takes what `select` does.
    factors: see `AttentionCapture`. Raises UnsupportedModelError when there is no such layer.
    """
    unet = network.module
    layers = cross_attentions(unet)
    sites = select(unet) if sites is None else list(sites)
    missing = [site for site in sites if site not in layers]
    if missing or not sites:
        raise UnsupportedModelError(
            f"{type(unet).__name__} has {len(layers)} attention layers that read the prompt "
            f"('...attn2' of a UNet, '...attn' of a transformer, with to_q, to_k and heads), but "
            f"not {', '.join(missing) or 'one to look at'}. Use a model of a supported family, and "
            "layers from select() or cross_attentions()."
        )
    capture = AttentionCapture(network, sites, factors)
    try:
        yield capture
    finally:
        capture.forget()


def _averaged(parts: Sequence[Attention], values: Tensor) -> Tensor:
    """`Attention.averaged` of all rows, from those of a layer that ran apart."""
    if parts[0].index is None:
        return parts[0].averaged(values)
    rows = [row for part in parts for row in part.index or ()]
    averaged = [part.averaged(values[list(part.index or ())]) for part in parts]
    return torch.cat(averaged)[torch.tensor(rows).argsort()]


def _sizes(found: Mapping[str, Sequence[Attention]]) -> dict[str, Size]:
    """The sizes of the maps, of layers that see one picture a row."""
    sizes = {site: parts[0].size for site, parts in found.items()}
    return {site: size for site, size in sizes.items() if size is not None}


def _listed(factors: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(factors))) or "none"
