"""A thing in a style in ComfyUI: Load DINO, Train's last input, masks as sockets, MagicFace."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("executor")


def dino_weights() -> dict[str, torch.Tensor]:
    """Of the core's tests."""
    spec = importlib.util.spec_from_file_location("core", ROOT / "tests" / "core" / "conftest.py")
    core = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(core)
    return core.dino_weights()


@pytest.fixture
def dino_file(comfyui):
    import folder_paths

    folder = Path(folder_paths.models_dir) / "dino"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "dino_vitbase8_pretrain.pth"
    torch.save(dino_weights(), file)
    yield file
    file.unlink()


def pictures(count: int, seed: int) -> torch.Tensor:
    return torch.rand(count, 128, 128, 3, generator=torch.Generator().manual_seed(seed))


def disc(count: int) -> torch.Tensor:
    """A MASK as SAM or a background remover gives it."""
    y, x = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    return (((x - 64) ** 2 + (y - 60) ** 2) < 40**2).float().expand(count, -1, -1)


def photos(nodes, pack, images, masks=None):
    none = pack("nodes.references").NO_FOLDER
    return nodes.LoadPhotoSet.execute([none], [images], None if masks is None else [masks], [""])[0]


def trained(nodes, pack, tiny, dino, masks=None, name="things", **more):
    recipe = nodes.ChooseRecipe.execute(name, 2, -1, 128, 1.0, False)[0]
    changes = {"refocus.factors": (1, 2), "variants": 1}
    recipe = pack("magicapture.recipes").changed(recipe, changes)
    thing = photos(nodes, pack, pictures(2, 1), masks)
    style = photos(nodes, pack, pictures(2, 2))
    subject = nodes.DefineConcept.execute(thing, "subject", "rex-1", "dog", 1)[0]
    look = nodes.DefineConcept.execute(style, "style", "ink-1", "dog", 1)[0]
    return nodes.Train.execute(
        *(tiny.model, tiny.clip, tiny.vae, subject, look, 0, 0, False),
        recipe=recipe,
        dino=dino,
        **more,
    )


def test_a_thing_is_trained_with_a_mask_of_any_node(nodes, pack, tiny, dino_file, caplog):
    caplog.set_level(logging.INFO)
    dino = nodes.LoadDINO.execute(pack("nodes._comfy.files").AUTO)[0]
    keep = nodes.KeepCheckpoints.execute(keep_guidance=0.0, clip_file="none", keep_seeds=1)[0]
    made = trained(nodes, pack, tiny, dino, disc(2), keep=keep)
    adapter, curves, _, report, kept = made.args
    assert "Identity by DINO" in report and "faces" not in kept.records[0].pictures
    assert adapter.recipe.subject_is == "thing" and set(adapter.tokens) == {"rex-1", "ink-1"}
    assert "Train MagiCapture: Training needs about" in caplog.text
    assert curves.ndim == 4 and "WARNING" not in report.upper()
    assert "<rex-1> dog in the <ink-1> style" in adapter.prompt()


def test_what_is_missing_is_said_with_node_and_input(nodes, pack, tiny, dino_file):
    error = pack("magicapture.errors").InputError
    with pytest.raises(error, match=r"Train MagiCapture: .* Load DINO at the input dino of Train"):
        trained(nodes, pack, tiny, None, disc(2))
    dino = nodes.LoadDINO.execute(dino_file.name)[0]
    with pytest.raises(error, match=r"no mask of the thing.* Remove Background or SAM3 Detect"):
        trained(nodes, pack, tiny, dino)


def test_no_dino_is_told_before_anything_runs(nodes, pack, comfyui):
    told = nodes.LoadDINO.validate_inputs(pack("nodes._comfy.files").AUTO)
    assert "Put dino_vitbase8_pretrain.pth into models/dino" in told
    report = nodes.CheckModels.execute()[0]
    assert "DINO model: compares a thing" in report and "missing  dino_vitbase8" in report


def test_magicface_draws_a_thing_from_one_picture_and_a_mask(nodes, tiny, monkeypatch, pack):
    """No face is looked for: the one detector that is loaded without being asked is never."""
    import nodes as stock

    def asked(*given):
        raise AssertionError("a thing has no face")

    monkeypatch.setattr(pack("magicapture.faces.registry"), "load_model", asked)
    text = "a painting of a dog in a forest"
    thing = nodes.AddMagicFaceReference.execute(
        "dog", "a photo of a dog", 3.0, "inside mask", 1, image=pictures(1, 3), mask=disc(1)
    )[0]
    both = nodes.AddMagicFaceReference.execute(
        "forest", "a forest", 2.0, "whole picture", 1, image=pictures(1, 4), previous=thing
    )[0]

    def drawn(references):
        settings = {"switch": 0.4, "stop": 1.0, "others": 0.6, "to_foreground": False}
        settings |= {"reference_size": 64, "region_guidance": False, "reference_seed": 0}
        model, positive, _ = nodes.ApplyMagicFace.execute(
            tiny.model, tiny.clip, tiny.vae, references, text, **settings
        ).args
        negative = stock.CLIPTextEncode().encode(tiny.clip, "")[0]
        latent = stock.EmptyLatentImage().generate(64, 64, 1)[0]
        sampler = stock.KSampler()
        given = (3, 3, 5.0, "euler", "normal", positive, negative, latent)
        return sampler.sample(model, *given)[0]["samples"]

    def plain():
        positive = stock.CLIPTextEncode().encode(tiny.clip, text)[0]
        negative = stock.CLIPTextEncode().encode(tiny.clip, "")[0]
        latent = stock.EmptyLatentImage().generate(64, 64, 1)[0]
        given = (3, 3, 5.0, "euler", "normal", positive, negative, latent)
        return stock.KSampler().sample(tiny.model, *given)[0]["samples"]

    without, one, two = plain(), drawn(thing), drawn(both)
    assert all(samples.isfinite().all() for samples in (one, two))
    assert not torch.equal(without, one) and not torch.equal(one, two)
