"""LoRA inside a frozen model: W x becomes W x + (alpha / r) B A x, put in and taken out again.

PEFT does the wrapping (Hu et al., arXiv 2106.09685). A context manager owns it, so that a model
leaves as it came: the same modules, parameters and flags.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from .config import LoraTargets
from .errors import InputError, MagiCaptureError, UnsupportedModelError
from .families import FAMILIES, Family, NetworkName

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

_ADAPTER = "magicapture"

_PROJECTIONS = r"to_(q|k|v|out\.0|gate)"
_MLP = r"net\.(0\.proj|2)"
# Joint attention: a double block has projections of its own for the words (add_...), in which
# the picture's queries meet the words' keys and values; a single block has one set for both, as
# has each layer of Z-Image, and each block of Krea 2, which diffusers names as a double one. One of
# Flux.2's single blocks has one layer for projections and MLP.
_DOUBLE, _SINGLE = r"transformer_blocks\.\d+", r"single_transformer_blocks\.\d+"
_LAYER = r"layers\.\d+"
_ONE_SET = rf"({_SINGLE}\.attn|{_LAYER}\.attention)"
_FUSED = rf"{_SINGLE}\.attn\.to_qkv_mlp_proj"
_JOINT = (
    rf"{_DOUBLE}\.attn\.({_PROJECTIONS}|add_(q|k|v)_proj|to_add_out)"
    rf"|{_SINGLE}\.attn\.to_(q|k|v)|{_FUSED}|{_LAYER}\.attention\.{_PROJECTIONS}"
)
_TARGETS: Mapping[NetworkName, Mapping[LoraTargets, str]] = {
    "unet": {
        "cross": rf"attn2\.{_PROJECTIONS}",
        "cross_kv": r"attn2\.to_(k|v)",
        "cross_and_self": rf"attn[12]\.{_PROJECTIONS}",
        "all_linear": rf"attn[12]\.{_PROJECTIONS}|ff\.{_MLP}",
    },
    "transformer": {
        "cross": rf"{_DOUBLE}\.attn\.(to_q|add_(k|v)_proj)|{_ONE_SET}\.to_(q|k|v)|{_FUSED}",
        "cross_kv": rf"{_DOUBLE}\.attn\.add_(k|v)_proj|{_ONE_SET}\.to_(k|v)|{_FUSED}",
        "cross_and_self": _JOINT,
        "all_linear": rf"{_JOINT}|{_DOUBLE}\.(ff(_context)?|(img|txt)_mlp)\.{_MLP}"
        rf"|{_DOUBLE}\.ff(_context)?\.linear_(in|out)|{_DOUBLE}\.ff\.(gate|up|down)"
        rf"|{_SINGLE}\.(proj_(mlp|out)|attn\.to_out)"
        rf"|{_LAYER}\.feed_forward\.w(1|2|3)",
    },
}
_OF_WORDS = "add_k_proj"
_OF_BOTH: Mapping[LoraTargets, str] = dict.fromkeys(
    ("cross", "cross_kv"), rf"|{_DOUBLE}\.attn\.to_(k|v)"
)
"""Further layers where the words have no projections of their own."""
_TEXT_TARGETS = r"self_attn\.(q|k|v|out)_proj"


@dataclass(frozen=True)
class LoraWeights:
    """The update of one layer, (alpha / r) up @ down, with down (r,in) and up (out,r)."""

    down: Tensor
    up: Tensor
    alpha: float

    def __post_init__(self) -> None:
        down, up = self.down.shape, self.up.shape
        if len(down) != 2 or len(up) != 2 or down[0] != up[1] or 0 in (*down, *up):
            raise InputError(
                f"LoRA weights have shapes down {tuple(down)} and up {tuple(up)}; expected "
                "(rank, in) and (out, rank), none of them 0."
            )

    @property
    def rank(self) -> int:
        """r."""
        return self.down.shape[0]


def target_names(
    network: nn.Module,
    targets: LoraTargets,
    kind: NetworkName = "unet",
    called: Mapping[str, Sequence[str]] | None = None,
) -> list[str]:
    """Names of the network's linear layers that get a LoRA, in the module's own layout.

    Works on diffusers' and on ComfyUI's UNet, and on transformers with joint attention. called:
    what files call a layer's parts; a fused layer gets a LoRA whole where one of them is wanted.
    None: layers have the names that files have. Raises UnsupportedModelError where there are none.
    """
    families = [family for family in FAMILIES.values() if family.network == kind]
    what = families[0].network_title
    pattern, files = _TARGETS[kind][targets], (called or {}).values()
    names = chain((name for name, _ in network.named_modules()), *files)
    if kind == "transformer" and not any(name.endswith(_OF_WORDS) for name in names):
        pattern += _OF_BOTH.get(targets, "")
    return _linears(network, pattern, what, families, called)


def text_target_names(encoder: nn.Module, unused: int = 0) -> list[str]:
    """Names of the attention projections of a CLIP text encoder; raises as `target_names`.

    unused: how many of its last layers are left out, since nothing reads them.
    """
    names = _linears(encoder, _TEXT_TARGETS, "text encoder", FAMILIES.values())
    layers = {name: int(name.partition("layers.")[2].partition(".")[0]) for name in names}
    end = 1 + max(layers.values()) - unused
    return [name for name in names if layers[name] < end]


def _linears(
    model: nn.Module,
    pattern: str,
    what: str,
    families: Iterable[Family],
    called: Mapping[str, Sequence[str]] | None = None,
) -> list[str]:
    ending = re.compile(rf"(.*\.)?({pattern})")
    called = called or {}
    names = [
        name
        for name, module in model.named_modules()
        if _is_linear(module) and any(map(ending.fullmatch, called.get(name, [name])))
    ]
    if not names:
        raise UnsupportedModelError(
            f"The {what} ({type(model).__name__}) has no attention layers to put a LoRA into; "
            f"expected that of {' or '.join(family.title for family in families)}."
        )
    return names


def _is_linear(module: nn.Module) -> bool:
    """Whether it is a linear layer; hosts have quantised ones that are no nn.Linear."""
    return isinstance(module, nn.Linear) or all(
        isinstance(getattr(module, side, None), int) for side in ("in_features", "out_features")
    )


class InjectedLora:
    """The LoRA that a model holds at present; its parameters are float32 whatever the model is."""

    def __init__(self, layers: Mapping[str, LoraLayer]) -> None:
        self._layers = layers
        self._scale = 1.0

    def parameters(self) -> list[nn.Parameter]:
        """down and up of every layer, in the order of the names."""
        return [
            parameter
            for layer in self._layers.values()
            for linear in _pair(layer)
            for parameter in linear.parameters()
        ]

    def state(self) -> dict[str, LoraWeights]:
        """Copies on the CPU, by the model's own module names."""
        return {name: _weights(layer) for name, layer in self._layers.items()}

    def load(self, state: Mapping[str, LoraWeights]) -> None:
        """Take over the values of `state`, without replacing any parameter.

        Raises InputError, before anything is changed, where names, sizes or alphas differ.
        """
        if state.keys() != self._layers.keys():
            differing = sorted(state.keys() ^ self._layers.keys())
            raise InputError(
                f"The LoRA to load and the one in the model differ in {len(differing)} layers, "
                f"such as {differing[0]}; use the recipe that it was trained with."
            )
        for name, weights in state.items():
            _check_fits(name, weights, self._layers[name])
        with torch.no_grad():
            for name, weights in state.items():
                down, up = _pair(self._layers[name])
                down.weight.copy_(weights.down.reshape(down.weight.shape))
                up.weight.copy_(weights.up.reshape(up.weight.shape))

    @property
    def scale(self) -> float:
        """Strength of the LoRA: 1 as trained, 0 switches it off at no cost and bit-exactly."""
        return self._scale

    @scale.setter
    def scale(self, value: float) -> None:
        trained = [parameter.requires_grad for parameter in self.parameters()]
        for layer in self._layers.values():
            layer.set_scale(_ADAPTER, value)
            layer.enable_adapters(value != 0)  # sets requires_grad as well
        for parameter, flag in zip(self.parameters(), trained, strict=True):
            parameter.requires_grad_(flag)
        self._scale = value


