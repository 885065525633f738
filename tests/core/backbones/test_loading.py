"""Diffusers folders: what is read, and what is refused before anything large is."""

import json
import shutil

import pytest
import torch
from diffusers import EulerDiscreteScheduler, PNDMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from magicapture.backbones import load_backbone
from magicapture.backbones.support import BETAS
from magicapture.errors import StorageError, UnsupportedModelError
from magicapture.tokens import Prompt, TokenVectors


@pytest.fixture(scope="session")
def saved(tiny, tokenizer, tmp_path_factory):
    """Tiny models as diffusers saves them, by the kind of their VAE."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in ("kl", "tiny")}
    for kind, folder in folders.items():
        StableDiffusionPipeline(
            unet=tiny.unet(),
            vae=tiny.vae(kind),
            text_encoder=tiny.text_encoder(),
            tokenizer=tokenizer,
            scheduler=PNDMScheduler(**BETAS, steps_offset=1),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(folder)
    return folders


@pytest.fixture
def save(saved, tmp_path):
    """Give a test its own copy of a saved model, with a scheduler of its choice."""

    def save(scheduler=None, vae="tiny"):
        folder = tmp_path / "model"
        shutil.copytree(saved[vae], folder)
        if scheduler is not None:
            scheduler.save_pretrained(folder / "scheduler")
        return folder

    return save


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def renamed(file, rename):
    """Write a safetensors file anew with other names; None leaves a tensor out."""
    tensors = {rename(name): value for name, value in load_file(file).items()}
    save_file({name: value for name, value in tensors.items() if name}, file)


def test_a_text_encoder_loads_with_the_names_of_other_transformers(save, tiny):
    """Those of 4 start with "text_model.", those of 5 do not; each version writes its own."""
    folder, start = save(), "text_model."
    file = folder / "text_encoder" / "model.safetensors"
    renamed(file, lambda n: n.removeprefix(start) if n.startswith(start) else start + n)
    found = load_backbone(folder).text_encoders["clip_l"].state_dict()
    for name, value in tiny.text_encoder().state_dict().items():
        assert torch.equal(value, found[name]), name


def test_a_text_encoder_without_a_weight_is_refused(save):
    folder = save()
    file = folder / "text_encoder" / "model.safetensors"
    renamed(file, lambda name: None if name.endswith("layers.1.mlp.fc1.weight") else name)
    with pytest.raises(UnsupportedModelError, match=r"text encoder .* lacks 1 of its weights"):
        load_backbone(folder)


@pytest.mark.parametrize("vae", ["kl", "tiny"])
def test_a_folder_gives_the_model_that_was_saved(save, tiny, make_backbone, vae):
    loaded, original = load_backbone(save(vae=vae)), make_backbone(vae=vae)
    assert loaded.family == "sd1"
    assert torch.equal(loaded.schedule.alphas_cumprod, original.schedule.alphas_cumprod)
    for name, module in original.modules.items():
        found = loaded.modules[name]
        assert all(
            torch.equal(value, found.state_dict()[key])
            for key, value in module.state_dict().items()
        )
        assert not found.training
        assert not any(p.requires_grad for p in found.parameters())
    vectors = TokenVectors({"ada": {"clip_l": torch.ones(1, 32)}})
    with torch.no_grad():
        contexts = [
            backbone.encode_prompts([Prompt("a <ada> cat")], vectors).context
            for backbone in (loaded, original)
        ]
    assert torch.equal(*contexts)


def test_dtype(save):
    backbone = load_backbone(save(vae="kl"), dtype=torch.float16)
    dtypes = {p.dtype for module in backbone.modules.values() for p in module.parameters()}
    assert dtypes == {torch.float16}
    assert backbone.schedule.alphas_cumprod.dtype == torch.float32


def test_the_schedule_is_the_folders(save):
    scheduler = EulerDiscreteScheduler(
        beta_start=0.001,
        beta_end=0.02,
        beta_schedule="linear",
        num_train_timesteps=500,
        prediction_type="v_prediction",
    )
    folder = save(scheduler)
    schedule = load_backbone(folder).schedule
    assert schedule.prediction_type == "v_prediction"
    expected = torch.cumprod(1 - torch.linspace(0.001, 0.02, 500), dim=0)
    torch.testing.assert_close(schedule.alphas_cumprod, expected)
    assert load_backbone(folder, prediction_type="epsilon").schedule.prediction_type == "epsilon"


def test_a_schedule_that_ends_in_pure_noise(save):
    folder = save()
    edit(folder / "scheduler/scheduler_config.json", rescale_betas_zero_snr=True)
    schedule = load_backbone(folder).schedule
    assert 0 < schedule.alphas_cumprod[-1] < 1e-6
    assert (schedule.alphas_cumprod.diff() < 0).all()


def test_another_tokenizer(save, tmp_path):
    folder = save()
    (folder / "tokenizer").rename(tmp_path / "words")
    with pytest.raises(StorageError, match="tokenizer"):
        load_backbone(folder)
    backbone = load_backbone(folder, tokenizer=tmp_path / "words")
    assert backbone.word_ids("clip_l", "cat") == [2368]


@pytest.mark.parametrize(
    ("file", "changes", "found"),
    [
        ("model_index.json", {"text_encoder_2": ["transformers", "CLIPTextModel"]}, "an SDXL"),
        ("model_index.json", {"transformer": ["diffusers", "Flux"]}, "a diffusion transformer"),
        ("unet/config.json", {"in_channels": 9}, "inpainting"),
        ("unet/config.json", {"addition_embed_type": "text_time"}, "SDXL"),
        ("vae/config.json", {"_class_name": "VQModel"}, "a VAE of the kind VQModel"),
        ("text_encoder/config.json", {"model_type": "t5"}, "a text encoder of the kind t5"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "predicts 'sample'"),
    ],
)
def test_other_models_are_refused(save, file, changes, found):
    folder = save()
    edit(folder / file, **changes)
    with pytest.raises(UnsupportedModelError, match=found) as error:
        load_backbone(folder)
    assert "use Stable Diffusion 1.x and 2.x" in str(error.value)


@pytest.mark.parametrize(
    "file",
    ["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"],
)
def test_a_folder_with_a_part_missing(save, file):
    folder = save()
    (folder / file).unlink()
    with pytest.raises(StorageError, match=r"unet|model_index"):
        load_backbone(folder)


def test_nothing_is_printed(save, capfd):
    folder = save()
    capfd.readouterr()
    load_backbone(folder)
    assert "%|" not in "".join(capfd.readouterr())
