"""Every template on the page, in both node designs: whole, and queued as `workflows/api` says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = sorted((ROOT / "workflows").glob("*.json"))


def links(graph: dict[str, Any]) -> set[tuple[Any, ...]]:
    """Of a graph and its subgraphs: which output leads to which input of which node."""
    nested = (graph.get("definitions") or {}).get("subgraphs", [])
    keys = ("origin_id", "origin_slot", "target_id", "target_slot")
    found = {("", *link[1:5]) for link in graph["links"]} | {
        (part["id"], *(link[key] for key in keys)) for part in nested for link in part["links"]
    }
    # The page may order a node's inputs anew: by their names.
    inputs = {
        (part["id"], node["id"], at): slot["name"]
        for part in ({**graph, "id": ""}, *nested)
        for node in part["nodes"]
        for at, slot in enumerate(node.get("inputs") or [])
    }
    return {(*link[:4], inputs.get((link[0], *link[3:]), link[4])) for link in found}


def prompt(nodes: dict[str, Any]) -> dict[str, Any]:
    """Kinds and inputs of the nodes, less the text that 0.3.64's Preview Any shows."""
    for node in nodes.values():
        if node["class_type"] == "PreviewAny":
            node["inputs"].pop("preview", None)
    return {name: (node["class_type"], node["inputs"]) for name, node in nodes.items()}


@pytest.fixture(scope="module", params=[False, True], ids=["classic", "nodes2"])
def designed(request, page):
    """The page in each node design."""
    page.design(nodes2=request.param)
    return page


def test_the_page_loads_the_pack_without_an_error(page):
    assert not [error for error in page.errors_at_start if "magicapture" in error.lower()]


@pytest.mark.parametrize("file", TEMPLATES, ids=lambda file: file.stem)
def test_of_a_template(designed, file):
    template = json.loads(file.read_text("utf-8"))
    designed.console_errors()
    designed.load(template)
    assert designed.console_errors() == []
    assert not designed.visible("[role=dialog]"), "a dialog tells what is missing"
    missing = designed.js(
        """const graphs = [app.graph, ...(app.graph.subgraphs?.values() ?? [])];
        return graphs.flatMap((graph) => graph.nodes).map((node) => node.type)
          .filter((type) => !LiteGraph.registered_node_types[type])"""
    )
    assert missing == []
    assert links(designed.workflow()) == links(template)
    queued = json.loads((file.parent / "api" / file.name).read_text("utf-8"))
    assert prompt(designed.prompt()) == prompt(queued)
