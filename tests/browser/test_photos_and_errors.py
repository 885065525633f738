"""Photos sent from the page to both kinds of nodes, and an error as the page shows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from magicapture.paperdoll.pairs import make_pair, pictures

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ROOT / "workflows" / "01 Train a person and a style.json"
NODE = "app.graph.nodes.find((node) => node.subgraph || node.type === 'MagiCaptureLoadPhotoSet')"
# The middle of a node's button, by its number.
BUTTON = f"""const node = {NODE};
const button = node.widgets.filter((widget) => widget.type === "button")[args[0]];
return button?.y && [node.pos[0] + node.size[0] / 2, node.pos[1] + button.y + 10]"""
SENTENCE = "No photos are given: choose a folder or connect images."


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> list[Path]:
    """Three drawn photos."""
    folder = tmp_path_factory.mktemp("photos")
    pair = make_pair(1_000_000, 1_000_099, photos=3)
    files = [folder / f"{number}.png" for number in range(3)]
    for file, photo in zip(files, pictures(pair.source), strict=True):
        pixels = (photo * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(file)
    return files


def load_photo_set(saved: str | None = None) -> dict[str, Any]:
    """A workflow of one Load Photo Set; or of two nodes, the second saves the first's photos."""
    socket = {"name": "references", "type": "MAGICAPTURE_REFERENCES"}
    common = {"flags": {}, "mode": 0, "properties": {}, "size": [330, 200]}
    nodes = [
        {
            **{"id": 1, "type": "MagiCaptureLoadPhotoSet", "pos": [0, 0], "order": 0, **common},
            "inputs": [],
            "outputs": [{**socket, "links": [1] if saved else []}],
            "widgets_values": ["(none: use images)", ""],
        },
        {
            **{"id": 2, "type": "MagiCaptureSavePhotoSet", "pos": [450, 0], "order": 1, **common},
            "inputs": [{**socket, "link": 1}],
            "outputs": [],
            "widgets_values": [saved],
        },
    ]
    links = [[1, 1, 0, 2, 0, socket["type"]]] if saved else []
    return {
        **{"last_node_id": 2, "last_link_id": 1, "version": 0.4, "groups": [], "config": {}},
        "nodes": nodes if saved else nodes[:1],
        "links": links,
    }


def upload(page: Any, button: int, files: list[Path], name: str) -> None:
    """Press a node's button, choose files, and name the set."""
    page.js("window.chooser = null")
    page.click(*page.wait(BUTTON, button))
    page.wait("return window.chooser")
    page.driver.execute_script("return window.chooser").send_keys("\n".join(map(str, files)))
    (field,) = page.wait_visible("[role=dialog] input")
    field.clear()
    field.send_keys(name)
    page.press("enter")


@pytest.mark.parametrize("kind", ["a node", "a subgraph"])
def test_photos_are_uploaded_by_the_button(page, server, photos, kind):
    alone = kind == "a node"
    page.load(load_photo_set() if alone else json.loads(TRAIN.read_text("utf-8")))
    page.look_at(*page.js(f"return {NODE}.pos"))
    for button, name in enumerate(["alone"] if alone else ["ada", "film"]):
        upload(page, button, photos, name)
        chosen = f"return {NODE}.widgets.some((widget) => widget.value === args[0])"
        page.wait(chosen, name)
        sent = (server.base / "input" / name).iterdir()
        assert sorted(file.read_bytes() for file in sent) == sorted(
            file.read_bytes() for file in photos
        )
        queued = [node["inputs"] for node in page.prompt().values()]
        assert name in [inputs.get("folder") for inputs in queued]
    assert page.console_errors() == []


def test_an_error_begins_with_our_sentence(page):
    page.load(load_photo_set("none"))
    page.press("control", "enter")
    page.wait("return heard.some(([type]) => type === 'execution_error')")
    shown = page.wait_visible("[role=dialog], .p-toast-message")
    lines = [line for element in shown for line in element.text.splitlines() if line.strip()]
    (place,) = [at for at, line in enumerate(lines) if SENTENCE in line][:1]
    assert lines[place].removeprefix("Load Photo Set: ").startswith(SENTENCE)
    assert "magicapture.errors" not in "".join(lines[:place])
