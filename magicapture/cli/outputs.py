"""Files that a command writes under a name the user gave: never over somebody else's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import atomic_write

_MADE_BY = "made_by"


def check_json(path: Path | None, command: str, flag: str = "--json") -> None:
    """Raise InputError where a file is in the way that this command did not write."""
    if path is not None and path.exists() and not _is_report(path, command):
        raise InputError(
            f"{flag}: {path} exists, and `{command}` did not write it; choose another name, or "
            "move it away."
        )


def write_json(path: Path, data: Mapping[str, Any], command: str) -> None:
    """Write figures as JSON that says which command made it; raises StorageError."""
    text = json.dumps({_MADE_BY: command, **data}, indent=2, ensure_ascii=False) + "\n"
    atomic_write(path, lambda file: file.write_text(text, "utf-8"))


def check_report(folder: Path, report: str, others: Sequence[str], command: str) -> None:
    """Raise InputError where a file of a report is in the way that this command did not write.

    report: the JSON file's name, which tells for the others.
    """
    check_json(folder / report, command, "--out")
    strange = [name for name in others if (folder / name).exists()]
    if strange and not (folder / report).exists():
        raise InputError(
            f"--out: {folder / strange[0]} exists without {report} beside it; choose another "
            "folder, or move it away."
        )


def check_sheet(path: Path | None, folder: Path, prompt: str) -> None:
    """Raise InputError for a sheet that is no .png, would be taken for a photo, or is in the way.

    prompt: the text inside a sheet of ours (`images.save_image`).
    """
    if path is None:
        return
    if path.suffix.lower() != ".png":
        raise InputError(f"--sheet: {path} does not end in .png; give such a name.")
    if path.resolve().parent in (folder.resolve(), folder.resolve() / "masks"):
        raise InputError(
            f"--sheet: {path} lies among the photos and would be taken for one; choose another "
            "folder."
        )
    if path.exists() and not _is_sheet(path, prompt):
        raise InputError(
            f"--sheet: {path} exists, and is no contact sheet; choose another name, or move it "
            "away."
        )


def _is_report(path: Path, command: str) -> bool:
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(data, dict) and data.get(_MADE_BY) == command


def _is_sheet(path: Path, prompt: str) -> bool:
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.info.get("prompt") == prompt
    except Exception:  # Pillow's readers raise errors of many kinds
        return False
