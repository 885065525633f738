"""What is known of a kind of model of faces: its files, what is in them, and what runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from .content import Content

Role = Literal["detector", "parser", "embedder", "restorer", "dino"]

TITLES: dict[Role, str] = {
    "detector": "face detector",
    "parser": "face parser",
    "embedder": "face recognition model",
    "restorer": "face restorer",
    "dino": "DINO model",
}
"""What users read for each role."""

ONNX = (".onnx",)
WEIGHTS = (".pth", ".safetensors")
"""Endings of ONNX models and of bare weights."""


@dataclass(frozen=True)
class ModelFile:
    """A file the user may bring.

    file: its customary name. folder: where it belongs, below ComfyUI's models folder.
    published: the release's page, and the archive in it. licence: of the weights, where stated.
    rank: among the files of its role; the lowest that is found is taken where the user names none.
    names: patterns of the names it goes by; empty for `file` alone.
    shipped: where it lies in the pack, if it comes with it.
    package: where it lies in another package that brings it, as "module/folder".
    """

    file: str
    folder: str
    published: str
    licence: str
    rank: int
    names: tuple[str, ...] = ()
    shipped: Path | None = None
    package: str = ""

    @property
    def installed(self) -> Path | None:
        """Where it lies in this pack or in the package that brings it, which is not imported."""
        if self.shipped or not self.package:
            return self.shipped
        module, _, folder = self.package.partition("/")
        spec = find_spec(module)
        roots = (spec.submodule_search_locations if spec else None) or ()
        paths = (Path(root, folder, self.file) for root in roots)
        return next((path for path in paths if path.is_file()), None)

    def is_called(self, name: str) -> bool:
        """Whether a file of this name is taken to be this one."""
        return any(fnmatch(name.lower(), n.lower()) for n in self.names or (self.file,))

    @property
    def is_free(self) -> bool:
        """Whether the licence, as far as stated, allows any use."""
        return "non-commercial" not in self.licence

    def __str__(self) -> str:
        return (
            f"{self.file} in models/{self.folder} (published at {self.published}; "
            f"licence: {self.licence})"
        )


@dataclass(frozen=True)
class ModelKind:
    """A kind of model: adding one means making one of these (see docs/faces.md).

    title: what users read, with the package it comes from. endings: of its files, with the dot.
    packages: what runs it, by name in the package registry, and the modules these bring.
    recognises: whether a file's content is of this kind; it must raise nothing of its own.
    load: from a file's content to what runs it: a `SquareDetector`, a `FaceParser`. None where a
        module of its own does (`embed`, `refine.models`).
    """

    role: Role
    title: str
    files: tuple[ModelFile, ...]
    endings: tuple[str, ...]
    packages: Mapping[str, str] = field(default_factory=dict)
    recognises: Callable[[Content], bool] | None = None
    load: Callable[[Content], Any] | None = None


INSIGHTFACE = "https://github.com/deepinsight/insightface/releases/tag/v0.7, {}.zip"
FACEXLIB = "https://github.com/xinntao/facexlib/releases/tag/{}"
RESEARCH = "non-commercial research"
CELEBA = "MIT; trained on CelebAMask-HQ, which is for non-commercial research"
"""Where several files come from, and licences that several have."""
