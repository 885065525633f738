"""A help page with its picture; with --draw-pictures, the pictures of all pages are made anew."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

HELP = Path(__file__).resolve().parents[2] / "web" / "docs"
NODES = sorted(page.stem for page in HELP.glob("*.md"))
WIDTH = 300  # of a node at scale 1, if its title and widgets need no more
HEIGHT = 600  # of a picture
SCALE = 1.5
MARGIN = 8
PUT = """app.graph.clear();
app.canvas.background_image = null;
const node = LiteGraph.createNode(args[0]);
node.pos = [0, 0];
node.id = 100 + args[2];  // a page may keep the widgets' values of an id
app.graph.add(node);
node.badges = [];
const [width, height] = node.computeSize();
node.setSize([Math.max(args[1], width), height]);
app.canvas.deselectAll();"""
# Where the node with its title is on the page, in pixels.
PLACE = """const { pos, size } = app.graph.nodes[0];
const { scale, offset } = app.canvas.ds;
const { left, top } = app.canvas.canvas.getBoundingClientRect();
const title = LiteGraph.NODE_TITLE_HEIGHT;
return [left + (pos[0] + offset[0]) * scale, top + (pos[1] - title + offset[1]) * scale,
  left + (pos[0] + size[0] + offset[0]) * scale, top + (pos[1] + size[1] + offset[1]) * scale]"""


def draw(page: Any, kind: str) -> Image.Image:
    """The picture of a node that stands alone on the page."""
    page.js(PUT, kind, WIDTH, NODES.index(kind))
    height = page.js("return app.graph.nodes[0].size[1]")
    page.look_at(0, 0, min(SCALE, HEIGHT / height))
    left, top, right, bottom = page.js(PLACE)
    shot = Image.open(io.BytesIO(page.driver.get_screenshot_as_png())).convert("RGB")
    box = (left - MARGIN, top - MARGIN, right + MARGIN, bottom + MARGIN)
    assert box[2] < shot.width and box[3] < shot.height, f"{kind} is larger than the window"
    return shot.crop(tuple(round(side) for side in box))


@pytest.mark.parametrize("kind", NODES)
def test_a_picture_is_drawn(request, page, kind):
    if not request.config.getoption("--draw-pictures"):
        pytest.skip("writes files: with --draw-pictures alone")
    folder = HELP / "pictures"
    folder.mkdir(exist_ok=True)
    draw(page, kind).save(folder / f"{kind}.webp", quality=80, method=6)


def test_a_help_page_shows_its_picture(page):
    kind = "MagiCaptureApplyAdapter"
    page.js(PUT, kind, WIDTH, NODES.index(kind))
    page.look_at(0, 0)
    page.click(WIDTH / 2, -15)
    page.wait_visible("[data-testid=info-button]")[0].click()
    size = "return document.querySelector(`img[src*='/docs/pictures/${args[0]}']`)?.naturalWidth"
    with Image.open(HELP / "pictures" / f"{kind}.webp") as picture:
        assert page.wait(size, kind, seconds=30) == picture.width
