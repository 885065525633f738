"""A file of small jobs: drawn photos, and a tiny base model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from magicapture.data.writing import save_photo_set
from magicapture.paperdoll.pairs import make_pair, references

Write = Callable[..., Path]


@pytest.fixture
def write_jobs(small_base: Path, tmp_path: Path) -> Write:
    """Writes a file of jobs with defaults that each may change, and returns it."""
    pair = make_pair(1_000_000, 1_000_099, photos=2)
    for dolls, name in ((pair.source, "person"), (pair.reference, "style")):
        photos = references(dolls)
        names = [f"{i}.png" for i in range(len(photos))]
        save_photo_set(photos.known("names", names), tmp_path / "photos" / name)

    def write(*jobs: Mapping[str, Any], **changes: Any) -> Path:
        defaults = {
            "person": "photos/person",
            "style": "photos/style",
            "base": str(small_base),
            "steps": 4,
            "rank": 2,
            "resolution": 64,
            "face_model": "none",
            "set": {"variants": 1, "refocus.factors": [1]},
            **changes,
        }
        lines = ["defaults:", *(f"  {name}: {json.dumps(v)}" for name, v in defaults.items())]
        lines += ["jobs:", *(f"  - {json.dumps(job)}" for job in jobs)]
        file = tmp_path / "jobs.yaml"
        file.write_text("\n".join(lines) + "\n")
        return file

    return write
