"""Node inputs that several nodes have or that settings of the core say, each written once."""

from __future__ import annotations

from typing import Any, get_args, get_type_hints

from comfy_api.latest import io

from ..magicapture.config import help_of
from ..magicapture.faces.models import Role
from ..magicapture.losses import Loss
from ._comfy.files import face_files
from ._sockets import AdapterSocket, FaceModelSocket

KEEP = "recipe's own"


def choice(config: type, name: str, *, id: str | None = None, keep: bool = False) -> io.Combo.Input:
    """A drop-down of a setting's choices; `keep` puts "recipe's own" first."""
    options = [c for c in get_args(get_type_hints(config)[name]) if isinstance(c, str)]
    if keep:
        options.insert(0, KEEP)
    default = KEEP if keep else config.__dataclass_fields__[name].default  # type: ignore[attr-defined]
    return io.Combo.Input(
        id or name, options=options, default=default, tooltip=help_of(config, name)
    )


def file_input(role: Role, tooltip: str, *found: str) -> io.Combo.Input:
    """A drop-down of what may be `found`, its default first, and of the files for a role."""
    options = [*found, *face_files(role)]
    return io.Combo.Input("file", options=options, default=options[0], tooltip=tooltip)


def number(
    config: type, name: str, *, id: str | None = None, step: float = 1, high: float | None = None
) -> io.Int.Input | io.Float.Input:
    """A number for a setting; -1, the default, keeps the recipe's own."""
    field: Any = config.__dataclass_fields__[name]  # type: ignore[attr-defined]
    whole = get_type_hints(config)[name] in (int, int | None)
    kind = io.Int.Input if whole else io.Float.Input
    limit = high if high is not None else field.metadata["high"] or 10_000
    tooltip = f"{help_of(config, name)} -1 keeps the recipe's own."
    extra: dict[str, Any] = {} if whole else {"round": False}
    cast = int if whole else float
    return kind(
        id or name,
        default=cast(-1),
        min=cast(-1),
        max=cast(limit),
        step=cast(step),
        tooltip=tooltip,
        **extra,
    )


def weight(loss: Loss) -> io.Float.Input:
    """The weight of a loss; -1, the default, keeps the recipe's own."""
    known = {"paper": loss.paper, "release": loss.release}
    values = "; ".join(f"{who}: {value:g}" for who, value in known.items() if value is not None)
    told = f" ({values[0].upper()}{values[1:]}.)" if values else ""
    return io.Float.Input(
        f"{loss.name}_weight",
        default=-1.0,
        min=-1.0,
        max=10_000.0,
        step=0.001,
        round=False,
        tooltip=f"Weight. {loss.help}{told} -1 keeps the recipe's own.",
    )


def plain(
    config: type, name: str, *, step: float = 1
) -> io.Int.Input | io.Float.Input | io.Boolean.Input:
    """A setting with its own default and range: a number, or yes or no."""
    field: Any = config.__dataclass_fields__[name]  # type: ignore[attr-defined]
    kind, help = get_type_hints(config)[name], help_of(config, name)
    if kind is bool:
        return io.Boolean.Input(name, default=field.default, tooltip=help)
    limits = {"min": kind(field.metadata["low"]), "max": kind(field.metadata["high"])}
    if kind is int:
        return io.Int.Input(name, default=field.default, **limits, step=int(step), tooltip=help)
    return io.Float.Input(name, default=field.default, **limits, step=step, tooltip=help)


def given(**values: Any) -> dict[str, Any]:
    """Those of the values that were set: not -1, not "recipe's own"."""
    return {name: value for name, value in values.items() if value not in (-1, KEEP)}


def training_face_model_inputs() -> tuple[io.Input, io.Input]:
    """The two ways to say which face model a training had, for a report that warns of it."""
    return (
        FaceModelSocket.Input(
            "loss_face_model",
            optional=True,
            tooltip="The training's face model, so that the report can warn where both are the "
            "same.",
        ),
        AdapterSocket.Input(
            "adapter",
            optional=True,
            tooltip="Instead of loss_face_model: the adapter that made the pictures, which stores "
            "the name of its training's face model.",
        ),
    )


def training_face_model(given: Any, adapter: Any) -> Any:
    """What those two inputs say: a face model, its name, or None."""
    return given or (adapter.info.get("face_model") if adapter else None)
