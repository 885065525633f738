"""ComfyUI's own face nodes, run for real, and what our nodes take from them.

Their networks have the real classes, but for two that are too large (SAM3, BiRefNet): small ones
stand in for these, inside the real nodes. Weights are zeros and biases, so that the answer is
known: one face in the middle of any picture, whose mesh has known points.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

FILE = "mediapipe_face_fp32.safetensors"

# Of the picture's side, from its middle: the corners of both eyes, nose and mouth.
MESH = {
    33: (-0.15, -0.10),
    133: (-0.05, -0.10),
    362: (0.05, -0.10),
    263: (0.15, -0.10),
    4: (0.0, 0.02),
    61: (-0.08, 0.12),
    291: (0.08, 0.12),
    10: (0.0, -0.25),  # the oval is a diamond of these four
    454: (0.25, 0.0),
    152: (0.0, 0.25),
    234: (-0.25, 0.0),
}
FIVE = torch.tensor([[-0.10, -0.10], [0.10, -0.10], [0.0, 0.02], [-0.08, 0.12], [0.08, 0.12]])
BOX = 8.0  # the detector's box, in sides of the picture: so wide that all its finds become one

_OVAL = [[10, 454], [454, 152], [152, 234], [234, 10]]
_EYES = {"left_eye": [[362, 263]], "right_eye": [[33, 133]]}


@pytest.fixture(autouse=True)
def inferring(executor):
    """Every test here runs in inference mode, as nodes do."""


@pytest.fixture
def ours(pack):
    return SimpleNamespace(
        **{node.__name__.removeprefix("MagiCapture"): node for node in pack("nodes").NODES}
    )


@pytest.fixture(scope="session")
def mediapipe(comfyui):
    """ComfyUI's own MediaPipe nodes."""
    return pytest.importorskip("comfy_extras.nodes_mediapipe", reason="newer than this ComfyUI")


def weights(shapes):
    """A state dict of ComfyUI's file: zeros, and the biases that give the known face."""
    state = {name: torch.zeros(shape) for name, shape in shapes.items()}
    near = {"cls_16": -50.0, "cls_8": -50.0}
    for name, bias in near.items():
        state[f"detector_short.{name}.bias"] += bias
    state["detector_short.cls_8.bias"][0] = 5.0
    state["detector_short.reg_8.bias"][2:4] = 128 * BOX
    state["detector_short.reg_8.bias"][6] = 128.0  # the second eye is on the right: no tilt
    state["detector_full.cls_dw.bias"] += -50.0
    mesh = torch.rand(478, 3, generator=torch.Generator().manual_seed(0)) * 0.1 - 0.05
    for at, point in MESH.items():
        mesh[at, :2] = torch.tensor(point)
    mesh[:, :2] = 96 + mesh[:, :2] * 192 / (1.5 * BOX)
    state["mesh.head_landmarks.bias"] = mesh.flatten()
    state["mesh.head_presence.bias"] += 4.0
    return state


@pytest.fixture(scope="module")
def file(mediapipe):
    """The model file, whole, in models/detection."""
    import folder_paths
    from comfy_extras.mediapipe.face_landmarker import FaceLandmarker

    shapes = {}
    for variant in ("short", "full"):
        network = FaceLandmarker(detector_variant=variant).state_dict()
        for name, value in network.items():
            shapes[name.replace("detector.", f"detector_{variant}.", 1)] = value.shape
    state = weights(shapes)
    lines = {"face_oval": _OVAL, **_EYES}
    for name in ("left_eyebrow", "right_eyebrow", "lips", "irises", "nose", "tesselation"):
        lines[name] = [[61, 291]]
    state |= {f"topology.{n}": torch.tensor(v, dtype=torch.int32) for n, v in lines.items()}
    state["canonical_vertices"] = torch.rand(478, 3)
    state["procrustes_indices"] = torch.arange(30, dtype=torch.int32)
    state["procrustes_weights"] = torch.ones(30)
    folder = Path(folder_paths.models_dir) / "detection"
    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: v.contiguous() for n, v in state.items()}, folder / FILE)
    yield folder / FILE
    shutil.rmtree(folder)


def detected(mediapipe, images, count=1):
    """The stock nodes' face_landmarks of images, each by itself as ComfyUI does for a list."""
    model = mediapipe.LoadMediaPipeFaceLandmarker.execute(FILE)[0]
    return [
        mediapipe.MediaPipeFaceLandmarker.execute(model, one, "short", count, 0.5, "empty")[0]
        for one in images
    ]


