"""A VAE of another family, told before step 1 by the colours of the user's own photos."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

pytestmark = pytest.mark.usefixtures("executor")


@pytest.fixture
def advice(pack):
    """What is said of the VAE, by a training on the photos of two folders or sets."""
    module = pack("magicapture.training.colours")

    def said(parts, photos, portraits):
        job = pack("magicapture.training").TrainingJob
        learnable, concept = pack("magicapture.data").Learnable, pack("magicapture.tokens").Concept
        recipe = pack("magicapture.recipes").recipe()
        both = (
            learnable(concept("ada-1", "subject"), photos),
            learnable(concept("oil-1", "style"), portraits),
        )
        backbone = pack("nodes._comfy.backbone").ComfyBackbone(parts.model, parts.clip, parts.vae)
        with torch.inference_mode(False), backbone.training(None):
            return list(module.vae_advice(job(*both, recipe), backbone))

    return said


@pytest.fixture
def taesd(shared_assets):
    """Real weights, which make Stable Diffusion 1.5's latents, as Load VAE reads them."""
    import comfy.sd
    from safetensors.torch import load_file

    state = {"vae_scale": torch.tensor(0.18215), "vae_shift": torch.tensor(0.0)}
    for half in ("encoder", "decoder"):
        weights = load_file(shared_assets / "vae_approx" / f"taesd_{half}.safetensors")
        state |= {f"taesd_{half}.{name}": value.float() for name, value in weights.items()}
    return comfy.sd.VAE(sd=state)


@pytest.mark.parametrize("kind", ["dog", "toy"])
def test_real_latents_of_sd_fit_sd_and_not_xl(
    kind, pack, advice, shared_assets, taesd, tiny, tiny_xl
) -> None:
    folder = pack("magicapture.data").load_folder
    photos, portraits = (folder(shared_assets / "photos" / of) for of in (kind, "styles"))
    assert advice(SimpleNamespace(**vars(tiny) | {"vae": taesd}), photos, portraits) == []
    (text,) = advice(SimpleNamespace(**vars(tiny_xl) | {"vae": taesd}), photos, portraits)
    assert "as Stable Diffusion XL writes them, are not the photos'" in text


def test_the_drawn_faces_own_vae_fits_and_another_does_not(nodes, advice, monkeypatch) -> None:
    parts = nodes.LoadPaperdollDemo.execute(steps=2).args
    model = SimpleNamespace(model=parts[0], clip=parts[1], vae=parts[2])
    person, style, *_ = nodes.DrawPaperdollPhotos.execute(1_000_000, 1_000_099, 3).args
    assert advice(model, person, style) == []
    latents = parts[0].model.latent_format
    monkeypatch.setattr(latents, "latent_rgb_factors", latents.latent_rgb_factors[::-1])
    assert len(advice(model, person, style)) == 1
