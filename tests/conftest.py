"""What every test gets: repeatable numbers, few threads, no network; and the folders it may use."""

from __future__ import annotations

import importlib
import json
import os
import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

# Before torch is imported: with more threads than cores, timings swing several-fold.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """Start every test from the same random state."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A cache folder of the tests' own, for their servers and subprocesses as well."""
    os.environ["MAGICAPTURE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def repo() -> Path:
    """The checkout's root."""
    return ROOT


@pytest.fixture(scope="session")
def comfyui_path() -> Path:
    """The folder of a ComfyUI, in which nothing is imported yet.

    It is looked for at COMFYUI_PATH, then two levels up (the pack inside custom_nodes), then beside
    the checkout.
    """
    places = [os.environ.get("COMFYUI_PATH"), ROOT.parents[1], ROOT.parent / "ComfyUI"]
    for place in filter(None, places):
        if (Path(place) / "comfy" / "model_management.py").is_file():
            return Path(place)
    pytest.skip("no ComfyUI: set COMFYUI_PATH to a checkout of it")


@pytest.fixture(scope="session")
def comfyui(comfyui_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ComfyUI, started in this process on the CPU with folders of its own; its path.

    Whatever imports it asks for this first: it reads its arguments once, when it is imported.
    """
    path = comfyui_path
    base = tmp_path_factory.mktemp("comfyui")
    sys.argv = ["main.py", "--cpu", "--base-directory", str(base)]
    sys.path.insert(0, str(path))
    import comfy.options

    comfy.options.enable_args_parsing()
    from comfy.cli_args import args

    args.cpu = True
    for name in ("utils.extra_config", "utils.install_util", "nodes"):
        importlib.import_module(name)  # in this order: nodes puts comfy/, with its utils, first
    import folder_paths

    for kind in ("output", "temp", "input", "user"):
        (base / kind).mkdir(exist_ok=True)
    for kind in ("loras", "embeddings", "checkpoints"):
        Path(folder_paths.get_folder_paths(kind)[0]).mkdir(parents=True, exist_ok=True)
    assert Path(folder_paths.get_output_directory()).is_relative_to(base)
    return path


@dataclass
class Server:
    """A ComfyUI of its own process, with the pack in custom_nodes under a hyphenated name."""

    url: str
    base: Path
    log: Path
    process: subprocess.Popen[bytes]

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=30) as answer:
            return json.loads(answer.read() or b"null")

    def post(self, path: str, data: Any = None) -> Any:
        body = json.dumps(data or {}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}{path}", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error

    def queue(self, prompt: dict[str, Any], **more: str) -> str:
        """Queue a workflow in API form, with defaults for the widgets it leaves out; its id."""
        known = self.get("/object_info")
        for node in prompt.values():
            for name, spec in known[node["class_type"]]["input"].get("required", {}).items():
                options = spec[1] if len(spec) > 1 else {}
                if "default" in options:
                    node["inputs"].setdefault(name, options["default"])
        return self.post("/prompt", {"prompt": prompt, **more})["prompt_id"]

    def result(self, prompt_id: str, seconds: float = 300) -> dict[str, Any]:
        """Wait for a run's end; its entry in the history."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if entry := self.get(f"/history/{prompt_id}").get(prompt_id):
                return entry
            time.sleep(0.2)
        raise AssertionError(f"no answer within {seconds} s: {self.log.read_text()[-3000:]}")


@contextmanager
def _serving(
    comfyui: Path, base: Path, checkpoint: Path | None = None, pack: str = "ComfyUI-MagiCapture.x"
) -> Iterator[Server]:
    """Start `main.py` on the CPU; the folder `base` becomes ComfyUI's own."""
    for folder in ("custom_nodes", "models/checkpoints", "input"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    links = {base / "custom_nodes" / pack: ROOT}
    if checkpoint:
        links[base / "models" / "checkpoints" / checkpoint.name] = checkpoint
    for link, target in links.items():
        if not link.exists():  # as it does where the same folder is served again
            link.symlink_to(target)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "main.py", "--base-directory", str(base), "--port", str(port)]
    log = base / "log.txt"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--disable-auto-launch", "--cpu"], cwd=comfyui, stdout=output, stderr=output
        )
        try:
            server = Server(f"http://127.0.0.1:{port}", base, log, process)
            for _ in range(600):
                assert process.poll() is None, log.read_text()[-3000:]
                with suppress(OSError):
                    server.get("/system_stats")
                    break
                time.sleep(0.2)
            else:
                pytest.fail(f"ComfyUI did not start within two minutes:\n{log.read_text()[-3000:]}")
            yield server
        finally:
            process.terminate()
            process.wait(60)  # a training is saved first


@pytest.fixture(scope="session")
def serving(comfyui_path: Path) -> Callable[..., AbstractContextManager[Server]]:
    """Starts a ComfyUI on the CPU: `serving(base, checkpoint, pack)`.

    Its folders are below `base`; the checkpoint is linked there, and the pack under its name.
    """
    return partial(_serving, comfyui_path)


@pytest.fixture(scope="session")
def shared_assets() -> Path:
    """The folder `assets` of real photos and weights, which are not part of the repository."""
    shared = os.environ.get("MAGICAPTURE_SHARED", ROOT.parent / "shared")
    assets = Path(shared) / "assets"
    if not assets.is_dir():
        pytest.skip(
            f"no real photos and weights at {assets}; set MAGICAPTURE_SHARED to their folder"
        )
    return assets


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


@pytest.fixture(scope="session")
def paperdoll_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the one that is shipped with paperdoll, of untrained networks."""
    from safetensors.torch import save_file

    from magicapture.paperdoll import networks, tokenizer
    from magicapture.paperdoll.weights import READERS

    folder = tmp_path_factory.mktemp("paperdoll")
    torch.manual_seed(0)
    words = tokenizer.load_tokenizer(tokenizer.write_tokenizer(folder / "tokenizer"))
    parts = {
        "unet": networks.unet(),
        "vae": networks.autoencoder(),
        "text_encoder": networks.text_encoder(len(words), words.eos_token_id),
    }
    for name, part in parts.items():
        part.half().save_pretrained(folder / name)
    networks.schedule().save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    for name, network in READERS.items():
        halves = {key: value.half() for key, value in network().state_dict().items()}
        save_file(halves, folder / f"{name}.safetensors")
    return folder
