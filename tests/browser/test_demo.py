"""The demo as a user runs it: watched, cancelled, gone on with, and its result dropped back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(900)  # a training in a fixture

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "workflows" / "00 Try it with drawn faces.json"
PHOTOS, STEPS, PREVIEW_EVERY = 3, 23, 4  # no other part of the run has as many steps
NODE = "app.graph.nodes.find((node) => node.type === args[0])"
# A picture from the server, dropped on the page as from a folder.
DROP = """const [{ filename, subfolder, type }] = args[0];
const query = new URLSearchParams({ filename, subfolder, type });
const blob = await (await app.api.fetchApi(`/view?${query}`)).blob();
const dataTransfer = new DataTransfer();
dataTransfer.items.add(new File([blob], filename, { type: "image/png" }));
for (const kind of ["dragover", "drop"]) app.canvas.canvas.dispatchEvent(
  new DragEvent(kind, { dataTransfer, bubbles: true, cancelable: true, clientX: 9 }));"""


def set_widget(page: Any, kind: str, name: str, value: Any) -> None:
    code = f"{NODE}.widgets.find((widget) => widget.name === args[1]).value = args[2]"
    page.js(code, kind, name, value)


def steps_heard(page: Any) -> list[int]:
    """How many steps were done, each time the page was told."""
    told = [detail for kind, detail in page.js("return heard") if kind == "progress"]
    return [detail["value"] for detail in told if detail["max"] == STEPS]


def queue(page: Any) -> None:
    page.js("heard.length = 0")
    page.press("control", "enter")


def wait_for_end(page: Any) -> str:
    """How the run ended."""
    find = "return heard.find(([type]) => /^execution_(success|error|interrupted)$/.test(type))"
    return page.wait(find, seconds=500)[0]


@pytest.fixture(scope="module")
def demo(page):
    """The template on the page, with few steps."""
    page.load(json.loads(DEMO.read_text("utf-8")))
    set_widget(page, "MagiCaptureLoadPaperdollDemo", "steps", STEPS)
    set_widget(page, "MagiCaptureDrawPaperdollPhotos", "count", PHOTOS)
    set_widget(page, "EmptyLatentImage", "batch_size", 1)
    set_widget(page, "KSampler", "steps", 4)
    set_widget(page, "KSampler", "control_after_generate", "fixed")
    set_widget(page, "MagiCaptureTrain", "preview_every", PREVIEW_EVERY)
    return page


@pytest.fixture(scope="module")
def cancelled(demo):
    """The steps heard of until Cancel was pressed, and the addresses of the node's pictures."""
    queue(demo)
    told = "heard.some(([type, told]) => type === 'progress' && told.max === args[0]"
    demo.wait(f"return {told} && told.value > args[1])", STEPS, PREVIEW_EVERY, seconds=240)
    node = demo.js(f"return {NODE}.id", "MagiCaptureTrain")
    pictures = demo.js("return app.nodePreviewImages[args[0]]", node)
    demo.press("control", "alt", "enter")
    assert wait_for_end(demo) == "execution_interrupted"
    return steps_heard(demo), pictures


@pytest.fixture(scope="module")
def finished(demo, cancelled):
    """The steps heard of when the same was queued again, and the pictures that were saved."""
    set_widget(demo, "MagiCaptureTrain", "preview_every", 0)  # previews take the most time
    queue(demo)
    assert wait_for_end(demo) == "execution_success"
    node = str(demo.js(f"return {NODE}.id", "SaveImage"))
    outputs = [told for kind, told in demo.js("return heard") if kind == "executed"]
    (saved,) = [told["output"]["images"] for told in outputs if told["node"] == node]
    return steps_heard(demo), saved


def test_the_page_is_told_of_progress_and_shows_the_preview(demo, cancelled):
    steps, pictures = cancelled
    assert steps == sorted(steps) and max(steps) > PREVIEW_EVERY
    size = "return (await createImageBitmap(await (await fetch(args[0])).blob())).width"
    assert [demo.js(size, picture) > 100 for picture in pictures] == [True]


def test_cancel_stops_it_and_keeps_what_is_done(server, cancelled):
    steps, _ = cancelled
    assert max(steps) < STEPS
    (state,) = (server.base / "output" / "magicapture" / "runs").iterdir()
    assert state.suffix == ".state"


def test_queued_again_it_goes_on_after_that_step(demo, cancelled, finished):
    before, after = cancelled[0], finished[0]
    assert max(before) <= min(after) and max(after) == STEPS
    assert demo.console_errors() == []


def test_a_result_dropped_on_the_page_brings_its_workflow_back(demo, finished):
    before = demo.prompt()
    demo.js("app.graph.clear()")
    demo.js(DROP, finished[1])
    demo.wait(f"return !!{NODE}", "MagiCaptureTrain", seconds=30)
    assert demo.prompt() == before
