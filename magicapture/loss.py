"""What every loss says of itself: all that settings, curves, nodes and documents need to know.

The losses themselves are in `losses/`, one file each.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor

from .registry import Registry
from .settings import below, checked, object_of, refuse, refuse_unknown

Need = Literal["attention", "face masks", "face model", "class images", "dino"]


class Loss:
    """One loss of the training; `LOSSES.add(MyLoss())` is all that makes it known.

    name: of its weight in recipes. symbol: in equations. help: one sentence, for tooltips.
    colour: of its curve, "#rrggbb". default: its weight where a recipe gives none. paper, release:
    the weights of the paper and of the authors' release, where they have one.
    needs: what must be made ready for it. once: it looks at the token vectors alone, so it is
    called once a step, without rows.
    """

    name: str
    symbol: ClassVar[str] = ""
    help: ClassVar[str] = ""
    colour: ClassVar[str] = "#555555"
    default: ClassVar[float] = 0.0
    paper: ClassVar[float | None] = None
    release: ClassVar[float | None] = None
    needs: ClassVar[frozenset[Need]] = frozenset()
    once: ClassVar[bool] = False

    def tasks(self, recipe: Any) -> Collection[str]:
        """The tasks whose rows it cannot do without; it may look at others that run anyway."""
        return ()

    def weight(self, batch: Any) -> float:
        """Its weight at this step: the phase's, unless a loss says otherwise."""
        return float(batch.phase.weights[self.name])

    def __call__(self, batch: Any) -> Tensor:
        """One value for each row of the batch that it acts on (n,), n may be 0."""
        raise NotImplementedError


LOSSES: Registry[Loss] = Registry("loss")
"""Every loss by name, in the order in which a step adds them up."""


class Weights(Mapping[str, float]):
    """Weights of the losses by name; one that is not given has its loss's default.

    A loss of weight 0 is not computed. `weights.identity` reads as `weights["identity"]`. Raises
    InputError for a loss that there is not, and for what is no number of 0 or more.
    """

    def __init__(self, given: Mapping[str, float] | None = None, /, **weights: float) -> None:
        self._given = _checked_weights({**(given or {}), **weights}, "weights")

    @classmethod
    def read(cls, value: Any, path: str) -> Weights:
        """The weights of a JSON object at `path` in its file; raises as the class itself."""
        return cls(_checked_weights(object_of(value, path), path))

    def changed(self, **weights: float) -> Weights:
        """The same weights but for these."""
        return Weights({**self._given, **weights})

    def __getitem__(self, name: str) -> float:
        return float(self._given.get(name, LOSSES[name].default))

    def __getattr__(self, name: str) -> float:
        if name.startswith("_") or name not in LOSSES:
            raise AttributeError(name)
        return self[name]

    def __iter__(self) -> Iterator[str]:
        return iter(LOSSES)

    def __len__(self) -> int:
        return len(LOSSES)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Weights) and dict(self) == dict(other)

    def __hash__(self) -> int:
        return hash(tuple(self.items()))

    def __repr__(self) -> str:
        return (
            f"Weights({', '.join(f'{name}={weight:g}' for name, weight in self.items() if weight)})"
        )


def _checked_weights(weights: Mapping[str, Any], path: str) -> dict[str, float]:
    """Weights by name, as numbers of 0 or more; raises InputError that names what is none."""
    refuse_unknown(weights, LOSSES, path)
    numbers = {name: checked(float, weight, below(path, name)) for name, weight in weights.items()}
    for name, number in numbers.items():
        if number < 0:
            refuse(below(path, name), "a number of 0 or more", number)
    return numbers
