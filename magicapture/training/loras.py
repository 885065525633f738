"""The LoRAs of a run: in the models during a phase, remembered between phases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from ..adapters import Adapter
from ..backbone import Backbone
from ..config import LoraSettings, Phase
from ..families import FAMILIES
from ..lora import InjectedLora, LoraWeights, injected, target_names, text_target_names
from ..parts import names_of, split
from .job import generator


class Loras:
    """One LoRA for the network and one for each text encoder, by part: "unet", "clip_l"."""

    def __init__(self, backbone: Backbone, settings: LoraSettings, seed: int) -> None:
        self.backbone, self.settings, self.seed = backbone, settings, seed
        self._network = FAMILIES[backbone.family].network
        self._remembered: dict[str, dict[str, LoraWeights]] = {}
        self._present: dict[str, InjectedLora] = {}

    @classmethod
    def of(cls, adapter: Adapter, backbone: Backbone, settings: LoraSettings) -> Loras:
        """Those of an adapter, to be `shown`; raises InputError as `Adapter.state_for`."""
        loras = cls(backbone, settings, 0)
        parts = dict.fromkeys(name.partition(".")[0] for name in adapter.lora)
        for part in parts:
            module = loras._module(part)
            loras._remembered[part] = adapter.state_for(part, module, backbone.parts_of(module))
        return loras

    @contextmanager
    def injected(self, phase: Phase) -> Iterator[dict[str, list[nn.Parameter]]]:
        """Put into the models what the phase trains or one before it trained.

        Yields the parameters by group, as rates have them: "unet" (any network), "text_encoder".
        """
        with ExitStack() as scope:
            for part, names in self._targets(phase).items():
                scope.enter_context(self._injected(part, names))
            groups: dict[str, list[nn.Parameter]] = {}
            for part, lora in self._present.items():
                group = "unet" if part == self._network else "text_encoder"
                groups.setdefault(group, []).extend(lora.parameters())
            yield groups

    @contextmanager
    def shown(self) -> Iterator[None]:
        """What has been learned so far, in the models also where no phase is on."""
        with ExitStack() as scope:
            for part in self._remembered.keys() - self._present.keys():
                scope.enter_context(self._injected(part, self._names(part)))
            yield

    @contextmanager
    def off(self) -> Iterator[None]:
        """The models as they were before the training."""
        present = list(self._present.values())
        try:
            for lora in present:
                lora.scale = 0.0
            yield
        finally:
            for lora in present:
                lora.scale = 1.0

    def weights(self) -> dict[str, LoraWeights]:
        """What has been learned so far, by part and diffusers' name of the layer."""
        named = {}
        for part, state in self._current().items():
            parts = self.backbone.parts_of(self._module(part))
            for name, weights in state.items():
                layers = split(weights, parts[name])
                named.update({f"{part}.{layer}": of for layer, of in layers.items()})
        return named

    def state_dict(self) -> dict[str, Any]:
        """What has been learned so far, as plain CPU tensors."""
        return {
            part: {n: (w.down.cpu(), w.up.cpu(), w.alpha) for n, w in state.items()}
            for part, state in self._current().items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over `state_dict`, before the LoRAs are injected."""
        self._remembered = {
            part: {name: LoraWeights(*weights) for name, weights in of.items()}
            for part, of in state.items()
        }

    def _current(self) -> dict[str, dict[str, LoraWeights]]:
        present = {part: lora.state() for part, lora in self._present.items()}
        return self._remembered | present

    def _module(self, part: str) -> nn.Module:
        if part == self._network:
            return self.backbone.unet
        return self.backbone.text_encoders[part]

    def _targets(self, phase: Phase) -> dict[str, list[str]]:
        rates: dict[str, float] = {self._network: phase.rates.unet}
        encoders = [one.key for one in FAMILIES[self.backbone.family].encoders if one.lora]
        rates |= dict.fromkeys(encoders, phase.rates.text_encoder)
        wanted = [part for part, rate in rates.items() if rate or part in self._remembered]
        return {part: self._names(part) for part in wanted}

    def _names(self, part: str) -> list[str]:
        if part == self._network:
            network = self.backbone.unet
            called = names_of(self.backbone.parts_of(network))
            return target_names(network, self.settings.targets, self._network, called)
        unused = FAMILIES[self.backbone.family].encoder(part).unused
        return text_target_names(self.backbone.text_encoders[part], unused)

    @contextmanager
    def _injected(self, part: str, names: list[str]) -> Iterator[None]:
        rank, alpha = self.settings.rank, self.settings.rank * self.settings.scale
        seed = generator(self.seed, "lora", part).initial_seed()
        with injected(self._module(part), names, rank, alpha, seed=seed) as lora:
            if part in self._remembered:
                lora.load(self._remembered[part])
            self._present[part] = lora
            try:
                yield
            finally:
                self._remembered[part] = lora.state()
                del self._present[part]
