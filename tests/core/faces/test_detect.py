"""Detectors from files: the real ones on real photos, and each kind by its own content."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from threading import Event

import cv2
import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import interpolate

from magicapture.data.folder import read_picture
from magicapture.errors import InputError, MagiCaptureError, StorageError
from magicapture.faces import trial
from magicapture.faces.align import ARCFACE_TEMPLATE
from magicapture.faces.content import convolutions
from magicapture.faces.detect import load_detector
from magicapture.faces.detectors.yunet import YuNet
from magicapture.faces.find import best
from magicapture.faces.registry import load_model
from magicapture.faces.square import SquareDetector
from magicapture.faces.trial import try_detector, within_limit


def bright_square(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Finds one bright rectangle; landmarks at fixed shares of it, the left eye higher."""
    rows, columns = np.nonzero(picture[..., 0] > 128)
    if not len(rows):
        return np.empty((0, 15), np.float32)
    x0, x1, y0, y1 = columns.min(), columns.max(), rows.min(), rows.max()
    shares = np.array([[0.3, 0.3], [0.7, 0.35], [0.5, 0.6], [0.35, 0.8], [0.65, 0.8]])
    points = [x0, y0] + shares * [x1 - x0, y1 - y0]
    return np.array([[x0, y0, x1, y1, *points.ravel(), 0.9]], np.float32)


DOTS = ((-1, -1), (1, -1), (0, 0), (-0.8, 1), (0.8, 1))
GREYS = (200, 200, 100, 40, 40)
"""A face of five dots: where each is, in thirds of the face's width, and its grey."""


def dots(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Finds the faces of `DOTS`, with landmarks to the nearest 8 pixels, as coarse cells give."""
    eyes, noses, mouths = (
        centres(abs(picture[..., 0].astype(int) - g) < 12) for g in (200, 100, 40)
    )
    rows = []
    for nose in noses:
        pairs = [sorted(near(nose, two), key=lambda c: c[0]) for two in (eyes, mouths)]
        points = np.round(np.array([*pairs[0], nose, *pairs[1]]) / 8) * 8
        half = 0.75 * np.hypot(*(points[1] - points[0]))
        rows.append([*(nose - half), *(nose + half), *points.ravel(), 0.9])
    return np.array(rows, np.float32).reshape(-1, 15)


def near(middle: NDArray[np.float64], others: list[NDArray[np.float64]]) -> list:
    return sorted(others, key=lambda other: np.hypot(*(other - middle)))[:2]


def centres(where: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """The middles (x, y) of the blots in a picture that are no mere edges of others."""
    _, _, stats, middles = cv2.connectedComponentsWithStats(where.astype(np.uint8))
    boxes, areas = stats[1:, 2] * stats[1:, 3], stats[1:, 4]
    whole = (areas > 30) & (areas > 0.6 * boxes)
    return list(middles[1:][whole])


@pytest.mark.parametrize("tilt", [0, 25])
def test_a_second_look_is_finer_than_the_first(tilt, monkeypatch) -> None:
    canvas, turn = np.zeros((400, 400), np.uint8), np.deg2rad(tilt)
    spin = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    truth = np.array(DOTS) @ spin.T * 30 + [203, 197]
    for grey, (x, y) in zip(GREYS, truth, strict=True):
        cv2.circle(canvas, (round(16 * x), round(16 * y)), 9 * 16, grey, -1, cv2.LINE_8, 4)
    image = torch.from_numpy(canvas).float().expand(3, -1, -1) / 255
    (face,) = SquareDetector(dots)(image)
    monkeypatch.setattr(SquareDetector, "_again", lambda self, image, face: face)
    (first,) = SquareDetector(dots)(image)
    wrong, rough = ((f.landmarks - torch.tensor(truth)).norm(dim=-1).mean() for f in (face, first))
    assert wrong < 0.6 * rough and torch.equal(face.box, first.box)


@pytest.mark.parametrize(("height", "width"), [(200, 320), (320, 200), (900, 640)])
def test_places_are_those_of_the_picture(height, width) -> None:
    image = torch.zeros(3, height, width)
    image[:, 40:140, 60:140] = 1
    (face,) = SquareDetector(bright_square, canvas=640)(image)
    expected = torch.tensor([60.0, 40, 139, 139])
    torch.testing.assert_close(face.box, expected, atol=1.5, rtol=0)
    # The mirror image finds the other eye higher: averaged, both are level.
    eyes = face.landmarks[:2]
    assert abs(float(eyes[0, 1] - eyes[1, 1])) < 0.5
    torch.testing.assert_close(eyes[:, 0], torch.tensor([83.7, 115.3]), atol=1.5, rtol=0)


def test_shown_smaller_and_larger_until_a_face_is_found() -> None:
    sides = []

    def never(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
        sides.append(picture.shape[:2])
        return np.empty((0, 15), np.float32)

    image = torch.rand(3, 50, 80)
    assert SquareDetector(never)(image) == ()
    assert [s for s, _ in sides[::2]] == [640, 320, 1280]
    sides.clear()
    SquareDetector(never, canvas=640)(image)
    assert sides == [(640, 640)] * 4  # twice at 640, twice at 320 inside it


@pytest.fixture(scope="module")
def yunet(shared_assets) -> SquareDetector:
    return load_detector(shared_assets / "face" / "yunet_s_640_640.onnx")


@pytest.fixture(scope="module")
def retinaface(shared_assets) -> SquareDetector:
    pytest.importorskip("facexlib")
    return load_detector(shared_assets / "face" / "retinaface_mobilenet0.25_Final.pth")


@pytest.mark.slow
def test_two_detectors_agree_on_every_real_photo(yunet, retinaface, shared_assets) -> None:
    folder = shared_assets / "photos"
    files = [*(folder / "person").glob("*.jpg"), *(folder / "styles").glob("*.jpg")]
    apart = {}
    for file in files:
        image = read_picture(file).image
        ours, theirs = yunet(image)[0], retinaface(image)[0]
        distance = (ours.landmarks - theirs.landmarks).norm(dim=-1).mean()
        apart[file.name] = float(distance) / ours.width
    assert len(apart) == 29
    assert max(apart.values()) < 0.04, apart
    assert np.mean(list(apart.values())) < 0.03


def opencv_rows(model: Path, picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The faces (N,15) of a square picture by OpenCV, the surest first."""
    side = len(picture)
    network = cv2.FaceDetectorYN.create(str(model), "", (side, side), 0.6, 0.3)
    rows = network.detect(picture)[1]
    rows = np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4], rows[:, 4:]], axis=1)
    return rows[rows[:, 14].argsort()[::-1]]