def _pair(layer: LoraLayer) -> tuple[nn.Linear, nn.Linear]:
    """The layer's down and up; 1x1 convolutions where the layer itself is one."""
    return layer.lora_A[_ADAPTER], layer.lora_B[_ADAPTER]  # type: ignore[return-value]


def _weights(layer: LoraLayer) -> LoraWeights:
    down, up = (m.weight.detach().float().cpu().flatten(1).clone() for m in _pair(layer))
    return LoraWeights(down, up, float(layer.lora_alpha[_ADAPTER]))


def _check_fits(name: str, weights: LoraWeights, layer: LoraLayer) -> None:
    came, expected = (
        (tuple(w.down.shape), tuple(w.up.shape), float(w.alpha)) for w in (weights, _weights(layer))
    )
    if came != expected:
        raise InputError(
            f"The LoRA of {name} has down, up and alpha of {came}; this model and recipe expect "
            f"{expected}. It was made for another kind of base model or another rank."
        )


@contextmanager
def injected(
    model: nn.Module,
    names: Sequence[str],
    rank: int,
    alpha: float | None = None,
    *,
    seed: int = 0,
    device: torch.device | None = None,
) -> Iterator[InjectedLora]:
    """Put a fresh, trainable LoRA into the named layers; all of it is gone on the way out.

    alpha: None takes the rank. The LoRA starts as zero (up = 0, down uniform as in `nn.Linear`)
    and repeats with the seed; the global random state is not touched. device: where the layers
    compute, if their weights are kept elsewhere. Raises InputError for a name the model has not,
    UnsupportedModelError for a model that already holds a LoRA of PEFT's.
    """
    sizes = dict.fromkeys(names, (rank, float(rank if alpha is None else alpha)))
    with _wrapped(model, sizes, device) as layers:
        random = torch.Generator().manual_seed(seed)
        for layer in layers.values():
            down, up = _pair(layer)
            values = torch.empty(down.weight.shape)
            nn.init.kaiming_uniform_(values, a=math.sqrt(5), generator=random)
            with torch.no_grad():
                down.weight.copy_(values)
                up.weight.zero_()
        yield InjectedLora(layers)