def loaded(ours, pack, images, **more):
    none = pack("nodes.references").NO_FOLDER
    return ours.LoadPhotoSet.execute([none], images, **more)[0]


def expected(height, width):
    """The five points in a picture: the box is square in shares of each side."""
    return torch.tensor([width, height]) * (FIVE + 0.5)


def near(points, wanted, within=0.51):
    """Equal but for where a pixel's middle lies, which ComfyUI's nodes do not hold to."""
    assert float((points - wanted).abs().max()) < within


def test_landmarks_of_the_stock_node_go_into_the_photo_set(ours, pack, mediapipe, file):
    images = [torch.rand(2, 96, 96, 3), torch.rand(1, 96, 96, 3)]
    landmarks = detected(mediapipe, images)
    photos = loaded(ours, pack, images, landmarks=landmarks)
    assert len(photos) == 3 and photos.warnings == ()
    for photo in photos:
        near(photo.landmarks, expected(96, 96))
    check = pack("magicapture.data.checks")
    assert not list(check._landmark_problems(photos.photos[0].landmarks, (96, 96)))


def test_landmarks_follow_a_photo_that_is_made_smaller(ours, pack, mediapipe, file):
    big = torch.rand(1, 3072, 3072, 3)
    (photo,) = loaded(ours, pack, [big], landmarks=detected(mediapipe, [big]))
    assert photo.size == (1536, 1536)
    near(photo.landmarks, expected(1536, 1536))


def test_the_stock_mask_and_landmarks_agree(ours, pack, mediapipe, file):
    image = torch.rand(1, 96, 96, 3)
    landmarks = detected(mediapipe, [image])
    mask = mediapipe.MediaPipeFaceMask.execute(landmarks[0], {"regions": "all"})[0]
    (photo,) = loaded(ours, pack, [image], face_masks=[mask], landmarks=landmarks)
    assert photo.landmarks is not None  # its face lies in its own mask
    assert float(photo.face_mask.mean()) == pytest.approx(0.125, abs=0.01)  # the diamond's area
    elsewhere = torch.zeros(1, 96, 96)
    elsewhere[:, :10, :10] = 1
    bare = loaded(ours, pack, [image], face_masks=[elsewhere], landmarks=landmarks)
    assert bare.photos[0].landmarks is None
    assert "none of the faces given lies in its mask" in bare.warnings[0]


def test_a_picture_without_a_face_is_named(ours, pack, mediapipe, file):
    image = torch.rand(2, 96, 96, 3)
    (landmarks,) = detected(mediapipe, [image])
    landmarks = {**landmarks, "frames": [[], landmarks["frames"][1]]}
    mask = mediapipe.MediaPipeFaceMask.execute(landmarks, {"regions": "all"})[0]
    photos = loaded(ours, pack, [image], face_masks=[mask], landmarks=[landmarks])
    assert [p.landmarks is None for p in photos] == [True, False]
    assert [p.face_mask is None for p in photos] == [True, False]
    assert [w.split(":")[0] for w in photos.warnings] == ["image 1", "image 1"]


def test_landmarks_that_do_not_fit_say_so(ours, pack, mediapipe, file):
    error = pack("magicapture.errors").InputError
    image = torch.rand(1, 96, 96, 3)
    landmarks = detected(mediapipe, [image])
    with pytest.raises(error, match=r"'landmarks' is of 1 picture and there are 2 photos"):
        loaded(ours, pack, [image, image], landmarks=landmarks)
    with pytest.raises(error, match="image 1: the face was found in a picture of 96x96"):
        loaded(ours, pack, [torch.rand(1, 96, 64, 3)], landmarks=landmarks)


@pytest.mark.parametrize("other", [{"frames": [[1]], "image_size": (9, 9)}, {"faces": []}, 3, []])
def test_what_another_pack_calls_landmarks_is_refused(ours, pack, other):
    """On every version: the socket's name is nobody's own."""
    error = pack("magicapture.errors").InputError
    with pytest.raises(error, match="connect that one's face_landmarks"):
        loaded(ours, pack, [torch.rand(1, 64, 64, 3)], landmarks=[other])


