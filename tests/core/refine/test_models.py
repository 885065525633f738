"""Loading by spandrel, and what reaches each face restorer."""

from __future__ import annotations

import subprocess

import pytest
import torch
from safetensors.torch import save_file
from spandrel import MAIN_REGISTRY
from spandrel.architectures.Compact import Compact
from spandrel.architectures.ESRGAN import ESRGAN
from spandrel.architectures.GFPGAN import GFPGAN
from spandrel.architectures.RestoreFormer import RestoreFormer
from torch import Tensor, nn

from magicapture.errors import InputError, StorageError, UnsupportedModelError
from magicapture.refine.models import FaceRestorer, architecture_of, load_image_model


@pytest.mark.parametrize("wrapped", ["", "params", "params_ema", "state_dict"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_architecture_is_told_from_the_weights(tmp_path, wrapped, suffix) -> None:
    weights = Compact(num_feat=8, num_conv=1, upscale=2).state_dict()
    path = tmp_path / f"model{suffix}"
    if suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save({wrapped: weights} if wrapped else weights, path)
    model = load_image_model(path)
    assert (architecture_of(model), model.scale) == ("Compact", 2)
    assert not model.model.training
    for name, value in model.model.state_dict().items():
        assert torch.equal(value, weights[name])


class Runs:
    """A pickle that runs a command where it is read without care."""

    def __reduce__(self):
        return subprocess.check_call, (["false"],)


def test_files_that_cannot_be_read(tmp_path) -> None:
    with pytest.raises(StorageError, match="no model at"):
        load_image_model(tmp_path / "absent.pth")
    for name, content in {"a.pth": b"nonsense", "b.safetensors": b"nonsense"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(StorageError, match="damaged"):
            load_image_model(tmp_path / name)
    torch.save({"params": Runs()}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match="more than weights"):
        load_image_model(tmp_path / "evil.pth")


def test_files_of_another_kind(tmp_path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "linear.pth")
    with pytest.raises(UnsupportedModelError, match="spandrel"):
        load_image_model(tmp_path / "linear.pth")
    torch.save([torch.ones(1)], tmp_path / "list.pth")
    with pytest.raises(InputError, match="list"):
        load_image_model(tmp_path / "list.pth")
    weights = Compact(num_feat=8, num_conv=1, upscale=2).state_dict()
    weights["body.0.weight"] = torch.zeros(8, 3, 5, 5)
    torch.save(weights, tmp_path / "wrong.pth")
    with pytest.raises(UnsupportedModelError, match="wrong"):
        load_image_model(tmp_path / "wrong.pth")


def old_esrgan() -> dict[str, Tensor]:
    """ESRGAN's first names, one block of four channels."""
    return dict(ESRGAN(num_filters=4, num_blocks=1, scale=1).state_dict())


@pytest.mark.parametrize(
    "changes",
    [
        {"model.0.weight": torch.zeros(4)},
        {"model.0.weight": torch.zeros(())},
        {"model.0.weight": torch.zeros(0, 0, 3, 3)},
        {"model.4.weight": torch.zeros(())},
        {"model.x.weight": torch.zeros(1)},
        {"model.1.sub.0.RDB1.conv1.0.weight": torch.zeros(7, 4, 3, 3)},
        {"model.1.sub.99999999.weight": torch.zeros(1)},
        {f"model.{'9' * 5000}.weight": torch.zeros(1)},
    ],
    ids=lambda changes: next(iter(changes))[:40],
)
def test_names_of_a_network_with_other_shapes(tmp_path, changes) -> None:
    torch.save(old_esrgan(), tmp_path / "whole.pth")
    assert architecture_of(load_image_model(tmp_path / "whole.pth")) == "ESRGAN"
    torch.save({**old_esrgan(), **changes}, tmp_path / "other.pth")
    with pytest.raises(UnsupportedModelError, match=r"other\.pth .* damaged"):
        load_image_model(tmp_path / "other.pth")


def test_spandrels_own_list_stays_as_it_is(tmp_path) -> None:
    before = len(MAIN_REGISTRY)
    torch.save(Compact(num_feat=8, num_conv=1).state_dict(), tmp_path / "model.pth")
    load_image_model(tmp_path / "model.pth")
    assert len(MAIN_REGISTRY) == before


def ranges(model, fidelity: float = 0.5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run a restorer on a face: the face, what its network saw and gave, what came back."""
    kept = {}

    def keep(network, inputs, outputs) -> None:
        kept["in"], kept["out"] = inputs[0].clone(), outputs[0].clone()

    hook = model.model.register_forward_hook(keep)
    face = torch.rand(1, 3, 512, 512)
    face[..., :8, :8], face[..., 8:16, :8] = 0, 1
    result = FaceRestorer(model, fidelity)(face)
    hook.remove()
    return face, kept["in"], kept["out"], result


def assert_signed(face: Tensor, seen: Tensor, given: Tensor, result: Tensor) -> None:
    assert float(seen.min()) == -1 and float(seen.max()) == 1
    torch.testing.assert_close(seen, 2 * face - 1)
    assert float(given.min()) < -0.05, "no output below 0, so its range is not shown"
    torch.testing.assert_close(result, ((given + 1) / 2).clamp(0, 1))


def test_range_of_gfpgan(small_gfpgan) -> None:
    assert_signed(*ranges(small_gfpgan))


def test_gfpgan_repeats_itself(small_gfpgan) -> None:
    for module in small_gfpgan.model.stylegan_decoder.modules():
        if type(module).__name__ == "StyleConv":
            nn.init.ones_(module.weight)  # of the noise, 0 in a network that has not been trained
    face = torch.rand(1, 3, 512, 512)
    first, second = (FaceRestorer(small_gfpgan)(face) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_range_of_restoreformer_from_a_file(tmp_path) -> None:
    network = RestoreFormer(
        n_embed=32, embed_dim=32, z_channels=32, ch=32, ch_mult=(1,) * 6, num_res_blocks=1
    )
    torch.save({"params": network.state_dict()}, tmp_path / "restoreformer.pth")
    model = load_image_model(tmp_path / "restoreformer.pth")
    face, seen, given, result = ranges(model)
    assert_signed(face, seen, given, result)
    # spandrel's own call maps the range for this one alone, so the two must agree.
    torch.testing.assert_close(result, model(face), atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_range_and_fidelity_of_codeformer_from_a_file(tmp_path) -> None:
    architecture = pytest.importorskip(
        "spandrel_extra_arches.architectures.CodeFormer",
        reason="CodeFormer needs spandrel_extra_arches",
    )
    network = architecture.CodeFormer(n_layers=1, connect_list=["32"])
    nn.init.normal_(network.fuse_convs_dict["32"].scale[2].weight, std=0.5)
    torch.save({"params_ema": network.state_dict()}, tmp_path / "codeformer.pth")
    model = load_image_model(tmp_path / "codeformer.pth")
    fidelities = []
    model.model.register_forward_pre_hook(
        lambda _, args, kwargs: fidelities.append(kwargs["weight"]), with_kwargs=True
    )
    assert_signed(*ranges(model, fidelity=0.8))
    assert fidelities == [0.8]


def test_what_does_not_restore_faces_is_refused(compact) -> None:
    with pytest.raises(UnsupportedModelError, match="Upscale Portrait"):
        FaceRestorer(compact())


def test_bad_settings_and_sizes(small_gfpgan) -> None:
    with pytest.raises(InputError, match="fidelity"):
        FaceRestorer(small_gfpgan, 1.5)
    with pytest.raises(InputError, match="512"):
        FaceRestorer(small_gfpgan)(torch.rand(1, 3, 256, 256))


def test_real_gfpgan_is_recognised(tmp_path) -> None:
    """By its names alone: weights without a size are refused by the network, not by the list."""
    names = {name: torch.zeros(1) for name in GFPGAN(narrow=0.125, num_mlp=1).state_dict()}
    torch.save(names, tmp_path / "gfpgan.pth")
    with pytest.raises(UnsupportedModelError, match="GFPGAN"):
        load_image_model(tmp_path / "gfpgan.pth")