@contextmanager
def applied(
    model: nn.Module,
    state: Mapping[str, LoraWeights],
    scale: float = 1.0,
    *,
    device: torch.device | None = None,
) -> Iterator[InjectedLora]:
    """Put a trained LoRA into the model for a while, frozen; ranks may differ by layer.

    Arguments and errors as for `injected`; an empty state changes nothing.
    """
    if not state:
        yield InjectedLora({})
        return
    sizes = {name: (weights.rank, float(weights.alpha)) for name, weights in state.items()}
    with _wrapped(model, sizes, device) as layers:
        lora = InjectedLora(layers)
        lora.load(state)
        for parameter in lora.parameters():
            parameter.requires_grad_(False)
        lora.scale = scale
        yield lora


@contextmanager
def _wrapped(
    model: nn.Module, sizes: Mapping[str, tuple[int, float]], device: torch.device | None
) -> Iterator[dict[str, LoraLayer]]:
    """Let PEFT wrap the named layers at their (rank, alpha), with float32 parameters."""
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners import lora

    _check_injectable(model, sizes)
    config = LoraConfig(
        target_modules=_exactly(sizes),
        rank_pattern=_patterns({name: rank for name, (rank, _) in sizes.items()}),
        alpha_pattern=_patterns({name: alpha for name, (_, alpha) in sizes.items()}),
        init_lora_weights=False,
    )
    # PEFT's own choice, without asking every library for quantised layers first: it raises
    # ImportError where an old torchao or gptqmodel is installed, for whatever other purpose.
    linear = {type(m): lora.Linear for m in map(model.get_submodule, sizes) if _is_linear(m)}
    config._register_custom_module({nn.Conv2d: lora.Conv2d, nn.Linear: lora.Linear, **linear})
    with _restored(model, sizes):
        # Building a layer draws random numbers, even if other values replace them.
        with torch.random.fork_rng(devices=[]):
            inject_adapter_in_model(config, model, adapter_name=_ADAPTER)
        layers = {name: cast("LoraLayer", model.get_submodule(name)) for name in sizes}
        for layer in layers.values():
            for half in _pair(layer):
                half.to(device=device, dtype=torch.float32)
        yield layers


@cache
def check_peft() -> None:
    """Put a LoRA into one small layer; to be called before any long work.

    Raises MagiCaptureError where PEFT is missing or does not work beside what is installed.
    """
    try:
        with injected(nn.ModuleDict({"layer": nn.Linear(1, 1)}), ["layer"], rank=1):
            pass
    except Exception as error:  # ImportError, or what a broken package raises when it is asked for
        raise MagiCaptureError(
            "The package peft, which puts the LoRA into the model, does not work here "
            f"({type(error).__name__}: {error}). Update it with 'pip install -U peft'; a package "
            "named in brackets can be updated or removed as well."
        ) from error


def _check_injectable(model: nn.Module, names: Iterable[str]) -> None:
    if hasattr(model, "peft_config"):
        raise UnsupportedModelError(
            f"The {type(model).__name__} already holds a LoRA; unload it or fuse it into the "
            "weights first."
        )
    missing = sorted(set(names) - {name for name, _ in model.named_modules()})
    if missing:
        raise InputError(
            f"The {type(model).__name__} has no layer {missing[0]} ({len(missing)} of the LoRA's "
            "layers are missing); the LoRA was made for another kind of base model."
        )


@contextmanager
def _restored(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """On the way out put back the named layers, every requires_grad flag and the attributes."""
    originals = {name: model.get_submodule(name) for name in names}
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    attributes = set(vars(model))
    try:
        yield
    finally:
        for name, module in originals.items():
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module)
        for name, parameter in model.named_parameters():
            # The flag of a tensor made under inference_mode can be raised there alone.
            with torch.inference_mode(parameter.is_inference()):
                parameter.requires_grad_(flags[name])
        for added in set(vars(model)) - attributes:
            delattr(model, added)


def _exactly(names: Iterable[str]) -> str:
    """A pattern for these module names and no others; PEFT matches plain ones as endings."""
    return "^(?:" + "|".join(map(re.escape, names)) + ")"


def _patterns(values: Mapping[str, float]) -> dict[str, float]:
    """One pattern for each distinct value, since PEFT tries every pattern on every module."""
    groups: defaultdict[float, list[str]] = defaultdict(list)
    for name, value in values.items():
        groups[value].append(name)
    return {_exactly(names): value for value, names in groups.items()}
