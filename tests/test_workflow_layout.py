"""The shipped workflows as drawings: nothing overlaps, everything is in a group, links can be
followed. Sizes are those of the files; ComfyUI's second node design draws nodes taller."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "workflows").glob("*.json"))
BELOW = 60  # pixels left free below a node, for the second design
TITLE = 30
CROSSINGS = 12  # at most, of links that have no node in common

Box = tuple[float, float, float, float]
Point = tuple[float, float]


@cache
def read(page: Path) -> dict[str, Any]:
    return json.loads(page.read_text())


def graphs(page: Path) -> Iterator[dict[str, Any]]:
    """The page's graph, and those of its subgraphs."""
    graph = read(page)
    yield graph
    yield from graph.get("definitions", {}).get("subgraphs", [])


def box(node: dict[str, Any]) -> Box:
    """Left, top, right, bottom of a node with its title."""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE, x + width, y + height


def boxes_of(graph: dict[str, Any]) -> list[Box]:
    """Left, top, right, bottom of each group."""
    bounds = [group["bounding"] for group in graph["groups"]]
    return [(x, y, x + width, y + height) for x, y, width, height in bounds]


def meet(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def inside(one: Box, other: Box) -> bool:
    return other[0] <= one[0] and other[1] <= one[1] and one[2] <= other[2] and one[3] <= other[3]


def socket(node: dict[str, Any], slot: int, *, out: bool) -> Point:
    """Where a link ends: sockets are 20 px apart; a widget's is somewhere below them."""
    (x, y), (width, _) = node["pos"], node["size"]
    return x + width * out, y + 14 + 20 * slot


def curve(start: Point, end: Point, level: tuple[bool, bool], points: int = 40) -> list[Point]:
    """A link as it is drawn: a cubic that leaves and arrives level where a socket is."""
    (x0, y0), (x3, y3) = start, end
    pull = ((x3 - x0) ** 2 + (y3 - y0) ** 2) ** 0.5 / 4
    x1, x2 = x0 + pull * level[0], x3 - pull * level[1]
    line = []
    for i in range(points + 1):
        t = i / points
        a, b, c, d = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3
        line.append((a * x0 + b * x1 + c * x2 + d * x3, (a + b) * y0 + (c + d) * y3))
    return line


def drawn(graph: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any], list[Point], int]]:
    """Source, target, course and output of every link."""
    nodes, bends = {node["id"]: node for node in graph["nodes"]}, {}
    for bend in graph["extra"].get("reroutes", []):
        for link in bend["linkIds"]:
            bends.setdefault(link, []).append(tuple(bend["pos"]))
    found = []
    for link, source, output, target, at, _ in graph["links"]:
        one, other = nodes[source], nodes[target]
        ends = [socket(one, output, out=True), *bends.get(link, []), socket(other, at, out=False)]
        course = []
        for i, (start, end) in enumerate(pairwise(ends)):
            course += curve(start, end, (i == 0, i == len(ends) - 2))
        found.append((one, other, course, output))
    return found


def cross(one: list[Point], other: list[Point]) -> bool:
    """Whether two courses cross."""

    def side(p: Point, q: Point, r: Point) -> float:
        return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])

    for a, b in pairwise(one):
        for c, d in pairwise(other):
            if side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0:
                return True
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_node_hides_another(page: Path) -> None:
    for graph in graphs(page):
        for one, other in combinations(graph["nodes"], 2):
            upper, lower = sorted((box(one), box(other)), key=lambda b: b[1])
            room = (upper[0], upper[1], upper[2], upper[3] + BELOW - TITLE)
            assert not meet(room, lower), (one["id"], one["type"], other["id"], other["type"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_node_is_in_one_group(page: Path) -> None:
    for graph in graphs(page):
        boxes = boxes_of(graph)
        for one, other in combinations(boxes, 2):
            assert not meet(one, other)
        for node in graph["nodes"]:
            assert sum(inside(box(node), group) for group in boxes) == 1, node["type"]
    titles = [group["title"] for group in read(page)["groups"]]
    for one, after in pairwise(boxes_of(read(page))):
        assert one[2] <= after[0] or one[3] <= after[1], "to the right, or below"
    assert [title.split()[0] for title in titles] == [str(i + 1) for i in range(len(titles))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_short_note_says_what_to_do(page: Path) -> None:
    notes = [node for node in read(page)["nodes"] if node["type"] == "MarkdownNote"]
    assert len(notes) == 1
    lines = [line for line in notes[0]["widgets_values"][0].splitlines() if line.strip()]
    assert 3 <= len(lines) <= 7
    assert max(map(len, lines)) <= 260


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_run_forward_and_not_behind_nodes(page: Path) -> None:
    graph = read(page)
    for source, target, course, _ in drawn(graph):
        assert course[0][0] < course[-1][0], (source["type"], target["type"])
        for node in graph["nodes"]:
            if node in (source, target):
                continue
            left, top, right, bottom = box(node)
            hidden = [p for p in course if left < p[0] < right and top < p[1] < bottom]
            assert not hidden, (source["type"], target["type"], "behind", node["type"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_hardly_a_link_crosses_another(page: Path) -> None:
    courses = drawn(read(page))
    crossed = {
        (a[0]["id"], a[3], b[0]["id"], b[3])  # links of one socket run together
        for a, b in combinations(courses, 2)
        if not {a[0]["id"], a[1]["id"]} & {b[0]["id"], b[1]["id"]} and cross(a[2], b[2])
    }
    assert len(crossed) <= CROSSINGS, crossed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_opens_large_enough_to_read(page: Path) -> None:
    # Below 0.6 ComfyUI leaves out the text.
    assert read(page)["extra"]["ds"]["scale"] >= 0.62


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_has_a_picture_and_a_title_that_reads(page: Path) -> None:
    assert page.with_suffix(".jpg").exists()
    assert "_" not in page.stem
    assert page.stem[:3].strip().isdigit()
