"""The shipped workflows against the nodes as they are: kinds, inputs, widgets, links."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "workflows").glob("*.json"))
(BLUEPRINT,) = (ROOT / "subgraphs").glob("*.json")
PRIMITIVES = {"INT": int, "FLOAT": (int, float), "STRING": str, "BOOLEAN": bool, "COMBO": str}


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


def graphs(graph: dict[str, Any]) -> list[dict[str, Any]]:
    """The graph and its subgraphs, all with links as lists: id, source, output, target, input."""
    subgraphs = graph.get("definitions", {}).get("subgraphs", [])
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    return [graph] + [
        {**of, "links": [[link[key] for key in keys] for link in of["links"]]} for of in subgraphs
    ]


@pytest.mark.parametrize("page", [*PAGES, BLUEPRINT], ids=names)
def test_of_the_page(page: Path, known: dict[str, Any]) -> None:
    graph = json.loads(page.read_text())
    nested = {of["id"] for of in graphs(graph)[1:]}
    for part in graphs(graph):
        links = {link[0]: link for link in part["links"]}
        types = {node["id"]: node["type"] for node in part["nodes"]}
        for node in part["nodes"]:
            kind = node["type"]
            assert node["mode"] == 0, "nothing is bypassed"
            assert kind in {*known, *nested} or not kind.startswith("MagiCapture"), kind
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
                    if source in types:
                        check_link(known, types[source], output, inputs[slot["name"]][0])
            if kind.startswith("MagiCapture"):
                given = [output["type"] for output in node["outputs"]]
                assert given == list(known[kind].RETURN_TYPES)
                assert [o["name"] for o in node["outputs"]] == list(known[kind].RETURN_NAMES)


@pytest.mark.parametrize("page", [*PAGES, BLUEPRINT], ids=names)
def test_nodes_name_their_pack_and_models_where_they_are_published(page: Path) -> None:
    project = (ROOT / "pyproject.toml").read_text()
    pack, version = (
        re.search(rf'^{key} = "(.+)"', project, re.M)[1] for key in ("name", "version")
    )
    for part in graphs(json.loads(page.read_text())):
        for node in part["nodes"]:
            kind, told = node["type"], node["properties"]
            if kind.startswith("MagiCapture"):
                assert (told["cnr_id"], told["ver"]) == (pack, version)
            elif kind in ("CheckpointLoaderSimple", "UpscaleModelLoader"):
                (model,) = told["models"]
                assert model["name"] == node["widgets_values"][0]
                assert model["url"].startswith("https://") and model["url"].endswith(model["name"])
                assert model["directory"] in ("checkpoints", "upscale_models")


def test_the_first_workflow_has_the_blueprint() -> None:
    """The node of 01 is the one in the node menu; positions and all."""
    (page,) = (page for page in PAGES if page.stem.startswith("01 "))
    inside = []
    for file in (page, BLUEPRINT):
        (of,) = json.loads(file.read_text())["definitions"]["subgraphs"]
        ids = {node["id"]: place for place, node in enumerate(of["nodes"])}
        kinds = [(n["type"], n["pos"], n["size"], n["widgets_values"]) for n in of["nodes"]]
        links = [
            (ids.get(one["origin_id"]), one["origin_slot"], ids.get(one["target_id"]))
            for one in of["links"]
        ]
        inside.append((of["name"], of["id"], kinds, links, [i["name"] for i in of["inputs"]]))
    assert inside[0] == inside[1]


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


class Flat:
    """A page as it is queued: the nodes of subgraphs stand for them, as "17:12" for 12 in 17."""

    def __init__(self, graph: dict[str, Any], known: dict[str, Any]) -> None:
        parts = graphs(graph)
        self.root, self.known = parts[0], known
        self.nested = {of["id"]: of for of in parts[1:]}

    def nodes(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """Id -> kind and inputs of what the server gets."""
        found = {}
        for node in self.root["nodes"]:
            if node["type"] in self.nested:
                inside = self.nested[node["type"]]
                for own in inside["nodes"]:
                    key = f"{node['id']}:{own['id']}"
                    found[key] = own["type"], self.inputs(own, inside, node)
            elif node["type"] != "MarkdownNote":
                found[str(node["id"])] = node["type"], self.inputs(node, self.root)
        return found

    def inputs(self, node: dict, part: dict, host: dict | None = None) -> dict[str, Any]:
        """The widgets' values, and over them what is linked."""
        if node["type"] not in self.known:
            return {}
        values = node["widgets_values"]
        widgets = zip(widgets_of(self.known[node["type"]]), values, strict=True)
        given = {name: value for name, value in widgets if name}
        links = {link[0]: link for link in part["links"]}
        for slot in node["inputs"]:
            if slot["link"] is not None:
                _, source, output, *_ = links[slot["link"]]
                value = self.source(source, output, part, host)
                if value is not None:
                    given[slot["name"]] = value
        return given

    def source(self, source: int, output: int, part: dict, host: dict | None) -> Any:
        """What arrives over a link: [id, output], a widget's value, or None."""
        if host is not None and source == -10:  # the subgraph's own inputs
            slot = host["inputs"][output]
            if slot["link"] is not None:
                link = next(link for link in self.root["links"] if link[0] == slot["link"])
                return self.source(link[1], link[2], self.root, None)
            widgets = [own["name"] for own in host["inputs"] if "widget" in own]
            if slot["name"] not in widgets:
                return None
            return host["widgets_values"][widgets.index(slot["name"])]
        node = next(own for own in part["nodes"] if own["id"] == source)
        if node["type"] in self.nested:
            inside = self.nested[node["type"]]
            (link,) = inside["outputs"][output]["linkIds"]
            _, own, place, *_ = next(one for one in inside["links"] if one[0] == link)
            return [f"{node['id']}:{own}", place]
        return [str(source) if host is None else f"{host['id']}:{source}", output]


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_the_page_and_the_api_say_the_same(page: Path, known: dict[str, Any]) -> None:
    flat = Flat(json.loads(page.read_text()), known).nodes()
    api = json.loads((page.parent / "api" / page.name).read_text())
    assert {key: kind for key, (kind, _) in flat.items()} == {
        key: node["class_type"] for key, node in api.items()
    }
    for key, (kind, given) in flat.items():
        if kind in known:
            assert given == api[key]["inputs"], (key, kind)


