"""What holds for every node: its id, the words that find it, its errors, what a bypass passes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

FROZEN = (Path(__file__).parent.parent / "node_ids.txt").read_text("utf-8").split()


@pytest.fixture
def nodes(pack) -> dict[str, Any]:
    """The nodes by their ids."""
    return {node.__name__: node for node in pack("nodes").NODES}


def test_ids_follow_from_titles_and_stay(nodes, pack) -> None:
    id_of = pack("nodes._node").id_of
    assert id_of("Train MagiCapture") == "MagiCaptureTrain"
    assert id_of("Save Adapter (older)") == "MagiCaptureSaveAdapter"
    schemas = {name: node.GET_SCHEMA() for name, node in nodes.items()}
    assert sorted(schemas) == FROZEN
    for name, schema in schemas.items():
        assert schema.node_id == name == id_of(schema.display_name)
        assert schema.category.startswith("MagiCapture/")
        assert schema.is_experimental == ("MagicFace" in name)


def test_words_that_are_searched_for_find_a_node(nodes, pack) -> None:
    from comfy_api.latest import io

    if "search_aliases" not in {field.name for field in dataclasses.fields(io.Schema)}:
        pytest.skip("this ComfyUI's nodes have no search aliases")
    found = {name: node.GET_SCHEMA().search_aliases for name, node in nodes.items()}
    assert all(len(set(words)) == len(words) >= 3 for words in found.values())
    for word in ("dreambooth", "textual inversion", "train lora", "likeness", "portrait"):
        assert word in found["MagiCaptureTrain"]
    said = {word for words in found.values() for word in words}
    assert {"face swap", "face mask", "upscale", "face restore", "load images from folder"} <= said
    assert {"upload photos", "save masks"} <= said


@pytest.mark.parametrize(
    ("name", "kind", "file"),
    [
        ("LoadFaceDetector", "facexlib", "face_detection_yunet_2023mar.onnx"),
        ("LoadFaceParser", "facexlib", "parsing_bisenet.pth"),
        ("LoadFaceRecognitionModel", "insightface", "w600k_r50.onnx"),
        ("LoadFaceRestorer", "facerestore_models", "GFPGANv1.4.pth"),
    ],
)
def test_loaders_list_the_files_of_their_kind(nodes, pack, name, kind, file) -> None:
    path = pack.comfy.model_folders(kind)[0] / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    try:
        listed = {
            loader: nodes[f"MagiCapture{loader}"].GET_SCHEMA().inputs[0].options
            for loader in ("LoadFaceDetector", "LoadFaceParser", name)
        }
    finally:
        path.unlink()
    assert [loader for loader, options in listed.items() if file in options] == [name]


def as_run(node: Any) -> Any:
    """A node's function as ComfyUI's executor gets it: of a locked copy of the class."""
    from comfy_api.internal import make_locked_method_func

    return make_locked_method_func(node, node.FUNCTION, node.PREPARE_CLASS_CLONE(None))


def test_our_errors_begin_with_the_title_once_and_without_a_module(nodes, pack) -> None:
    errors = pack("magicapture.errors")
    node = nodes["MagiCaptureLoadPhotoSet"]
    for run in (as_run(node), as_run(node)):  # a copy for each run
        with pytest.raises(errors.InputError, match=r"^Load Photo Set: No photos are") as raised:
            run(folder=[pack("nodes.references").NO_FOLDER])
        # ComfyUI prints module and name of any other error before its text.
        assert raised.type.__module__ == "builtins" and raised.type.__name__ == "InputError"
        assert raised.value.__suppress_context__  # or the traceback would come twice


def test_values_that_are_not_there_are_refused_in_our_words_before_anything_runs(
    nodes, pack
) -> None:
    """As ComfyUI calls it; a value over a link is not given, and no list is checked by ComfyUI."""

    def refused(node: str, **values: Any) -> Any:
        return nodes[f"MagiCapture{node}"].validate_inputs(**values)

    none = pack("nodes.references").NO_FOLDER
    assert refused("LoadPhotoSet", folder=[none]) is True
    assert refused("LoadPhotoSet") is True
    assert "no folder 'nobody'" in refused("LoadPhotoSet", folder=["nobody"])
    assert "upload photos" in refused("LoadPhotoSet", folder=["nobody"])
    assert "no folder '../..'" in refused("LoadPhotoSet", folder=["../.."])
    assert "no LoRA 'x'" in refused("LoadAdapter", lora_name="x")
    assert "no recipe 'x'" in refused("LoadRecipe", file="x")
    assert "'../x'" in refused("SavePhotoSet", name="../x")
    assert refused("SavePhotoSet", name="people/ada") is True
    for name in ("FaceDetector", "FaceParser", "FaceRecognitionModel", "FaceRestorer"):
        assert refused(f"Load{name}") is True
        assert "There is no face" in refused(f"Load{name}", file="x.onnx")


def test_other_errors_pass_as_they_are(nodes) -> None:
    with pytest.raises(TypeError):
        nodes["MagiCaptureSaveAdapter"].execute()


def bypassed(node: Any, output: int) -> str | None:
    """The input that ComfyUI's page passes on for an output of a bypassed node."""
    schema = node.GET_SCHEMA()
    kind = schema.outputs[output].io_type
    sockets = schema.inputs
    if output < len(sockets) and sockets[output].io_type == kind:
        return sockets[output].id
    return next((socket.id for socket in sockets if socket.io_type == kind), None)


@pytest.mark.parametrize(
    ("name", "passed"),
    [
        ("ApplyAdapter", ["model", "clip"]),
        ("CheckPhotos", ["references"]),
        ("GuardIdentity", ["after"]),
        ("MakeFaceMasks", ["references"]),
        ("MatchGrainAndColour", ["images"]),
        ("RefocusAttention", ["model"]),
        ("RestoreFaces", ["images"]),
        ("SaveAdapter", ["adapter"]),
        ("SavePhotoSet", ["references"]),
        ("TuneRecipe", ["recipe"]),
        ("UpscalePortrait", ["images"]),
    ],
)
def test_a_bypass_passes_what_the_node_would_have_changed(nodes, name, passed) -> None:
    node = nodes[f"MagiCapture{name}"]
    assert [bypassed(node, i) for i in range(len(passed))] == passed


def test_a_node_after_a_bypassed_one_lacks_nothing_it_needs(nodes) -> None:
    """Restore Faces has no mask to pass on, so Match Grain and Colour does without."""
    assert bypassed(nodes["MagiCaptureRestoreFaces"], 1) is None
    inputs = nodes["MagiCaptureMatchGrainAndColour"].GET_SCHEMA().inputs
    assert next(socket for socket in inputs if socket.id == "mask").optional
