"""The jobs of a batch, in the names of `train`'s options: read, told apart, and made ready."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

from ..batch import Job, Need, Settings
from ..data.companions import found_in
from ..digests import digest, file_digest
from ..errors import InputError
from ..files import TEMPORARY, safe_path
from ..latents import LatentMemory
from ..settings import refuse, refuse_unknown
from ..weight_files import PICKLES
from .faces import NONE
from .latest import Latest
from .options import Parser
from .recipe import recipe_from
from .training import Training, check_values

NEEDED = ("person", "style", "base", "out")
"""What every job says."""

_NAMES = {"person": "source"}
"""What a job calls otherwise than `train`."""

BATCHS_OWN = frozenset(
    ["device", "fresh", "help", "out_dir", "preview_every", "states"],
)
"""Options of `train` that no job has: where jobs run and write, the batch says."""

CONTENT = ("source", "style", "base", "taesd", "face_model", "detector", "parser")
SETTINGS = (
    *("seed", "class_word", "vectors", "subject_name", "style_name", "subject_phrase"),
    *("style_phrase", "precision", "leave_out", "bundle", "face_model_input"),
    *("consent", "no_made_with"),
)
IN_THE_RECIPE = ("recipe", "steps", "rank", "resolution", "set", "without_masks")
NO_MATTER = ("out", "save_every", "save_memory", "models", "anyway")
"""How each option counts in a job's fingerprint: by its files' bytes, as it is, or not."""

LATER_CONTENT = ("dino", "clip", "judge_model")
LATER_SETTINGS = (
    *("fit", "keep", "keep_every", "keep_seeds", "keep_guidance", "choose", "stop_early", "take"),
    "judge_model_input",
)
"""The same of options that jobs got later: they count where they are given, so that what was
finished before is finished still."""

_PATHS = ("DIR", "FILE", "PATH")  # what an option's value is called that is one


class TrainParser(Parser):
    """The options of `train`, whose errors are raised instead of ending the program."""

    def __init__(self) -> None:
        from .train import add_options  # which has the batch's own command as well

        super().__init__(prog="magicapture train", allow_abbrev=False)
        add_options(self)

    def error(self, message: str) -> NoReturn:
        """Raise InputError."""
        raise InputError(message.removeprefix("argument "))

    def read(self, job: Job, device: str = "cpu") -> argparse.Namespace:
        """A job's options; device: the one that the batch gives it."""
        return self.parse_args([*job.words, f"--device={device}"])

    @property
    def options(self) -> dict[str, argparse.Action]:
        """What a job may say, by name."""
        names = {option: name for name, option in _NAMES.items()}
        return {
            names.get(action.dest, action.dest): action
            for action in self._actions
            if action.dest not in BATCHS_OWN
        }


