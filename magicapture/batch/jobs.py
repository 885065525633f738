"""The file of a batch: a list of jobs in YAML, each checked, with the line that it stands on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, MagiCaptureError, StorageError
from ..settings import refuse_unknown

Settings = dict[str, Any]
"""A job as the file has it, by name."""

_PARTS = ("defaults", "jobs")
_LARGEST = 50 * 2**20  # bytes of a file of jobs


@dataclass(frozen=True)
class Job:
    """One training of a batch.

    name: of its folder among the results, which may have sub-folders. words: what `train` is
    given on the command line. fingerprint: of all that decides the result. line: where it stands.
    """

    name: str
    words: tuple[str, ...]
    fingerprint: str
    line: int = 0

    @property
    def leaf(self) -> str:
        """The name without sub-folders, which its files have."""
        return self.name.rpartition("/")[2]

    def __str__(self) -> str:
        return self.name


def read_jobs(file: Path, job_of: Callable[[Settings, int], Job]) -> list[Job]:
    """Read a file of jobs: a list of them, or {defaults: ..., jobs: [...]}.

    job_of: makes a job of its settings and line, and raises MagiCaptureError for what cannot be.
    Raises StorageError for a file that cannot be read, InputError that names every bad line.
    """
    jobs, bad, taken = [], [], dict[str, int]()
    for line, given in _entries(file):
        try:
            if isinstance(given, InputError):
                raise given
            job = job_of(given, line)
            if job.name.casefold() in taken:
                where = taken[job.name.casefold()]
                raise InputError(f"out: {job.name!r} is that of line {where} already; give another")
            taken[job.name.casefold()] = line
            jobs.append(job)
        except MagiCaptureError as error:
            bad.append(f"{file.name}, line {line}: {error}")
    if bad:
        raise InputError("\n".join([f"Nothing was run. {_counted(len(bad))}:", *bad]))
    if not jobs:
        raise InputError(f"{file} holds no job; expected a list of them under jobs:.")
    return jobs


def _entries(file: Path) -> Iterator[tuple[int, Settings | InputError]]:
    """Every job's line, counted from 1, with its settings over the defaults, or what is wrong."""
    import yaml

    root = _composed(file)
    defaults: Settings = {}
    if isinstance(root, yaml.MappingNode):
        top = _mapping(root)
        refuse_unknown(top, _PARTS, file.name)
        if "defaults" in top:
            defaults = _settings(top["defaults"])
        root = top.get("jobs")
    if not isinstance(root, yaml.SequenceNode):
        raise InputError(f"{file}: expected a list of jobs, or defaults: and jobs: with the list.")
    for node in root.value:
        line = node.start_mark.line + 1
        try:
            yield line, {**defaults, **_settings(node)}
        except InputError as error:
            yield line, error


def _composed(file: Path) -> Any:
    import yaml

    try:
        if file.stat().st_size > _LARGEST:
            raise InputError(f"{file} is larger than {_LARGEST / 2**20:.0f} MiB; split it.")
        return yaml.compose(file.read_text("utf-8-sig"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is no YAML: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise StorageError(f"{file} cannot be read ({error.strerror}); check the name.") from error


def _mapping(node: Any) -> dict[str, Any]:
    """A mapping's nodes by name; raises InputError for another node, and for a name given twice."""
    import yaml

    if not isinstance(node, yaml.MappingNode):
        raise InputError("expected a mapping, such as {person: photos/ada, style: photos/noir}")
    found: dict[str, Any] = {}
    for key, value in node.value:
        if key.value in found:
            raise InputError(f"{key.value}: given twice; leave one out")
        found[key.value] = value
    return found


def _settings(node: Any) -> Settings:
    import yaml

    loader = yaml.SafeLoader("")
    try:
        return {
            name: loader.construct_object(value, deep=True)
            for name, value in _mapping(node).items()
        }
    except yaml.YAMLError as error:
        raise InputError(" ".join(str(error).split())) from error


def _counted(bad: int) -> str:
    return "A line cannot be used" if bad == 1 else f"{bad} lines cannot be used"
