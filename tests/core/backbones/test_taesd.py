"""TAESD from the layouts it comes in."""

import pytest
import torch
from safetensors.torch import save_file

from magicapture.backbones import load_taesd
from magicapture.errors import InputError, StorageError, UnsupportedModelError

LEVELS = {
    "encoder_block_out_channels": (64,) * 4,
    "decoder_block_out_channels": (64,) * 4,
    "num_encoder_blocks": (1, 3, 3, 3),
    "num_decoder_blocks": (3, 3, 3, 1),
}


@pytest.fixture
def taesd(tiny):
    return tiny.vae("tiny", **LEVELS)


@pytest.fixture
def folder(taesd, tmp_path):
    """The author's two files: layers counted from 0, the decoder's clamp among them."""
    for part, offset in (("encoder", 0), ("decoder", 1)):
        state = {}
        for name, value in getattr(taesd, part).layers.state_dict().items():
            index, rest = name.split(".", 1)
            state[f"{int(index) + offset}.{rest}"] = value.clone()
        save_file(state, tmp_path / f"taesd_{part}.safetensors")
    return tmp_path


@pytest.mark.parametrize("name", ["", "taesd_decoder.safetensors", "taesd_encoder.safetensors"])
def test_the_authors_files(folder, taesd, name):
    loaded = load_taesd(folder / name)
    found = loaded.state_dict()
    assert found.keys() == taesd.state_dict().keys()
    assert all(torch.equal(found[key], value) for key, value in taesd.state_dict().items())
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())


def test_a_diffusers_folder(taesd, tmp_path):
    taesd.save_pretrained(tmp_path)
    found = load_taesd(tmp_path).state_dict()
    assert all(torch.equal(found[key], value) for key, value in taesd.state_dict().items())


def test_half_of_it(folder):
    (folder / "taesd_encoder.safetensors").unlink()
    with pytest.raises(InputError, match="the encoder is missing"):
        load_taesd(folder / "taesd_decoder.safetensors")


def test_another_file(folder):
    other = (folder / "taesd_encoder.safetensors").rename(folder / "vae.safetensors")
    with pytest.raises(InputError, match="no TAESD"):
        load_taesd(other)


def test_another_architecture(folder):
    save_file({"0.weight": torch.zeros(1)}, folder / "taesd_encoder.safetensors")
    with pytest.raises(UnsupportedModelError, match="laid out as TAESD"):
        load_taesd(folder)


def test_a_damaged_file(folder):
    (folder / "taesd_decoder.safetensors").write_bytes(b"nothing")
    with pytest.raises(StorageError, match="cannot be read"):
        load_taesd(folder)


def test_real_taesd_gives_a_photo_back(shared_assets, make_backbone):
    """27.5 dB at 512 px are known for these weights; half the size is a little worse."""
    from torchvision.io import read_image
    from torchvision.transforms.functional import resize

    photo = read_image(str(shared_assets / "photos/person/foreground__01.jpg")) / 255
    photo = resize(photo, [256, 256], antialias=True)[None]
    backbone = make_backbone(vae=load_taesd(shared_assets / "vae_approx"))
    with torch.no_grad():
        latents = backbone.encode(photo)
        back = backbone.decode(latents).clamp(0, 1)
    assert latents.shape == (1, 4, 32, 32)
    assert 0.5 < latents.std() < 1.5
    decibels = -10 * (photo - back).square().mean().log10()
    assert decibels > 24
