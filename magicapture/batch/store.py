"""Where results and states lie: a folder that all machines see, or any address that fsspec knows.

What is written is never seen half-written: a file gets a name that no one reads, and is then moved.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..digests import digest
from ..errors import StorageError
from ..files import TEMPORARY, atomic_write

_Stamp = tuple[int, int]  # a file's time and size


class Store:
    """The results' place, from a path or an address such as s3://bucket/run.

    Raises StorageError where the address cannot be used: its package may be missing.
    """

    def __init__(self, address: str) -> None:
        from fsspec.core import url_to_fs
        from fsspec.implementations.local import LocalFileSystem

        self.address = address
        try:
            fs, root = url_to_fs(address)
        except (ImportError, ValueError, OSError) as error:
            raise StorageError(
                f"{address} cannot be reached ({error}); give a folder, or an address whose fsspec "
                "package is installed."
            ) from error
        self._fs: Any = fs
        self._root = str(root).rstrip("/")
        self.folder = Path(root) if isinstance(fs, LocalFileSystem) else None
        """The folder itself; None for a place that is no file system of this machine."""

    def path(self, name: str) -> str:
        """Where a file or folder of a name is, as messages and users know it."""
        return f"{self.address.rstrip('/')}/{name}"

    def read(self, name: str) -> bytes | None:
        """A file's bytes, None where there is none; raises StorageError."""
        try:
            return self._fs.cat_file(self._at(name))
        except FileNotFoundError:
            return None
        except Exception as error:  # every kind of place has errors of its own
            raise self._failed(name, error) from error

    def exists(self, name: str) -> bool:
        """Whether there is a file of that name; raises StorageError."""
        try:
            return bool(self._fs.exists(self._at(name)))
        except Exception as error:
            raise self._failed(name, error) from error

    def remove(self, name: str) -> None:
        """Remove a file or folder, if it is there; raises StorageError."""
        try:
            if self._fs.exists(self._at(name)):
                self._fs.rm(self._at(name), recursive=True)
        except Exception as error:
            raise self._failed(name, error) from error

    @contextmanager
    def opened(self, name: str, wanted: str = "") -> Iterator[Place]:
        """A folder of the results to write into, by its name.

        wanted: a folder inside it whose files are there already where the place is far away.
        """
        if self.folder is not None:
            yield Place(self, name, self.folder / name)
            return
        # One name for one job: what a killed worker of this machine has left is taken away.
        near = Path(tempfile.gettempdir(), "magicapture-batch", digest(self.address, name)[:24])
        shutil.rmtree(near, ignore_errors=True)
        near.mkdir(parents=True)
        try:
            place = Place(self, name, near)
            if wanted:
                place.fetch(wanted)
            yield place
        finally:
            shutil.rmtree(near, ignore_errors=True)

    def get(self, name: str, folder: Path) -> list[Path]:
        """Copy the files of a folder and its folders, less those that are being written.

        Raises StorageError.
        """
        try:
            if not self._fs.exists(self._at(name)):
                return []
            files = [file for file in self._fs.find(self._at(name)) if TEMPORARY not in file]
            copies = [folder / file.rpartition(f"/{name}/")[2] for file in files]
            for file, copy in zip(files, copies, strict=True):
                copy.parent.mkdir(parents=True, exist_ok=True)
                self._fs.get_file(file, str(copy))
            return copies
        except Exception as error:
            raise self._failed(name, error) from error

    def put(self, file: Path, name: str) -> None:
        """Copy a file to its name in one move; raises StorageError."""
        to = self._at(name)
        folder, _, leaf = to.rpartition("/")
        new = f"{folder}/.{leaf}{TEMPORARY}"
        try:
            self._fs.makedirs(folder, exist_ok=True)
            self._fs.put_file(str(file), new)
            self._fs.mv(new, to)
        except Exception as error:
            raise self._failed(name, error) from error

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _failed(self, name: str, error: Exception) -> StorageError:
        return StorageError(
            f"{self.path(name)} cannot be read or written ({error}); check the address, and that "
            "this machine may use it."
        )


@dataclass
class Place:
    """A folder of the results as a folder of this machine; `send` brings changes where they belong.

    near: the folder to write into, which is the results' own where that is a file system.
    """

    store: Store
    name: str
    near: Path
    _sent: dict[Path, _Stamp] = field(default_factory=dict)

    def fetch(self, inner: str) -> None:
        """Copy the files of a folder inside, from far away."""
        for copy in self.store.get(f"{self.name}/{inner}", self.near / inner):
            self._sent[copy] = _stamp(copy)

    def send(self) -> None:
        """Bring new and changed files where they belong; raises StorageError."""
        if self.store.folder is not None:
            return
        for file in sorted(self.near.rglob("*")):
            if file.is_file() and TEMPORARY not in file.name:
                stamp = _stamp(file)
                if self._sent.get(file) != stamp:
                    inside = file.relative_to(self.near).as_posix()
                    self.store.put(file, f"{self.name}/{inside}" if self.name else inside)
                    self._sent[file] = stamp

    def write(self, name: str, data: bytes) -> None:
        """Write a file and send all that changed, this one last; raises StorageError."""
        self.send()
        atomic_write(self.near / name, lambda file: file.write_bytes(data))
        self.send()


def _stamp(file: Path) -> _Stamp:
    found = file.stat()
    return found.st_mtime_ns, found.st_size
