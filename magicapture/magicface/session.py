"""One sampling with references, around the passes of diffusers' UNet or ComfyUI's."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from ..attention import Attention, AttentionCapture, Network, NotWholeError, Run, Size
from .attention import ReferenceKeys, reference_attention, region_attention
from .layers import decoder_layers
from .references import ReferenceRows
from .regions import at_size, guidance_rates
from .segment import Rows, Seen, Segmenter
from .settings import MagicFaceSettings, Stage

Keys = dict[str, list[ReferenceKeys]]
"""Layer -> what each concept's reference offers it."""

_CACHED_LEVELS = 2  # samplers of higher order come back to the last noise level
_ROWS_AT_ONCE = 2  # of the references, so that they take no more memory than guidance does


class Session:
    """Holds the references' keys and what the attention has shown, during one sampling.

    network: the UNet, as it will run. columns: of each concept's words in the prompt's
    context, `length` long.

    seen: by the last pass that was mapped, or None. acted: whether any reference has been seen by
    the picture so far. blind: whether a pass showed no attention to find regions in; it is left
    as it is, with the regions of the one before.
    """

    def __init__(
        self,
        network: Network,
        references: ReferenceRows,
        columns: Sequence[Sequence[int]],
        length: int,
        settings: MagicFaceSettings,
    ) -> None:
        self.references = references
        self.settings = settings
        self.seen: Seen | None = None
        self.acted = self.blind = False
        self._network = network
        self._layers = decoder_layers(network.module)
        self._segmenter = Segmenter(
            network, columns, length, settings.others, to_foreground=settings.to_foreground
        )
        self._keys: OrderedDict[float, Keys] = OrderedDict()
        self._won: Tensor | None = None  # which concepts have had a region (K,)

    # -- the references' pass -----------------------------------------------------------------

    def keys(self, level: float, run: Callable[[slice], object]) -> Keys:
        """The references' keys and values at a noise level, kept for when it comes again.

        run: passes some of the references' rows, noised to that level, through the UNet; no more
        at once than a picture's own two.
        """
        if level not in self._keys:
            offered: dict[str, dict[int, ReferenceKeys]] = {name: {} for name in self._layers}
            capture = AttentionCapture(self._network, self._layers)
            for start in range(0, len(self.references.latents), _ROWS_AT_ONCE):
                rows = range(start, start + _ROWS_AT_ONCE)
                # With the last layer's values a reference is done.
                with capture.recording(until=self._layers[-1]):
                    run(slice(rows.start, rows.stop))
                for name, of in offered.items():
                    of.update(self._offered(capture.take(name), rows))
            self._keys[level] = {
                name: [of[concept] for concept in sorted(of)] for name, of in offered.items()
            }
            while len(self._keys) > _CACHED_LEVELS:
                self._keys.popitem(last=False)
        return self._keys[level]

    def _offered(self, found: Attention, rows: range) -> dict[int, ReferenceKeys]:
        """What the references in some rows offer to one layer, by concept."""
        size = _whole(found)
        references, key, value = self.references, found.key, found.value
        offered = {}
        for concept, row in enumerate(references.rows):
            if row in rows:
                kept = references.kept(concept, size).to(key.device)
                own, weight = row - rows.start, references.weights[concept]
                offered[concept] = ReferenceKeys(key[own][:, kept], value[own][:, kept], weight)
        return offered

    # -- the picture's own passes -------------------------------------------------------------

    @contextmanager
    def drawing(self, stage: Stage, keys: Keys, rows: Rows) -> Iterator[None]:
        """Let the picture's conditional rows see the references in the one pass run inside.

        Where there is nothing to see, the pass is bit-equal to one without references.
        """
        with ExitStack() as scope:
            mapped = stage != "layout" or self.settings.region_guidance
            if mapped:
                scope.enter_context(self._segmenter.recording())
            if stage in ("layout", "details") and rows.conditional:
                blend = _Blend(self, stage, keys, rows)
                scope.enter_context(self._network.tapped(blend, self._layers))
            yield
            if mapped:
                self.blind = self.blind or self._segmenter.blind
                self.seen = self._segmenter.look(rows) or self.seen

    def regions(self, rows: Rows) -> Tensor | None:
        """The regions (B,K,h,w) that the layers before the first changed one show; None: none."""
        seen = self._segmenter.look(rows)
        if seen is None:
            return None
        won = seen.regions.any(dim=-1).any(dim=-1).any(dim=0)
        self._won = won if self._won is None else self._won | won
        return seen.regions

    def rates(self, difference: Tensor, guidance: float) -> Tensor | None:
        """The factors (B,1,h,w) of guidance, `guidance_rates`; None where none apply.

        difference: (B,C,h,w), the prompt's prediction minus the negative prompt's.
        """
        seen = self.seen
        if not self.settings.region_guidance or seen is None:
            return None
        if len(seen.regions) != len(difference):
            return None  # several prompts at once: whose regions would they be?
        size = (difference.shape[-2], difference.shape[-1])
        ground = None if seen.foreground is None else at_size(seen.foreground, size)
        return guidance_rates(difference, at_size(seen.regions, size), ground, guidance)

    def missing(self) -> list[str]:
        """The concepts that never had a region, so that their references gave no details."""
        if self._won is None:
            return []
        names = zip(self.references.names, self._won.tolist(), strict=True)
        return [name for name, won in names if not won]


class _Blend:
    """A tap of the decoder's self-attention in one pass, which puts the references into it."""

    def __init__(self, session: Session, stage: Stage, keys: Keys, rows: Rows) -> None:
        self._session, self._stage, self._keys = session, stage, keys
        self._rows = rows
        self._regions: Tensor | None = None
        self._looked = False

    def __call__(self, attention: Attention, run: Run) -> Tensor:
        plain = run(attention)
        offered = self._keys[attention.site]
        if all(keys.empty for keys in offered):
            return plain
        index = torch.tensor(self._rows.conditional, device=plain.device)
        whole = attention.size is not None
        # Said at the first step, and not in the middle, where regions come.
        if len(plain) != len(self._rows) or not (whole or self._session.settings.only_layout):
            raise NotWholeError(_tiled(attention.site))
        own = attention.rows(index)
        if self._stage == "layout":
            seen = [keys for keys in offered if not keys.empty]
            blended = reference_attention(own, seen)
        else:
            regions = self._regions_at(_whole(attention))
            if regions is None:
                return plain
            blended = region_attention(plain[index], own, offered, regions)
        self._session.acted = True
        out = plain.clone()
        out[index] = blended.to(plain.dtype)
        return out

    def _regions_at(self, size: Size) -> Tensor | None:
        """The regions (B,K,N) at a layer's size; found when the first layer asks."""
        if not self._looked:
            self._regions, self._looked = self._session.regions(self._rows), True
        return None if self._regions is None else at_size(self._regions, size).flatten(2)


def _whole(attention: Attention) -> Size:
    """The size of a layer that sees one picture a row."""
    if attention.size is None:
        raise NotWholeError(_tiled(attention.site))
    return attention.size


def _tiled(site: str) -> str:
    return (
        f"References have no place in the attention layer {site!r}: something merges or tiles the "
        "picture there. Leave that out, or MagicFace."
    )
