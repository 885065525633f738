"""The readers' files load as what was written, and what is missing is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from magicapture.errors import StorageError
from magicapture.paperdoll.weights import READERS, load_reader, loss_embedder, model_folder


def write(folder: Path, name: str, seed: int = 0) -> torch.nn.Module:
    """An untrained reader, written in half precision as the export does."""
    torch.manual_seed(seed)
    network = READERS[name]()
    halves = {key: value.half() for key, value in network.state_dict().items()}
    save_file(halves, folder / f"{name}.safetensors")
    return network.half().float().eval()


@pytest.mark.parametrize("name", READERS)
def test_a_reader_is_the_network_that_was_written(name: str, tmp_path: Path) -> None:
    written, read = write(tmp_path, name), load_reader(name, tmp_path)
    assert type(read) is type(written) and not read.training
    assert not any(parameter.requires_grad for parameter in read.parameters())
    for key, value in written.state_dict().items():
        assert read.state_dict()[key].dtype == value.dtype
        assert torch.equal(read.state_dict()[key], value), key


def test_the_loss_embedder_passes_gradients_to_the_faces(tmp_path: Path) -> None:
    written = write(tmp_path, "identity_loss")
    faces = torch.rand(2, 3, 112, 112, requires_grad=True)
    vectors = loss_embedder(tmp_path)(faces)
    torch.testing.assert_close(vectors, written(faces))
    vectors.square().sum().backward()
    assert faces.grad is not None and faces.grad.abs().sum() > 0


def test_what_is_missing_or_damaged_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"no .*finder\.safetensors.*pretrain"):
        load_reader("finder", tmp_path)
    with pytest.raises(StorageError, match=r"holds none.*pretrain"):
        model_folder(tmp_path)
    (tmp_path / "style.safetensors").write_bytes(b"nothing")
    with pytest.raises(StorageError, match="damaged"):
        load_reader("style", tmp_path)
    write(tmp_path, "probe")
    (tmp_path / "probe.safetensors").rename(tmp_path / "parser.safetensors")
    with pytest.raises(StorageError, match="holds another network"):
        load_reader("parser", tmp_path)
