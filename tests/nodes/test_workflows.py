"""The shipped workflows against the nodes as they are: kinds, inputs, widgets, links."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "workflows").glob("*.json"))
PRIMITIVES = {"INT": int, "FLOAT": (int, float), "STRING": str, "BOOLEAN": bool, "COMBO": str}
NOT_IN_THE_API = (2, 4)  # never, bypass: left out when the page queues


def names(page: Path) -> str:
    return page.stem


@pytest.fixture(scope="module")
def known(pack: Any) -> dict[str, Any]:
    """The nodes by their ids: the pack's, and ComfyUI's own that need no extra module."""
    import nodes

    ours = {node.GET_SCHEMA().node_id: node for node in pack("nodes").NODES}
    return {**nodes.NODE_CLASS_MAPPINGS, **ours}


def inputs_of(node: Any) -> dict[str, tuple[Any, dict[str, Any], bool]]:
    """Name -> (type or choices, options, required), in the order of the page."""
    kinds = node.INPUT_TYPES()
    return {
        name: (spec[0], spec[1] if len(spec) > 1 else {}, group == "required")
        for group in ("required", "optional")
        for name, spec in kinds.get(group, {}).items()
    }


def is_widget(kind: Any, options: dict[str, Any]) -> bool:
    return (isinstance(kind, list) or kind in PRIMITIVES) and not options.get("forceInput")


def widgets_of(node: Any) -> list[str]:
    """The names of a node's widget values on the page; "" for what a widget adds."""
    found = []
    for name, (kind, options, _) in inputs_of(node).items():
        if is_widget(kind, options):
            seeded = name in ("seed", "noise_seed") or options.get("control_after_generate")
            found += [name] + [""] * bool(seeded) + [""] * bool(options.get("image_upload"))
    return found


def check_value(kind: Any, options: dict[str, Any], value: Any) -> None:
    """A value fits its input; names of files are the user's own."""
    choices = kind if isinstance(kind, list) else options.get("options")
    if choices is not None:
        assert isinstance(value, str)
        return
    assert isinstance(value, PRIMITIVES[kind])
    assert isinstance(value, bool) == (kind == "BOOLEAN")
    if kind in ("INT", "FLOAT"):
        assert options.get("min", value) <= value <= options.get("max", value)


def check_link(known: dict[str, Any], source: str, output: int, kind: Any) -> None:
    if source in known:
        given = known[source].RETURN_TYPES[output]
        assert "*" in (given, kind) or given in str(kind).split(","), (given, kind)


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_of_the_page(page: Path, known: dict[str, Any]) -> None:
    graph = json.loads(page.read_text())
    links = {link[0]: link for link in graph["links"]}
    types = {node["id"]: node["type"] for node in graph["nodes"]}
    for node in graph["nodes"]:
        kind = node["type"]
        assert kind in known or not kind.startswith("MagiCapture"), f"unknown: {kind}"
        if kind not in known:
            continue
        inputs, values = inputs_of(known[kind]), node.get("widgets_values", [])
        assert [slot["name"] for slot in node["inputs"] if slot["name"] not in inputs] == []
        assert len(values) == len(widgets_of(known[kind])), (kind, values)
        for name, value in zip(widgets_of(known[kind]), values, strict=True):
            if name:
                check_value(*inputs[name][:2], value)
        for place, slot in enumerate(node["inputs"]):
            if slot.get("link") is not None:
                _, source, output, target, at, _ = links[slot["link"]]
                assert (target, at) == (node["id"], place)
                check_link(known, types[source], output, inputs[slot["name"]][0])
        if kind.startswith("MagiCapture"):
            given = [output["type"] for output in node["outputs"]]
            assert given == list(known[kind].RETURN_TYPES)
            assert [o["name"] for o in node["outputs"]] == list(known[kind].RETURN_NAMES)


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_of_the_api(page: Path, known: dict[str, Any]) -> None:
    graph = json.loads((page.parent / "api" / page.name).read_text())
    for node in graph.values():
        kind, given = node["class_type"], node["inputs"]
        assert kind in known or not kind.startswith("MagiCapture"), f"unknown: {kind}"
        if kind not in known:
            continue
        inputs = inputs_of(known[kind])
        assert set(given) <= set(inputs)
        assert {name for name, (*_, required) in inputs.items() if required} <= set(given)
        for name, value in given.items():
            if isinstance(value, list):
                check_link(known, graph[value[0]]["class_type"], value[1], inputs[name][0])
            else:
                check_value(*inputs[name][:2], value)


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_the_page_and_the_api_say_the_same(page: Path, known: dict[str, Any]) -> None:
    graph = json.loads(page.read_text())
    api = json.loads((page.parent / "api" / page.name).read_text())
    kept = {str(n["id"]): n for n in graph["nodes"] if n["mode"] not in NOT_IN_THE_API}
    kept = {key: node for key, node in kept.items() if node["type"] != "MarkdownNote"}
    assert {key: node["type"] for key, node in kept.items()} == {
        key: node["class_type"] for key, node in api.items()
    }
    links = {link[0]: link for link in graph["links"]}
    for key, node in kept.items():
        if node["type"] not in known:
            continue
        values = node.get("widgets_values", [])
        widgets = zip(widgets_of(known[node["type"]]), values, strict=True)
        given = {name: value for name, value in widgets if name}
        for slot in node["inputs"]:
            _, source, output, *_ = links.get(slot.get("link"), (0, 0, 0))
            if str(source) in kept:  # nothing arrives from a loader that is bypassed
                given[slot["name"]] = [str(source), output]
        assert given == api[key]["inputs"], node["type"]