class Exported(torch.nn.Module):
    """YuNet with the outputs that its published exports have, in the order of YUNET_OUTPUTS."""

    def __init__(self, network: YuNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, picture: Tensor) -> tuple[Tensor, ...]:
        maps = self.network(picture)
        flat = [m.permute(0, 2, 3, 1).flatten(1, 2) for i in (0, 2, 1, 3) for m in maps[i]]
        return tuple([one.sigmoid() for one in flat[:6]] + flat[6:])


def write_yunet(path: Path, network: YuNet, side: int = 64) -> Path:
    """A network's export to ONNX."""
    torch.onnx.export(
        Exported(network).eval(),
        (torch.zeros(1, 3, side, side),),
        str(path),
        input_names=["input"],
        output_names=YUNET_OUTPUTS,
        opset_version=11,
        dynamo=False,  # the newer exporter needs onnxscript
    )
    return path


def test_yunet_is_opencvs_own_on_drawn_faces(tmp_path) -> None:
    """The shipped weights, written as ONNX for OpenCV: the same to a thousandth of a pixel."""
    shipped = YuNet()
    shipped.load_state_dict(load_file(best("detector", {})))
    file = write_yunet(tmp_path / "my_yunet.onnx", shipped, side=256)
    picture = np.ascontiguousarray(trial._drawn_faces()[..., ::-1])
    expected = opencv_rows(file, picture)
    assert len(expected) == 4
    for given in (best("detector", {}), file):
        rows = load_detector(given).find(picture)
        np.testing.assert_allclose(rows, expected, atol=1e-3)


