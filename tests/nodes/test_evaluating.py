"""Evaluate Pictures as the executor runs it, with ComfyUI's own CLIP_VISION, on drawn faces."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

PAIR = (1_000_007, 1_000_042)
WIDTH, SIDE = 64, 16
VISION = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "num_channels": 3,
    "image_size": 32,
    "patch_size": 8,
    "projection_dim": SIDE,
    "hidden_act": "quick_gelu",
    "model_type": "clip_vision_model",
}


@pytest.fixture(autouse=True)
def inferring(executor):
    """Every test here runs in inference mode, as nodes do."""


@pytest.fixture
def whole(comfyui, tmp_path):
    """A whole CLIPModel in models/clip_vision, and the CLIP_VISION that ComfyUI makes of it."""
    import comfy.clip_vision
    import folder_paths
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(5)
    own = {key: VISION[key] for key in list(VISION)[:4]}
    ids = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
    config = CLIPConfig(
        text_config={**own, **ids, "vocab_size": 49408},
        vision_config={key: value for key, value in VISION.items() if key != "model_type"},
        projection_dim=SIDE,
    )
    model = CLIPModel(config).eval()
    settings = tmp_path / "vision.json"  # 0.3.64 takes no dict
    settings.write_text(json.dumps(VISION), "utf-8")
    vision = comfy.clip_vision.ClipVisionModel(str(settings))
    state = {k: v.clone() for k, v in model.state_dict().items() if k.startswith("vis")}
    vision.load_sd(state)
    file = Path(folder_paths.get_folder_paths("clip_vision")[0]) / "tiny.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, file)
    folder_paths.filename_list_cache.clear()
    yield SimpleNamespace(vision=vision, file=file)
    file.unlink()
    folder_paths.filename_list_cache.clear()


@pytest.fixture
def dolls(nodes):
    """A drawn person's photos, a style's portraits, and the two together."""
    return nodes.DrawPaperdollPhotos.execute(*PAIR, count=3).args[:2]


def run(nodes, images, person, **more):
    given = {
        "prompt": "",
        "clip_text": "none",
        "aesthetic": "none",
        "by_skin_tone": False,
        "name": "looks",
        **more,
    }
    lists = {key: value if isinstance(value, list) else [value] for key, value in given.items()}
    return nodes.EvaluatePictures.execute(images=images, person=[person], **lists)


def test_comfyuis_clip_sees_what_transformers_sees(pack, whole):
    images = torch.rand(2, 3, 40, 56)
    theirs = pack("magicapture.clip").load_clip(whole.file).of_images(images)
    ours = pack("nodes._comfy").ComfyEyes(whole.vision).of_images(images)
    torch.testing.assert_close(ours, theirs, atol=5e-3, rtol=0)  # ComfyUI rounds to 8 bits


def test_every_measure_and_the_files(pack, nodes, dolls, whole):
    import folder_paths

    person, style = dolls
    detector, parser, face_model = nodes.LoadPaperdollFaceModels.execute().args
    aesthetic = Path(folder_paths.models_dir) / "magicapture" / "aesthetic" / "head.safetensors"
    aesthetic.parent.mkdir(parents=True, exist_ok=True)
    save_file({"weight": torch.ones(1, SIDE), "bias": torch.tensor([5.0])}, aesthetic)
    images = [torch.stack([p.image.movedim(0, -1) for p in person.photos[:2]]), style]
    try:
        output = run(
            nodes,
            images,
            person,
            style=style,
            compared_with=style,
            detector=detector,
            parser=parser,
            face_model=face_model,
            clip_vision=whole.vision,
            clip_text="tiny.safetensors",
            aesthetic="head.safetensors",
            prompt="a photo of a person",
            by_skin_tone=True,
        )
    finally:
        aesthetic.unlink()
    report, data, page = output.args
    told = json.loads(data)
    assert told["missing"] == []
    assert {"identity", "style", "aesthetic", "diversity", "copies", "obedience", "tone"} <= set(
        told["columns"]
    )
    pictures = told["pictures"]
    assert [p["group"] for p in pictures] == ["images"] * 5 + ["compared with"] * 3
    assert [p["copies"] for p in pictures] == [1.0] * 8, "they are what was trained on"
    assert pictures[0]["identity"] > 0.9 > pictures[5]["identity"]
    folder = Path(page).parent
    assert (
        folder == Path(folder_paths.get_output_directory()) / "magicapture/evaluations/looks_00001"
    )
    assert sorted(p.name for p in folder.iterdir()) == [
        "evaluation.csv",
        "evaluation.html",
        "evaluation.json",
    ]
    assert json.loads((folder / "evaluation.json").read_text()) == told
    assert str(folder) in report
    again = run(nodes, images, person, detector=detector).args
    assert again[2].endswith("looks_00002/evaluation.html")
    assert "no face recognition model" in again[0] and "no CLIP model" in again[0]


def test_what_is_wrong_is_said_before_anything_runs(nodes):
    check = nodes.EvaluatePictures.validate_inputs
    assert check(["none"], ["none"], ["looks"]) is True
    assert "'x.safetensors'" in check(["x.safetensors"], ["none"], ["looks"])
    assert "models/magicapture/aesthetic" in check(["none"], ["../x.pth"], ["looks"])
    assert "report's name" in check(["none"], ["none"], ["a/b"])


def test_photos_without_a_face_name_the_node(pack, nodes, dolls):
    empty = pack("magicapture.data").ReferenceSet.of([torch.full((3, 128, 128), 0.5)] * 2)
    detector, _, face_model = nodes.LoadPaperdollFaceModels.execute().args
    with pytest.raises(ValueError, match="Evaluate Pictures: No face is found in the person's 2"):
        run(nodes, [dolls[0]], empty, detector=detector, face_model=face_model)