def put_photos(folder: Path, seed: int) -> None:
    """Three photos of noise, with a face's mask each."""
    folder.mkdir()
    random = np.random.default_rng(seed)
    mask = np.zeros((80, 72), np.uint8)
    mask[20:60, 16:56] = 255
    for i in range(3):
        Image.fromarray(random.integers(0, 255, (80, 72, 3), np.uint8)).save(folder / f"{i}.png")
        Image.fromarray(mask).save(folder / f"{i}.mask.png")


def results(graph: dict[str, Any], key: str, kinds: dict[str, Any], done: dict[str, Any]) -> Any:
    """A node's outputs, once what leads to it has run; `done` holds those of nodes that have."""
    if key not in done:
        node = graph[key]
        given = {
            name: results(graph, value[0], kinds, done)[value[1]]
            if isinstance(value, list)
            else value
            for name, value in node["inputs"].items()
        }
        kind = kinds[node["class_type"]]
        if getattr(kind, "INPUT_IS_LIST", False):
            given = {name: [value] for name, value in given.items()}
        found = getattr(kind(), kind.FUNCTION)(**given)
        done[key] = getattr(found, "args", found)
    return done[key]


@pytest.mark.parametrize(
    ("number", "of", "said"),
    [
        ("10 ", "tiny_xl", "embedding:my-person person"),
        ("15 ", "tiny_zimage", "my-person person in the my-person-style style"),
    ],
)
def test_a_template_for_larger_models_on_a_tiny_one(
    known, make, executor, monkeypatch, request, number, of, said
) -> None:
    """All but the loaders: from photos, masks and training to a picture."""
    import folder_paths
    from comfy_extras.nodes_model_advanced import ModelSamplingAuraFlow
    from comfy_extras.nodes_sd3 import EmptySD3LatentImage
    from comfy_extras.nodes_string import StringConcatenate

    models = request.getfixturevalue(of)
    (file,) = (page for page in PAGES if page.stem.startswith(number))
    graph = json.loads((file.parent / "api" / file.name).read_text())
    assert graph["18:14"]["inputs"]["fast_decoder"] == ["27", 0]
    for key, seed in (("18:3", 1), ("18:4", 2)):
        put_photos(Path(folder_paths.get_input_directory()) / f"{of} {seed}", seed)
        graph[key]["inputs"]["folder"] = f"{of} {seed}"
    graph["18:13"]["inputs"] |= {"steps": 2, "resolution": 64, "save_memory": True}
    graph["18:14"]["inputs"]["preview_every"] = 1
    graph["23"]["inputs"] |= {"width": 64, "height": 64}
    graph["24"]["inputs"]["steps"] = 2
    decoded = []
    decoder = make.taesd()
    decode = decoder.first_stage_model.decode
    monkeypatch.setattr(
        decoder.first_stage_model, "decode", lambda latent: decoded.append(latent) or decode(latent)
    )
    model, clip, vae = models.model, models.clip, models.vae
    done = {"1": (model, clip, vae), "29": (clip,), "30": (vae,), "27": (decoder,)}
    stock = (StringConcatenate, EmptySD3LatentImage, ModelSamplingAuraFlow)
    kinds = {**known, **{kind.__name__: kind for kind in stock}}
    (picture,) = results(graph, "25", kinds, done)
    assert picture.shape == (1, 64, 64, 3) and picture.isfinite().all()
    assert decoded, "the previews are the fast decoder's"
    assert said in done["18:17"][0], "what stock nodes are to encode"