def test_the_wide_yunet_is_read_from_its_export(tmp_path) -> None:
    """Of random weights, that of the larger release, with its second row of shared layers."""
    network = YuNet(wide=True)
    for head in network.heads[0], network.heads[2]:
        for unit in head:
            unit.depth.bias.data += 3.0  # sure of a face everywhere
    file = write_yunet(tmp_path / "wide_yunet.onnx", network)
    picture = (torch.rand(64, 64, 3) * 255).byte().numpy()
    expected = opencv_rows(file, picture)
    rows = load_model("detector", file).find(picture)
    np.testing.assert_allclose(rows[0], expected[0], atol=1e-3)


def test_the_shipped_weights_are_the_published_ones(shared_assets) -> None:
    published = shared_assets / "face" / "yunet_s_640_640.onnx"
    shipped = load_file(best("detector", {}))
    for one, other in zip(YuNet().state_dict(), convolutions(published), strict=True):
        assert torch.equal(shipped[one], other)


@pytest.mark.slow
def test_yunet_is_opencvs_own_on_real_photos(shared_assets) -> None:
    model = shared_assets / "face" / "yunet_s_640_640.onnx"
    detector, found = load_detector(best("detector", {})), 0
    for file in sorted((shared_assets / "photos").glob("[ps]*/*.jpg")):
        picture = cv2.resize(cv2.imread(str(file)), (640, 640))
        expected = opencv_rows(model, picture)
        np.testing.assert_allclose(detector.find(picture), expected, atol=1e-3)
        found += len(expected)
    assert found >= 29


def test_quantised_weights_are_refused_in_words(tmp_path) -> None:
    model = onnx.load(write_yunet(tmp_path / "yunet_int8.onnx", YuNet()))
    model.graph.node[0].input[1] = "dequantised"
    onnx.save(model, tmp_path / "yunet_int8.onnx")
    with pytest.raises(InputError, match=r"yunet_int8\.onnx holds quantised weights"):
        load_detector(tmp_path / "yunet_int8.onnx")


def test_a_crowd_an_edge_and_a_small_face(yunet, portraits) -> None:
    photo = portraits[0][1].image[0]
    (face,) = yunet(photo)
    small = interpolate(photo[None], (160, 160), mode="area")[0]
    crowd = small.repeat(1, 3, 4)
    assert len(yunet(crowd)) == 12
    width = 40 / face.width
    tiny = interpolate(photo[None], scale_factor=width, mode="area")[0]
    canvas = torch.full((3, 500, 700), 0.5)
    canvas[:, : tiny.shape[1], : tiny.shape[2]] = tiny
    assert abs(yunet(canvas)[0].width - 40) < 6
    cut = photo[:, :, : int(face.landmarks[1, 0] + 8)]
    assert len(yunet(cut)) == 1
    grey = photo.mean(dim=0, keepdim=True).expand(3, -1, -1)
    assert (yunet(grey)[0].landmarks - face.landmarks).norm(dim=-1).max() < 0.08 * face.width
    assert yunet(torch.rand(3, 300, 300)) == ()


def write_scrfd(path: Path, score: float = 0.0, gain: float = 0.9, outputs: int = 9) -> Path:
    """A network of SCRFD's form: a face wherever a cell of 16 px is white.

    score, gain: of an even grey, and what white adds. outputs: 9, or 6 for one without landmarks.
    """
    nodes, infos, weights = [], [], []

    def add(kind: str, stride: int, bias: list[float], gain: float) -> None:
        name = f"{kind}_{stride}"
        channels = len(bias)
        weight = np.full((channels, 3, stride, stride), gain / (3 * stride**2), np.float32)
        weights.append(numpy_helper.from_array(weight, f"w_{name}"))
        weights.append(numpy_helper.from_array(np.array(bias, np.float32), f"b_{name}"))
        weights.append(numpy_helper.from_array(np.array([-1, channels // 2]), f"s_{name}"))
        nodes.append(
            helper.make_node(
                "Conv", ["image", f"w_{name}", f"b_{name}"], [f"c_{name}"], strides=[stride] * 2
            )
        )
        nodes.append(helper.make_node("Transpose", [f"c_{name}"], [f"t_{name}"], perm=[0, 2, 3, 1]))
        nodes.append(helper.make_node("Reshape", [f"t_{name}", f"s_{name}"], [name]))
        infos.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", channels // 2]))

    points = [-1.0, -0.5, 1, -0.5, 0, 0, -0.5, 0.5, 0.5, 0.5]
    for stride in (8, 16, 32):  # pixels come as (x - 127.5) / 128
        add("score", stride, [score] * 2, gain if stride == 16 else 0.0)
    for stride in (8, 16, 32):
        add("box", stride, [2.0] * 8, 0)
    for stride in (8, 16, 32):
        add("kps", stride, points * 2, 0)
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, "h", "w"])
    graph = helper.make_graph(nodes, "scrfd", [image], infos[:outputs], weights)
    # An old format version: onnxruntime lags behind the newest that onnx writes.
    opset = helper.make_opsetid("", 13)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), str(path))
    return path