def test_comfyuis_own_model_is_a_detector(ours, pack, file):
    """Listed, recognised by content, run by ComfyUI's classes; and not taken unasked."""
    files = pack("nodes._comfy.files")
    assert FILE in ours.LoadFaceDetector.define_schema().inputs[0].options
    detector = pack("magicapture.faces.registry").load_model("detector", file)
    picture = np.zeros((128, 128, 3), np.uint8)
    (row,) = detector.find(picture)
    near(torch.tensor(row[4:14]).view(5, 2), expected(128, 128))
    assert row[14] == pytest.approx(torch.tensor(5.0).sigmoid().item())
    (face,) = detector(torch.rand(3, 128, 128))
    assert face.landmarks[0, 0] < face.landmarks[1, 0]
    with pytest.raises(pack("magicapture.errors").InputError, match="of 4 drawn ones"):
        ours.LoadFaceDetector.execute(FILE)  # these weights see one face in any picture
    report = ours.CheckModels.execute()[0]
    assert f"found    {FILE}" in report and "Draw Face Mask (MediaPipe)" in report
    assert "missing  birefnet.safetensors in models/background_removal" in report
    known = pack("magicapture.faces.registry").model_files("detector")
    assert known[-1].file == FILE and files.AUTO == "best found"


def test_a_face_that_the_mesh_does_not_see_is_dropped(pack, file):
    from safetensors.torch import load_file

    state = load_file(file)
    state["mesh.head_presence.bias"] -= 8
    other = file.with_name("unsure.safetensors")
    save_file(state, other)
    detector = pack("magicapture.faces.registry").load_model("detector", other)
    assert detector(torch.rand(3, 128, 128)) == ()


def test_an_incomplete_file_is_named(pack, file):
    from safetensors.torch import load_file

    state = load_file(file)
    del state["mesh.stem.weight"]
    other = file.with_name("torn.safetensors")
    save_file(state, other)
    with pytest.raises(pack("magicapture.errors").InputError, match=r"torn\.safetensors does not"):
        pack("magicapture.faces.registry").load_model("detector", other)


def test_an_older_comfyui_says_what_it_lacks(ours, pack, comfyui, tmp_path):
    if (comfyui / "comfy_extras" / "nodes_mediapipe.py").exists():
        pytest.skip("this ComfyUI has the nodes")
    names = ("detector_short.a", "detector_full.a", "mesh.a", "blendshapes.a")
    save_file({name: torch.zeros(1) for name in names}, tmp_path / FILE)
    error = pack("magicapture.errors").MagiCaptureError
    with pytest.raises(error, match=r"Update ComfyUI, or choose another face detector"):
        pack("magicapture.faces.registry").load_model("detector", tmp_path / FILE)
    assert "newer ones do" in ours.CheckModels.execute()[0]


