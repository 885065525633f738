"""The one way into a network's attention: each fused call is handed to taps, with what computes it.

Training, previews, refocusing and MagicFace all act here. The arguments of the kernel are the
truth: they lie behind every projection, norm and position embedding, so nothing is computed twice.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Protocol, TypeVar
from weakref import WeakKeyDictionary, ref

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import UnsupportedModelError

Size = tuple[int, int]
Args = tuple[Any, ...]
Kwargs = dict[str, Any]

EVERY = slice(None)
_PATCH, _MULTIPLE = 2, 32
"""Of Z-Image: latent cells a side of a place, and what lengths are filled up to a multiple of."""


@dataclass(frozen=True)
class Picture:
    """What a pass is of: rows, and height and width in cells.

    cells, words: in joint attention their places in a row, which is `length` long. index: of which
    rows of the batch, where those of other lengths run apart; None: all of them.
    """

    rows: int
    size: Size
    cells: slice = field(default_factory=lambda: EVERY)
    words: slice = field(default_factory=lambda: EVERY)
    length: int | None = None
    index: tuple[int, ...] | None = None

    @classmethod
    def joint(
        cls, rows: int, size: Size, words: int, *, multiple: int = 1, words_first: bool = True
    ) -> Picture:
        """One beside so many words, each of both filled up to a multiple of places."""
        counts = (words, math.prod(size)) if words_first else (math.prod(size), words)
        first, second = (-(-count // multiple) * multiple for count in counts)
        places = slice(0, counts[0]), slice(first, first + counts[1])
        of_words, cells = places if words_first else places[::-1]
        return cls(rows, size, cells, of_words, first + second)


@dataclass(frozen=True, eq=False)
class Attention:
    """One fused attention as its kernel gets it: softmax(Q K^T * scale + mask) V.

    site: the name of the layer. query (B,H,N,D), key and value (B,H,L,D). size: height and width
    of the picture that the queries are, row by row; None where they are not one picture a row of
    the pass, as where something has merged or tiled them. scale: None is 1 / sqrt(D).
    cells, words: in joint attention, where words and picture attend to both, the picture's place
    among queries and keys and the words'; elsewhere all queries are cells, and all keys words.
    index: of which rows of the pass's batch, where rows run apart; None: all of them.
    """

    site: str
    query: Tensor
    key: Tensor
    value: Tensor
    size: Size | None
    scale: float | None = None
    mask: Tensor | None = None
    cells: slice = field(default_factory=lambda: EVERY)
    words: slice = field(default_factory=lambda: EVERY)
    index: tuple[int, ...] | None = None

    @property
    def is_joint(self) -> bool:
        """Whether words and picture lie side by side."""
        return self.cells != EVERY

    def columns(self) -> int:
        """How many words there are, of which the prompt's columns tell."""
        return len(range(self.key.shape[2])[self.words])

    def rows(self, index: Tensor) -> Attention:
        """That of some rows (R,) of the batch alone."""
        mask = self.mask
        if mask is not None and mask.ndim == 4 and len(mask) > 1:
            mask = mask[index]
        query, key, value = (x[index] for x in (self.query, self.key, self.value))
        return replace(self, query=query, key=key, value=value, mask=mask, index=None)

    def scores(self) -> Tensor:
        """softmax(Q K^T * scale + mask) of the N cells, mean of heads: (B,N,L) float32, sums are 1.

        In float32 also under autocast. Every score is kept at once, of which there are few in a
        UNet.
        """
        with torch.autocast(self.query.device.type, enabled=False):
            query, key = self.query[:, :, self.cells].float(), self.key.float()
            logits = query @ key.transpose(-1, -2) * (self.scale or query.shape[-1] ** -0.5)
            if self.mask is not None:
                hidden = self.mask.dtype == torch.bool
                bias = torch.where(self.mask, 0.0, float("-inf")) if hidden else self.mask
                logits = logits + bias.float()
            return logits.softmax(dim=-1).mean(dim=1)

    def stride(self, most: int | None) -> int:
        """Of how many cells of a row and of a column to look from one, so that `most` are left.

        1 but in joint attention, where looking costs a softmax over all words and cells.
        """
        if most is None or self.size is None or not self.is_joint:
            return 1
        return max(1, -(-max(self.size) // most))

    def shares(self, columns: Tensor, stride: int = 1) -> Tensor:
        """Scores summed over each token's columns (B,L,T), 1 where it has one: (B,N,T) float32.

        L: of the words. stride: see there; N are the cells that are left. In joint attention the
        kernel averages the columns themselves, as values, so that the softmax over words and
        picture is exact and never kept.
        """
        with torch.autocast(self.query.device.type, enabled=False):
            if not self.is_joint:
                return self.scores() @ columns
            return self._seen(self.words, columns, stride).mean(1)

    def averaged(self, values: Tensor) -> Tensor:
        """The picture's values (B,N,T) averaged over what each of its cells attends to there."""
        with torch.autocast(self.query.device.type, enabled=False):
            if not self.is_joint:
                return self.scores() @ values
            seen = self._seen(self.cells, F.pad(values, (0, 1), value=1.0)).mean(1)
            return seen[..., :-1] / seen[..., -1:]

    def _seen(self, place: slice, values: Tensor, stride: int = 1) -> Tensor:
        """The kernel's averages of some keys' values (B,L,T), 0 elsewhere: (B,H,N,T) float32."""
        query, key = self.query[:, :, self.cells], self.key.float()
        if stride > 1:
            assert self.size is not None
            each = _one_of(stride)
            query = query.unflatten(2, self.size)[:, :, each, each].flatten(2, 3)
        query = query.float()
        padded = key.new_zeros(len(key), 1, key.shape[2], max(key.shape[3], values.shape[-1]))
        padded[:, 0, place, : values.shape[-1]] = values
        padded = padded.expand(-1, key.shape[1], -1, -1)
        seen = F.scaled_dot_product_attention(
            query, key, padded, attn_mask=self.mask, scale=self.scale
        )
        return seen[..., : values.shape[-1]]


def thinned(side: int, stride: int) -> int:
    """How many cells of a side are left where one of `stride` is looked at."""
    return len(range(side)[_one_of(stride)])


def _one_of(stride: int) -> slice:
    """The middle one of each so many cells."""
    return slice(stride // 2, None, stride)


class NotWholeError(UnsupportedModelError):
    """A layer's attention does not see one picture a row: something merges, tiles or splits it."""


Host = TypeVar("Host", bound="TappedUNet")

Run = Callable[[Attention], Tensor]
"""Computes an attention: (B,H,N,D). Called with what came in, it changes nothing."""

Tap = Callable[[Attention, Run], Tensor]
"""Gets an attention and what computes it; returns (B,H,N,D)."""


class Network(Protocol):
    """A network whose attentions can be tapped; see `TappedUNet`."""

    @property
    def module(self) -> nn.Module: ...

    def tapped(self, tap: Tap, sites: Iterable[str]) -> AbstractContextManager[None]:
        """A scope in which the attentions of some layers go through the tap."""


@dataclass(eq=False)
class Call:
    """One run of an attention layer, whose fused attention goes to the taps, the last one first.

    taps: those there are when it comes; a checkpointed block may run again when they are gone.
    picture: what the layer sees; None where unknown.
    """

    site: str
    taps: Sequence[Tap]
    picture: Picture | None
    seen: bool = False

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        run: Run,
        *,
        scale: float | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The fused attention (B,H,N,D) of query (B,H,N,D), key and value (B,H,L,D)."""
        self.seen = True
        size, cells, words, index = None, EVERY, EVERY, None
        if (seen := self.picture) is not None:
            if query.shape[::2] == (seen.rows, seen.length or math.prod(seen.size)):
                size = seen.size
            cells, words, index = seen.cells, seen.words, seen.index
        for tap in self.taps:
            run = partial(_through, tap, run)
        return run(Attention(self.site, query, key, value, size, scale, mask, cells, words, index))


def _through(tap: Tap, run: Run, attention: Attention) -> Tensor:
    return tap(attention, run)


class TappedUNet(ABC):
    """A network whose attention layers can be tapped: `...transformer_blocks.N.attn1` and `attn2`.

    In a transformer of joint attention they are `...transformer_blocks.N.attn` or
    `layers.N.attention`, in ComfyUI's Flux its blocks.

    `of` gives the one of a network, so that the taps of several users come in order. A host says
    how a layer's fused attention is reached; `TappedTorch` is that of diffusers.
    """

    _known: ClassVar[WeakKeyDictionary[nn.Module, TappedUNet]] = WeakKeyDictionary()

    def __init__(self, module: nn.Module) -> None:
        self._module = ref(module)
        self._rows: tuple[int, ...] | None = None
        self._taps: dict[str, list[Tap]] = {}
        self._hooks: dict[str, ExitStack] = {}

    @classmethod
    def of(cls: type[Host], module: nn.Module) -> Host:
        """The one of a network, made when it is first asked for."""
        if not isinstance(found := cls._known.get(module), cls):
            found = cls._known[module] = cls(module)
        return found

    @property
    def module(self) -> nn.Module:
        """The network itself."""
        module = self._module()
        assert module is not None, "whoever taps a network holds it"
        return module

    @contextmanager
    def seeing(self, rows: tuple[int, ...]) -> Iterator[None]:
        """Passes run inside are of these rows of the batch alone."""
        before, self._rows = self._rows, rows
        try:
            yield
        finally:
            self._rows = before

    @contextmanager
    def tapped(self, tap: Tap, sites: Iterable[str]) -> Iterator[None]:
        """Let the attentions of some layers go through the tap, in the passes run inside.

        A layer may compute no fused attention: see `_skipped`.
        """
        with ExitStack() as scope:
            for site in dict.fromkeys(sites):
                self._add(site, tap)
                scope.callback(self._drop, site, tap)
            yield

    @abstractmethod
    def _begin(self, call: Call, args: Args, kwargs: Kwargs) -> tuple[Kwargs, Callable[[], None]]:
        """Lead a layer's fused attention through the call, until what is returned is called.

        args, kwargs: what the layer is called with; returns what is to be its kwargs.
        """

    def _picture(self, args: Args, kwargs: Kwargs) -> Picture | None:
        """What a stack of blocks is called with: of features (B,C,h,w), also as a film of one."""
        x = args[0] if args else kwargs.get("hidden_states", kwargs.get("x"))
        if isinstance(x, Tensor) and x.ndim == 5 and x.shape[2] == 1:
            x = x[:, :, 0]
        if not isinstance(x, Tensor) or x.ndim != 4:
            return None
        return Picture(len(x), (x.shape[2], x.shape[3]))

    def _skipped(self, site: str) -> None:
        """A layer was run, but computed no fused attention: an error, never silently nothing."""
        raise UnsupportedModelError(
            f"The attention layer {site!r} was computed without PyTorch's or ComfyUI's fused "
            "attention, so nothing can be read or held there: something else has replaced it, or "
            "it is compiled. Leave that out."
        )

    def _add(self, site: str, tap: Tap) -> None:
        taps = self._taps.setdefault(site, [])
        taps.append(tap)
        if len(taps) == 1:
            self._hooks[site] = self._hooked(site, taps)

    def _drop(self, site: str, tap: Tap) -> None:
        self._taps[site].remove(tap)
        if not self._taps[site]:
            self._hooks.pop(site).close()

    def _hooked(self, site: str, taps: list[Tap]) -> ExitStack:
        """Hooks around a layer, and around the stack of blocks it is in, which knows the size."""
        picture: list[Picture | None] = [None]
        running: list[tuple[Call, Callable[[], None]]] = []

        def sized(_: nn.Module, args: Args, kwargs: Kwargs) -> None:
            picture[0] = self._picture(args, kwargs)

        def begin(_: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
            call = Call(site, taps, picture[0])
            kwargs, end = self._begin(call, args, kwargs)
            running.append((call, end))
            return args, kwargs

        def end(_: nn.Module, args: Args, output: object) -> None:
            if not running:  # a hook before ours has raised an exception
                return
            call, leave = running.pop()
            leave()
            if output is not None and not call.seen:  # None: an exception is on its way
                self._skipped(site)

        layer = self.module.get_submodule(site)
        stack = self.module.get_submodule(site.rpartition(".transformer_blocks.")[0])
        hooks = ExitStack()
        for handle in (
            stack.register_forward_pre_hook(sized, with_kwargs=True),
            layer.register_forward_pre_hook(begin, with_kwargs=True),
            layer.register_forward_hook(end, always_call=True),
        ):
            hooks.callback(handle.remove)
        return hooks


class TappedTorch(TappedUNet):
    """A network that calls PyTorch's fused attention itself, as diffusers' do."""

    def _picture(self, args: Args, kwargs: Kwargs) -> Picture | None:
        """Of a UNet's features, or of what a transformer is called with.

        Flux's and Krea 2's last place (0, row, column) tells the size; Qwen-Image is told it.
        Z-Image gets a list of latents (C,1,h,w) and one of texts (L,D); its words come behind the
        cells, both filled up to whole 32.
        """
        if (texts := kwargs.get("cap_feats")) is not None:
            height, width = (cells // _PATCH for cells in kwargs["x"][0].shape[-2:])
            longest = max(map(len, texts))
            return Picture.joint(
                len(texts), (height, width), longest, multiple=_MULTIPLE, words_first=False
            )
        words = kwargs.get("encoder_hidden_states")
        places, sizes = kwargs.get("img_ids", kwargs.get("position_ids")), kwargs.get("img_shapes")
        if words is None or (places is None and sizes is None):
            return super()._picture(args, kwargs)
        if sizes is not None:
            ((_, height, width),) = sizes[0]
        else:
            assert places is not None
            height, width = (int(last) + 1 for last in places[-1].tolist()[1:3])
        picture = Picture.joint(len(words), (height, width), words.shape[1])
        return replace(picture, index=self._rows)

    def _begin(self, call: Call, args: Args, kwargs: Kwargs) -> tuple[Kwargs, Callable[[], None]]:
        mode = _Fused(call)
        mode.__enter__()
        return kwargs, partial(mode.__exit__, None, None, None)


class _Fused(TorchFunctionMode):
    """Leads the first call of PyTorch's fused attention through a `Call`."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self._call = call

    def __torch_function__(
        self, function: Any, types: Any, args: Args = (), kwargs: Kwargs | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is not F.scaled_dot_product_attention or self._call.seen:
            return function(*args, **kwargs)
        given = {**dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}
        query, key, value = (given.pop(name) for name in ("query", "key", "value"))
        mask, scale = given.pop("attn_mask", None), given.pop("scale", None)

        def run(a: Attention) -> Tensor:
            return function(a.query, a.key, a.value, attn_mask=a.mask, scale=a.scale, **given)

        return self._call(query, key, value, run, scale=scale, mask=mask)


_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