class JobReader:
    """Turns a job of the file into one that can be run. folder: of the file, where paths begin."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.parser = folder, TrainParser()
        self._known: dict[str, str] = {}  # many jobs have one base

    def __call__(self, given: Settings, line: int) -> Job:
        """The job; raises InputError or StorageError for what `train` refuses before any photo."""
        given = {name.replace("-", "_"): value for name, value in given.items()}
        options = self.parser.options
        refuse_unknown(given, options, "")
        for name in NEEDED:
            if given.get(name) is None:
                raise InputError(f"{name}: missing; a job says {', '.join(NEEDED)}.")
        words = chain.from_iterable(self._words(options[k], v) for k, v in given.items())
        name = safe_path(str(given["out"]), "output name", ".safetensors")
        job = Job(name, tuple(words), "", line)
        arguments = self.parser.read(job)
        check_values(arguments)
        for folder in (arguments.source, arguments.style):
            found_in(folder)
        return replace(job, fingerprint=self._fingerprint(arguments))

    def _words(self, action: argparse.Action, value: Any) -> Iterator[str]:
        """An option's words on the command line."""
        flag = action.option_strings[0]
        name = flag.removeprefix("--").replace("-", "_")
        if action.nargs == 0 and not isinstance(value, bool):
            refuse(name, "true or false", value)
        elif action.nargs in (0, "?") and isinstance(value, bool):
            yield from [flag] if value else []
        elif isinstance(value, list | dict):
            if not isinstance(action, argparse._AppendAction):
                refuse(name, "one value", value)
            pairs = value.items() if isinstance(value, dict) else ()
            several = [f"{path}={json.dumps(one)}" for path, one in pairs] or value
            yield from (f"{flag}={one}" for one in several)
        elif value is None or isinstance(value, bool):
            refuse(name, "a value", value)
        else:
            yield f"{flag}={self._absolute(action, str(value))}"

    def _absolute(self, action: argparse.Action, value: str) -> str:
        """A path as every machine knows it; any other value as it is."""
        is_recipe = action.dest == "recipe" and value.lower().endswith(".json")
        if value == NONE or not (action.metavar in _PATHS or is_recipe):
            return value
        return str((self.folder / Path(value).expanduser()).resolve())

    def _fingerprint(self, arguments: argparse.Namespace) -> str:
        """A hash of the settings, and of the bytes of photos and models."""
        lean = argparse.Namespace(**{**vars(arguments), "save_memory": False})
        facts: dict[str, Any] = {name: getattr(arguments, name) for name in SETTINGS}
        facts["recipe"] = recipe_from(lean).settings()
        given = [
            name
            for name in (*LATER_SETTINGS, *LATER_CONTENT)
            if getattr(arguments, name) != self.parser.get_default(name)
        ]
        facts |= {name: getattr(arguments, name) for name in given if name in LATER_SETTINGS}
        for name in (*CONTENT, *(name for name in given if name in LATER_CONTENT)):
            value = getattr(arguments, name)
            facts[name] = value if value in (None, NONE) else self._content(str(value))
        return digest(json.dumps(facts, sort_keys=True))

    def _content(self, path: str) -> str:
        """A hash of a file, or of a folder's files with their names; what is never read is not."""
        if path not in self._known:
            root = Path(path)
            if not root.exists():
                raise InputError(f"{path} does not exist; check the name.")
            files = [root] if root.is_file() else sorted(root.rglob("*"))
            read = [f for f in files if f.is_file() and not _is_passed_over(f, root)]
            told = [(f.relative_to(root).as_posix(), file_digest(f)) for f in read]
            self._known[path] = digest(told)
        return self._known[path]


def _is_passed_over(file: Path, root: Path) -> bool:
    """Whether a file of a folder is hidden, being written, or of a kind that could hold code."""
    ending = file.suffix.lower()
    return file != root and (ending in PICKLES or TEMPORARY in file.name or file.name[0] == ".")


class TrainLoader:
    """Makes jobs ready on a worker, as `train` does.

    The models stay for the next job, and latents of photos for those with the same photos.
    """

    def __init__(self, need: Need) -> None:
        self.parser, self.device = TrainParser(), "cuda" if need.gpus else "cpu"
        self.latest = Latest()

    def check(self, job: Job) -> Training:
        """Find the faces, and check all that needs no base model; raises MagiCaptureError."""
        training = Training.of(self.parser.read(job, self.device), self.latest)
        training.job.check()
        return training

    def open(self, job: Job) -> tuple[Training, Sequence[str]]:
        """The job with its models, and what was warned of; raises MagiCaptureError."""
        with _warnings() as told:
            training = Training.of(self.parser.read(job, self.device), self.latest).on(self.latest)
        backbone = training.backbone
        if backbone is not None and backbone.latents is None:
            backbone.latents = LatentMemory()  # which goes when the base model does
        return training, told


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """What is warned of meanwhile."""
    told: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    handler, root = Handler(logging.WARNING), logging.getLogger(__name__.partition(".")[0])
    root.addHandler(handler)
    try:
        yield told
    finally:
        root.removeHandler(handler)
