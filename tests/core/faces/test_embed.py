"""Face recognition models from ONNX and TorchScript files, checked and differentiable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from magicapture.errors import InputError, StorageError
from magicapture.faces import script as script_module
from magicapture.faces.align import similarity, warp
from magicapture.faces.embed import Normalisation, load_face_embedder


@pytest.fixture
def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 5, stride=4), nn.AdaptiveAvgPool2d(2), nn.Flatten())


@pytest.fixture
def script(network, tmp_path) -> Path:
    path = tmp_path / "small.pt"
    torch.jit.trace(network, torch.rand(2, 3, 112, 112)).save(str(path))
    return path


def write_onnx(path: Path, *, batch: int | None = None, side: int = 112) -> Path:
    """A convolution and a mean; with `batch` the file is bound to that many faces."""
    flatten = helper.make_node("Flatten", ["pooled"], ["embedding"], axis=1)
    tensors = [numpy_helper.from_array(np.random.randn(8, 3, 5, 5).astype(np.float32), "weight")]
    if batch:
        tensors.append(numpy_helper.from_array(np.array([batch, 8]), "shape"))
        flatten = helper.make_node("Reshape", ["pooled", "shape"], ["embedding"])
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["faces", "weight"], ["features"], strides=[4, 4]),
            helper.make_node("GlobalAveragePool", ["features"], ["pooled"]),
            flatten,
        ],
        "small",
        [helper.make_tensor_value_info("faces", TensorProto.FLOAT, [batch or "n", 3, side, side])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [batch or "n", 8])],
        tensors,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]), str(path))
    return path


@pytest.mark.parametrize(
    ("normalisation", "mean", "std"),
    [
        ("arcface", 127.5, 127.5),
        ("imagenet", [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),
        (Normalisation((0.1, 0.2, 0.3), (1, 2, 4)), [25.5, 51, 76.5], [255, 510, 1020]),
    ],
)
def test_normalisation_is_that_of_0_to_255(script, network, normalisation, mean, std) -> None:
    faces = torch.rand(2, 3, 112, 112)
    mean, std = (torch.tensor(v).float().expand(3).view(3, 1, 1) for v in (mean, std))
    expected = network((255 * faces - mean) / std)
    torch.testing.assert_close(load_face_embedder(script, normalisation)(faces), expected)


def test_embedder_is_frozen_and_ignores_autocast(script) -> None:
    embedder = load_face_embedder(script)
    assert not embedder.training and not any(p.requires_grad for p in embedder.parameters())
    faces = torch.rand(2, 3, 112, 112)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(embedder(faces), embedder(faces.float()))
        assert embedder(faces).dtype == torch.float32


@pytest.mark.parametrize("batch", [None, 1])
def test_onnx_of_open_and_of_fixed_batch(tmp_path, batch) -> None:
    embedder = load_face_embedder(write_onnx(tmp_path / "small.onnx", batch=batch))
    assert embedder.batched == (batch is None)
    weight = dict(onnx_weights(tmp_path / "small.onnx"))["weight"]
    faces = torch.rand(3, 3, 112, 112, requires_grad=True)
    expected = F.conv2d(2 * faces - 1, weight, stride=4).mean((2, 3))
    embeddings = embedder(faces)
    torch.testing.assert_close(embeddings, expected, atol=1e-5, rtol=1e-5)
    ours = torch.autograd.grad(embeddings.square().sum(), faces)[0]
    theirs = torch.autograd.grad(expected.square().sum(), faces)[0]
    torch.testing.assert_close(ours, theirs)


def onnx_weights(path: Path) -> list[tuple[str, Tensor]]:
    tensors = onnx.load(str(path)).graph.initializer
    return [(t.name, torch.from_numpy(numpy_helper.to_array(t).copy())) for t in tensors]


def test_loaded_under_inference_mode_it_still_gives_gradients(tmp_path, script) -> None:
    with torch.inference_mode():
        embedders = [
            load_face_embedder(write_onnx(tmp_path / "a.onnx")),
            load_face_embedder(script),
        ]
    for embedder in embedders:
        faces = torch.rand(1, 3, 112, 112, requires_grad=True)
        embedder(faces).square().sum().backward()
        assert faces.grad.any()


def test_a_missing_damaged_or_foreign_file(tmp_path) -> None:
    for name, content, error, message in (
        ("gone.onnx", None, StorageError, "no face recognition model at"),
        ("broken.onnx", b"not a model", StorageError, "damaged"),
        ("empty.onnx", b"", StorageError, "damaged"),
        ("broken.pt", b"not a model", StorageError, "damaged"),
        ("broken.safetensors", b"not a model", StorageError, "damaged"),
        ("model.bin", b"", InputError, r"\.onnx"),
    ):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(error, match=message):
            load_face_embedder(path)


def test_networks_that_are_no_embedder(tmp_path) -> None:
    with pytest.raises(InputError, match="160"):
        load_face_embedder(write_onnx(tmp_path / "facenet.onnx", side=160))
    networks = {
        "not two-dimensional": nn.Conv2d(3, 4, 3),
        "wrong channels": nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten()),
        "constant": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Hardtanh(9.0, 10.0)),
    }
    for name, network in networks.items():
        path = tmp_path / f"{name}.pt"
        torch.jit.script(network).save(str(path))
        with pytest.raises(InputError, match=name):
            load_face_embedder(path)


class Loops(nn.Module):
    """TorchScript that never comes to an end when it is loaded, or when it is run."""

    def __init__(self, while_loading: bool) -> None:
        super().__init__()
        self.while_loading = while_loading

    @torch.jit.export
    def __getstate__(self) -> tuple[bool, bool]:
        return (self.while_loading, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[bool, bool]) -> None:
        self.while_loading = state[0]
        self.training = state[1]
        while self.while_loading:
            pass

    def forward(self, faces: Tensor) -> Tensor:
        while not self.while_loading:
            pass
        return faces


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors", "recognition_arcface_ir_se50.pth"])
def test_torchscript_is_refused_under_endings_of_weights(tmp_path, name) -> None:
    torch.jit.script(Loops(while_loading=True)).save(str(tmp_path / name))
    with pytest.raises(InputError, match="TorchScript, which runs code"):
        load_face_embedder(tmp_path / name)


@pytest.mark.parametrize("while_loading", [True, False])
def test_torchscript_that_hangs_is_stopped(tmp_path, monkeypatch, while_loading) -> None:
    monkeypatch.setattr(script_module, "SECONDS", 5.0)
    path = tmp_path / "x.PT"
    torch.jit.script(Loops(while_loading)).save(str(path))
    with pytest.raises(StorageError, match="did not come to an end in 5 seconds"):
        load_face_embedder(path)


def test_torchscript_with_a_loop_that_ends_is_loaded(tmp_path) -> None:
    class Sums(nn.Module):
        def forward(self, faces: Tensor) -> Tensor:
            total = faces[:, :, 0, 0]
            for row in range(1, 8):
                total = total + faces[:, :, row, row]
            return total

    torch.jit.script(Sums()).save(str(tmp_path / "sums.torchscript"))
    faces = torch.rand(2, 3, 112, 112)
    expected = Sums()(2 * faces - 1)
    torch.testing.assert_close(load_face_embedder(tmp_path / "sums.torchscript")(faces), expected)


def test_an_onnx_file_that_cannot_be_run(tmp_path) -> None:
    """A model without nodes, and one whose node names an input that is nowhere."""
    faces = helper.make_tensor_value_info("faces", TensorProto.FLOAT, ["n", 3, 112, 112])
    for nodes in ([], [helper.make_node("Relu", ["nowhere"], ["embedding"])]):
        graph = helper.make_graph(nodes, "small", [faces], [faces])
        onnx.save(helper.make_model(graph), str(tmp_path / "x.onnx"))
        with pytest.raises((InputError, StorageError), match=r"x\.onnx"):
            load_face_embedder(tmp_path / "x.onnx")


def test_unknown_normalisation(script) -> None:
    with pytest.raises(InputError, match="arcface, imagenet"):
        load_face_embedder(script, "vgg")


def test_real_embedder_tells_people_apart(shared_assets, portraits) -> None:
    embedder = load_face_embedder(shared_assets / "face" / "foamliu_MobileFaceNet.onnx", "imagenet")
    person, others = (
        torch.cat([warp(p.image, similarity(p.landmarks)) for p in group]) for group in portraits
    )
    own, foreign = (F.normalize(embedder(faces), dim=-1) for faces in (person, others))
    same = (own @ own.T)[~torch.eye(len(own), dtype=torch.bool)]
    assert same.mean() > 0.5 and (own @ foreign.T).mean() < 0.1
    mean = F.normalize(own.mean(0), dim=0)
    assert (own @ mean).min() > (foreign @ mean).max() + 0.2

    faces = person[:2].clone().requires_grad_()
    embedder(faces).square().sum().backward()
    assert (faces.grad != 0).float().mean() > 0.9


def test_real_embedder_equals_onnxruntime(shared_assets, portraits) -> None:
    runtime = pytest.importorskip("onnxruntime")
    path = shared_assets / "face" / "foamliu_MobileFaceNet.onnx"
    session = runtime.InferenceSession(str(path))
    embedder = load_face_embedder(path, "imagenet")
    for portrait in portraits[0][:2]:
        face = warp(portrait.image, similarity(portrait.landmarks))
        pixels = ((face - embedder.mean) / embedder.std).numpy()
        (expected,) = session.run(None, {session.get_inputs()[0].name: pixels})
        ours = embedder(face).numpy()
        np.testing.assert_allclose(ours, expected, atol=1e-3 * np.abs(expected).max())