class Segmenter(nn.Module):
    """Stands in for SAM3's network: two objects, in the upper left and the lower right."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, frame, threshold, orig_size, **_):
        height, width = orig_size
        boxes = torch.tensor([[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]])
        masks = torch.full((2, 64, 64), -1.0)
        masks[0, :32, :32] = masks[1, 32:, 32:] = 1
        sizes = torch.tensor([width, height, width, height])
        return {"boxes": [boxes * sizes], "scores": [torch.tensor([2.0, 1.0])], "masks": [masks]}


def segmented(images, individual):
    """The masks of the real SAM3 Detect."""
    nodes_sam3 = pytest.importorskip("comfy_extras.nodes_sam3", reason="newer than this ComfyUI")
    from comfy.model_patcher import ModelPatcher

    holder = nn.Module()
    holder.diffusion_model, holder.get_dtype = Segmenter(), lambda: torch.float32
    cpu = torch.device("cpu")
    model = ModelPatcher(holder, load_device=cpu, offload_device=cpu)
    words = [[torch.zeros(1, 4, 8), {"sam3_multi_cond": None}]]
    words[0][1]["sam3_multi_cond"] = [
        {"cond": torch.zeros(1, 4, 8), "attention_mask": None, "max_detections": 2}
    ]
    settings = {"threshold": 0.5, "refine_iterations": 0, "individual_masks": individual}
    return nodes_sam3.SAM3_Detect.execute(model, images, words, **settings)[0]


def test_masks_of_sam3_are_one_a_photo_or_refused(ours, pack):
    images = torch.rand(3, 80, 96, 3)
    photos = loaded(ours, pack, [images], face_masks=[segmented(images, False)])
    for photo in photos:
        assert photo.face_mask.shape == (1, 80, 96)
        assert float(photo.face_mask.mean()) == pytest.approx(0.5, abs=0.02)
        assert float(photo.face_mask[0, 10, 10]) == 1 and float(photo.face_mask[0, 10, 90]) == 0
    error = pack("magicapture.errors").InputError
    with pytest.raises(error, match=r"There are 6 face masks for 3 photos.*individual_masks off"):
        loaded(ours, pack, [images], face_masks=[segmented(images, True)])


def test_masks_of_background_removal_are_soft_and_white_on_the_person(ours, pack, monkeypatch):
    removal = pytest.importorskip("comfy.bg_removal_model", reason="newer than this ComfyUI")
    nodes_removal = pytest.importorskip("comfy_extras.nodes_bg_removal")

    class Bright(nn.Module):
        """Stands in for BiRefNet: logits by brightness."""

        def __init__(self, config, dtype, device, operations):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, pixel_values):
            return (pixel_values.mean(1, keepdim=True) - 0.5) * 12

    monkeypatch.setitem(removal.BG_REMOVAL_MODELS, "birefnet", Bright)
    config = Path(removal.__file__).parent / "background_removal" / "birefnet.json"
    assert json.loads(config.read_text())["image_size"] == 1024
    model = removal.BackgroundRemovalModel(str(config))
    images = torch.zeros(2, 80, 96, 3)
    images[:, 20:60, 30:70] = 1
    masks = nodes_removal.RemoveBackground.execute(model, images)[0]
    photos = loaded(ours, pack, [images], face_masks=[masks])
    assert photos.warnings == ()
    inside = photos.photos[0].face_mask[0]
    assert inside.shape == (80, 96) and float(inside[40, 50]) > 0.9 and float(inside[2, 2]) < 0.1


def test_load_images_mask_of_a_picture_without_one_counts_as_none(ours, pack, tmp_path):
    import folder_paths
    from PIL import Image

    import nodes

    folder = Path(folder_paths.get_input_directory())
    cut_out = np.full((80, 96, 4), 200, np.uint8)
    cut_out[..., 3] = 0
    cut_out[20:60, 30:70, 3] = 255
    Image.fromarray(cut_out[..., :3]).save(folder / "plain.png")
    Image.fromarray(cut_out).save(folder / "cut_out.png")
    try:
        both = [nodes.LoadImage().load_image(f"{name}.png") for name in ("plain", "cut_out")]
    finally:
        for name in ("plain", "cut_out"):
            (folder / f"{name}.png").unlink()
    photos = loaded(ours, pack, [i for i, _ in both], face_masks=[m for _, m in both])
    assert photos.photos[0].face_mask is None
    nothing, inverted = photos.warnings
    assert nothing.startswith("image 1: the mask marks nothing")
    assert inverted.startswith("image 2: the mask marks all four corners")  # 1 - alpha


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


@pytest.mark.slow
def test_in_the_real_server(server, mediapipe, file):
    """Load Image -> stock nodes -> Load Photo Set -> Make Face Masks, through the queue."""
    from PIL import Image

    (server.base / "models" / "detection").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, server.base / "models" / "detection" / FILE)
    noise = np.random.default_rng(0).integers(0, 255, (96, 96, 3), np.uint8)
    Image.fromarray(noise).save(server.base / "input" / "photo.png")
    prompt = {
        "photo": node("LoadImage", image="photo.png"),
        "model": node("LoadMediaPipeFaceLandmarker", model_name=FILE),
        "find": node(
            "MediaPipeFaceLandmarker", face_detection_model=["model", 0], image=["photo", 0]
        ),
        "mask": node("MediaPipeFaceMask", face_landmarks=["find", 0], **{"regions": "all"}),
        "set": node(
            "MagiCaptureLoadPhotoSet",
            images=["photo", 0],
            face_masks=["mask", 0],
            landmarks=["find", 0],
        ),
        "check": node("MagiCaptureCheckModels"),
        "dolls": node("MagiCaptureLoadPaperdollFaceModels"),
        "make": node("MagiCaptureMakeFaceMasks", references=["set", 0], detector=["dolls", 0]),
    }
    entry = server.result(server.queue(prompt))
    assert entry["status"]["status_str"] == "success", entry["status"]
    assert FILE in json.dumps(entry["outputs"]["check"])
