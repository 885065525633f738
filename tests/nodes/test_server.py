"""A ComfyUI of its own: the pack loads from custom_nodes, trains, is cancelled, goes on."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow


def put_photos(folder: Path, seed: int) -> None:
    """Three noisy pictures with a mask each."""
    folder.mkdir()
    random = np.random.default_rng(seed)
    for i in range(3):
        Image.fromarray(random.integers(0, 255, (80, 72, 3), np.uint8)).save(folder / f"{i}.png")
        mask = np.zeros((80, 72), np.uint8)
        mask[20:60, 20:52] = 255
        Image.fromarray(mask).save(folder / f"{i}.mask.png")


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def workflow(checkpoint: str, steps: int, tokens: tuple[str, str], name: str) -> dict[str, Any]:
    """Train on two folders, save, and draw with stock nodes from the adapter in memory."""
    subject, style = tokens
    parts = {"model": ["base", 0], "clip": ["base", 1]}
    prompt = f"embedding:{subject} person in embedding:{style} style"
    return {
        "base": node("CheckpointLoaderSimple", ckpt_name=checkpoint),
        "faces": node("MagiCaptureLoadPhotoSet", folder="faces"),
        "films": node("MagiCaptureLoadPhotoSet", folder="films"),
        "who": node(
            "MagiCaptureDefineConcept", references=["faces", 0], role="subject", name=subject
        ),
        "look": node("MagiCaptureDefineConcept", references=["films", 0], role="style", name=style),
        "recipe": node("MagiCaptureChooseRecipe", steps=steps, rank=2, resolution=64),
        "train": node(
            "MagiCaptureTrain",
            **parts,
            vae=["base", 2],
            subject=["who", 0],
            style=["look", 0],
            recipe=["recipe", 0],
        ),
        "save": node("MagiCaptureSaveAdapter", adapter=["train", 0], name=name),
        "apply": node("MagiCaptureApplyAdapter", **parts, adapter=["train", 0]),
        "prompt": node("CLIPTextEncode", clip=["apply", 1], text=prompt),
        "nothing": node("CLIPTextEncode", clip=["apply", 1], text=""),
        "size": node("EmptyLatentImage", width=64, height=64),
        "sample": node(
            "KSampler",
            model=["apply", 0],
            positive=["prompt", 0],
            negative=["nothing", 0],
            latent_image=["size", 0],
            steps=2,
            sampler_name="euler",
            scheduler="normal",
        ),
        "image": node("VAEDecode", samples=["sample", 0], vae=["base", 2]),
        "show": node("SaveImage", images=["image", 0], filename_prefix=name),
    }


@pytest.fixture(scope="module")
def photos(server):
    put_photos(server.base / "input" / "faces", 1)
    put_photos(server.base / "input" / "films", 2)


def test_the_pack_loads_from_a_hyphenated_folder(server):
    known = server.get("/object_info")
    own = [name for name in known if name.startswith("MagiCapture")]
    assert "MagiCaptureTrain" in own and len(own) >= 10
    for name in own:
        for inputs in known[name]["input"].values():
            for spec in inputs.values() if isinstance(inputs, dict) else ():
                assert spec, f"{name} has an input without a type"
    assert "IMPORT FAILED" not in server.log.read_text()


def test_training_saving_and_drawing_in_one_graph(server, photos, checkpoint):
    prompt = workflow(checkpoint, 4, ("ada-7", "film-7"), "whole")
    entry = server.result(server.queue(prompt))
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"][-1]
    assert entry["outputs"]["show"]["images"]
    assert list((server.base / "models" / "loras").glob("whole*.safetensors"))
    for name in ("ada-7", "film-7"):
        assert (server.base / "models" / "embeddings" / f"{name}.safetensors").is_file()


def test_cancel_stops_a_run_and_the_next_is_none_the_worse(server, photos, checkpoint):
    prompt = workflow(checkpoint, 2000, ("ada-8", "film-8"), "again")
    run = server.queue(prompt)
    time.sleep(10)  # into the steps
    server.post("/interrupt")
    entry = server.result(run, 60)
    messages = [kind for kind, _ in entry["status"]["messages"]]
    assert "execution_interrupted" in messages, entry["status"]["messages"][-1]
    entry = server.result(server.queue(workflow(checkpoint, 4, ("ada-9", "film-9"), "after")))
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"][-1]


def test_an_error_names_the_node(server, photos, checkpoint):
    prompt = workflow(checkpoint, 4, ("not a name", "film-7"), "none")
    entry = server.result(server.queue(prompt))
    errors = [data for kind, data in entry["status"]["messages"] if kind == "execution_error"]
    assert "Define Concept" in errors[0]["exception_message"]


def at_work(server, prompt: dict[str, Any], steps: int) -> str:
    """Queue a workflow and wait until its training has done a few of `steps`; its id."""
    import aiohttp  # ComfyUI's own: it is there wherever a server runs

    async def wait() -> str:
        address = f"{server.url}/ws?clientId=me"
        async with aiohttp.ClientSession() as session, session.ws_connect(address) as socket:
            run = server.queue(prompt, client_id="me")
            async for message in socket:
                text = message.type == aiohttp.WSMsgType.TEXT
                event = json.loads(message.data) if text else {"type": "picture"}
                data = event.get("data")
                if event["type"] == "progress" and data["max"] == steps and data["value"] >= 3:
                    return run
        raise AssertionError(server.log.read_text()[-3000:])

    return asyncio.run(asyncio.wait_for(wait(), 240))


def test_a_training_is_saved_when_the_server_is_stopped(serve, checkpoint, tmp_path):
    """By SIGTERM, as a system's shutdown and `docker stop` send it; then it goes on."""
    prompt = workflow(checkpoint, 4000, ("ada-5", "film-5"), "stopped")
    (tmp_path / "input").mkdir()
    for number, name in enumerate(("faces", "films")):
        put_photos(tmp_path / "input" / name, number)
    saved = []
    for _ in range(2):
        with serve(tmp_path) as server:
            at_work(server, prompt, 4000)
            server.process.terminate()
            server.process.wait(60)
            assert "Traceback" not in server.log.read_text()
        (state,) = (tmp_path / "output" / "magicapture" / "runs").iterdir()
        saved.append(state.name)
    assert saved[0] == saved[1] and saved[0].endswith(".state")
