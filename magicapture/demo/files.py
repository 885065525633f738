"""A demo's three files."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import InputError
from ..files import atomic_write
from ..plot import loss_curves
from .demo import Demo
from .figure import sheet

FILES = ("result.png", "curves.png", "scores.json")
"""What a demo leaves in its folder."""


def require_own(folder: Path) -> None:
    """Raise InputError for a folder with files of a demo's names that no demo wrote."""
    taken = [name for name in FILES if (folder / name).exists()]
    if not taken or _is_demo(folder):
        return
    raise InputError(
        f"The folder {folder} holds {', '.join(taken)}, which no demo wrote; choose another folder."
    )


def _is_demo(folder: Path) -> bool:
    try:
        facts = json.loads((folder / FILES[-1]).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(facts, dict) and {"identity_seed", "style_seed"} <= facts.keys()


def write(demo: Demo, folder: Path) -> list[Path]:
    """Write result.png, curves.png and scores.json; raises StorageError where that fails."""
    steps = len(demo.history)
    curves = loss_curves(demo.history, steps, phases=demo.phase_ends[:-1], size=(900, 420))
    text = json.dumps(_facts(demo), indent=2)
    files = [folder / name for name in FILES]
    atomic_write(files[0], lambda path: sheet(demo).save(path, format="PNG", optimize=True))
    atomic_write(files[1], lambda path: curves.save(path, format="PNG"))
    atomic_write(files[2], lambda path: path.write_text(text + "\n", encoding="utf-8"))
    return files


def _facts(demo: Demo) -> dict[str, object]:
    return {
        "identity_seed": demo.settings.identity,
        "style_seed": demo.settings.style,
        "seed": demo.settings.seed,
        "steps": len(demo.history),
        "pictures": len(demo.results),
        "scores": {
            measure: {
                name: value if value is None else round(value, 4) for name, value in of.items()
            }
            for measure, of in demo.scores.items()
        },
        "obedience": {edit.words: value for edit, value in demo.obedience.items()},
        "seconds": dict(demo.seconds),
    }