def test_scrfd_by_insightface(tmp_path) -> None:
    pytest.importorskip("insightface")
    detector = load_model("detector", write_scrfd(tmp_path / "det_10g.onnx"))
    image = torch.zeros(3, 640, 640)
    image[:, 160:176, 320:336] = 1
    (face,) = detector(image)
    assert 0.8 < face.score <= 1
    # Cell (row 10, column 20): at its corner, two strides to each side; mirrored from its right.
    assert abs(float(face.box[1]) - 128) < 1 and abs(face.height - 64) < 1
    # The square grows on the sheet that shows the face again, where more cells are white.
    assert abs(float(face.landmarks[2, 1]) - 160) < 3
    assert float(face.landmarks[0, 0]) < float(face.landmarks[1, 0])


def test_every_release_of_insightface_will_do(tmp_path, monkeypatch) -> None:
    """0.7.3 knows neither of the later arguments; its class is the later one's in all we use."""
    module = pytest.importorskip("insightface.model_zoo.scrfd")
    path = write_scrfd(tmp_path / "det_10g.onnx")
    picture = np.zeros((640, 640, 3), np.uint8)
    picture[160:176, 320:336] = 255
    expected = load_model("detector", path).find(picture)

    class Old(module.SCRFD):
        def __init__(self, model_file=None, session=None):
            super().__init__(model_file, session)

    monkeypatch.setattr(module, "SCRFD", Old)
    rows = load_model("detector", path).find(picture)
    assert len(rows) and np.array_equal(rows, expected)


def test_a_package_that_is_missing_or_broken_is_named(tmp_path, monkeypatch) -> None:
    pytest.importorskip("insightface")
    path = write_scrfd(tmp_path / "det_10g.onnx")
    monkeypatch.setitem(sys.modules, "insightface.model_zoo", None)
    with pytest.raises(
        MagiCaptureError, match=r"needs insightface and onnxruntime.*requirements-faces"
    ):
        load_detector(path)


def test_files_that_are_no_detector(tmp_path) -> None:
    from facexlib.parsing.bisenet import BiSeNet

    torch.save(BiSeNet(19).state_dict(), tmp_path / "parsing_bisenet.pth")
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    (tmp_path / "broken.pth").write_bytes(b"not weights")
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "none",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    onnx.save(helper.make_model(graph), str(tmp_path / "other.onnx"))
    write_scrfd(tmp_path / "boxes.onnx", outputs=6)
    hollow = helper.make_graph([], "hollow", graph.input, [])
    onnx.save(helper.make_model(hollow), str(tmp_path / "hollow.onnx"))
    (tmp_path / "empty.onnx").touch()
    for name, error, message in (
        ("gone.onnx", StorageError, "no face detector at"),
        ("broken.onnx", StorageError, "damaged"),
        ("broken.pth", StorageError, "damaged"),
        ("other.onnx", InputError, "outputs y is no face detector.*five landmarks"),
        ("parsing_bisenet.pth", InputError, "is no face detector.*RetinaFace"),
        ("boxes.onnx", InputError, "is no face detector.*five landmarks"),
        ("hollow.onnx", StorageError, "without a single layer"),
        ("empty.onnx", StorageError, "without a single layer"),
    ):
        with pytest.raises(error, match=message):
            load_detector(tmp_path / name)


def write_graph(path: Path, outputs: Sequence[str]) -> Path:
    """An ONNX model of a detector's looks whose every output is the picture itself."""
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 640, 640])
    graph = helper.make_graph(
        [helper.make_node("Identity", ["image"], [name]) for name in outputs],
        "fake",
        [image],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
    )
    opset = helper.make_opsetid("", 13)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), str(path))
    return path


YUNET_OUTPUTS = [f"{kind}_{s}" for kind in ("cls", "obj", "bbox", "kps") for s in (8, 16, 32)]


@pytest.mark.parametrize(
    ("score", "gain", "message"),
    [
        (0.0, 0.0, "finds 0 faces in a picture of 4"),
        (0.6, 0.0, r"finds \d+ faces in a picture of 4 drawn ones, \d+ of them in place"),
        (float("nan"), 0.9, "finds 0 faces in a picture of 4"),
    ],
    ids=["never", "always", "not a number"],
)
def test_fakes_are_refused_by_what_they_find(tmp_path, score, gain, message) -> None:
    pytest.importorskip("insightface")
    with pytest.raises(InputError, match=message):
        load_detector(write_scrfd(tmp_path / "det_10g.onnx", score, gain))


@pytest.mark.parametrize("outputs", [[f"o{i}" for i in range(9)], YUNET_OUTPUTS])
def test_outputs_of_the_right_names_and_the_wrong_shapes_are_refused(tmp_path, outputs) -> None:
    pytest.importorskip("insightface")
    with pytest.raises(
        InputError, match=r"det_10g\.onnx (looks like YuNet, but holds 0|cannot look)"
    ):
        load_detector(write_graph(tmp_path / "det_10g.onnx", outputs))


def test_a_detector_that_gives_no_rows_of_15_is_refused() -> None:
    def boxes(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.zeros((3, 5), np.float32)

    def broken(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
        raise RuntimeError("Got: 256 Expected: 480\nand so on")

    with pytest.raises(InputError, match=r"mine\.onnx gives numbers of shape \(3, 5\)"):
        try_detector(SquareDetector(boxes), "mine.onnx")
    with pytest.raises(InputError, match=r"cannot look .* \(Got: 256 Expected: 480\)"):
        try_detector(SquareDetector(broken), "mine.onnx")


def test_a_detector_that_always_says_the_same_is_refused() -> None:
    """Its one face happens to lie on a drawn one."""
    points = ARCFACE_TEMPLATE - ARCFACE_TEMPLATE.mean(0) + torch.tensor([60.0, 70.0])
    row = np.array([[20, 20, 100, 110, *points.flatten().tolist(), 0.9]], np.float32)
    with pytest.raises(InputError, match=r"mine\.onnx finds faces in an empty picture"):
        try_detector(SquareDetector(lambda picture: row), "mine.onnx")


def test_reading_ends_after_a_while() -> None:
    release = Event()
    with pytest.raises(InputError, match=r"slow\.onnx was not read .* within 0\.05 seconds"):
        within_limit(release.wait, "slow.onnx", seconds=0.05)
    release.set()
    assert within_limit(lambda: 3, "quick.onnx") == 3
    with pytest.raises(StorageError, match="no face detector at"):
        load_detector("gone.onnx")  # an error of the other thread is ours


def test_retinaface_from_facexlib_is_facexlibs_own(tmp_path) -> None:
    retinaface = pytest.importorskip("facexlib.detection.retinaface")
    network = retinaface.RetinaFace("mobile0.25", device="cpu")
    for head in network.ClassHead:  # so that a random network is sure of faces
        head.conv1x1.bias.data = torch.tensor([0.0, 3, 0, 3])
    path = tmp_path / "detection_mobilenet0.25_Final.pth"
    torch.save({f"module.{k}": v for k, v in network.state_dict().items()}, path)
    picture = (torch.rand(320, 320, 3) * 255).byte().numpy()
    with torch.no_grad():
        expected = network.detect_faces(picture, conf_threshold=0.8)
    rows = load_model("detector", path).find(picture)
    assert len(rows) == len(expected) > 0
    order = [0, 1, 2, 3, *range(5, 15), 4]
    np.testing.assert_allclose(rows, expected[:, order], atol=1e-3)


def mirrored(image: Tensor) -> Tensor:
    return image.flip(-1)


def test_a_mirrored_photo_has_mirrored_landmarks(yunet, portraits) -> None:
    photo = portraits[0][2].image[0]
    face, other = yunet(photo)[0], yunet(mirrored(photo))[0]
    back = other.landmarks[[1, 0, 2, 4, 3]]
    back = torch.stack([photo.shape[-1] - 1 - back[:, 0], back[:, 1]], dim=1)
    assert (back - face.landmarks).norm(dim=-1).max() < 0.02 * face.width
