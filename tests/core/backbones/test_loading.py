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
    assert torch.equal(
        loaded.schedule.levels.alphas_cumprod, original.schedule.levels.alphas_cumprod
    )
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
    assert backbone.schedule.levels.alphas_cumprod.dtype == torch.float32


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
    assert schedule.prediction == "v_prediction"
    expected = torch.cumprod(1 - torch.linspace(0.001, 0.02, 500), dim=0)
    torch.testing.assert_close(schedule.levels.alphas_cumprod, expected)
    assert load_backbone(folder, prediction_type="epsilon").schedule.prediction == "epsilon"


def test_a_schedule_that_ends_in_pure_noise(save):
    folder = save()
    edit(folder / "scheduler/scheduler_config.json", rescale_betas_zero_snr=True)
    schedule = load_backbone(folder).schedule
    assert schedule.levels.alphas_cumprod[-1] == 0
    assert (schedule.levels.alphas_cumprod.diff() < 0).all()


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
        ("model_index.json", {"text_encoder_3": ["transformers", "T5"]}, "Stable Diffusion 3"),
        ("model_index.json", {"transformer": ["diffusers", "Flux"]}, "a diffusion transformer"),
        ("unet/config.json", {"in_channels": 9}, "inpainting"),
        ("unet/config.json", {"addition_embed_type": "text_time"}, "SDXL refiner"),
        ("unet/config.json", {"addition_embed_type": "image"}, "further conditioning"),
        ("scheduler/scheduler_config.json", {"_class_name": "EDMEulerScheduler"}, "EDM"),
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
    assert "use Stable Diffusion 1.x, 2.x and XL" in str(error.value)


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


JUNK = ["[]", "null", "5", '"x"', "{", "[" * 100_000, "9" * 5_000, "\x00"]


@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "vae/config.json"])
def test_json_that_is_no_object(save, file):
    folder = save()
    for text in JUNK:
        (folder / file).write_text(text)
        with pytest.raises(StorageError, match=r"config|model_index"):
            load_backbone(folder)


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("unet/config.json", {"block_out_channels": []}),
        ("unet/config.json", {"block_out_channels": "x"}),
        ("unet/config.json", {"layers_per_block": 10**9}),
        ("unet/config.json", {"layers_per_block": [10**9] * 3}),
        ("unet/config.json", {"norm_num_groups": 0}),
        ("unet/config.json", {"in_channels": None}),
        ("unet/config.json", {"down_block_types": ["Spam"]}),
        ("unet/config.json", {"norm_eps": [1e-5]}),
        ("unet/config.json", {"norm_eps": True}),
        ("unet/config.json", {"resnet_out_scale_factor": float("nan")}),
        ("unet/config.json", {"flip_sin_to_cos": "x"}),
        ("vae/config.json", {"latent_channels": []}),
        ("vae/config.json", {"scaling_factor": float("nan")}),
        ("vae/config.json", {"scaling_factor": "x"}),
        ("text_encoder/config.json", {"hidden_size": []}),
        ("text_encoder/config.json", {"num_hidden_layers": 10**9}),
        ("text_encoder/config.json", {"hidden_act": "spam"}),
        ("text_encoder/config.json", {"num_hidden_layers": 1}),  # of the two that the file has
        ("scheduler/scheduler_config.json", {"trained_betas": "x"}),
        ("scheduler/scheduler_config.json", {"trained_betas": [2.0] * 10}),
        ("scheduler/scheduler_config.json", {"trained_betas": [float("nan")] * 10}),
        ("scheduler/scheduler_config.json", {"beta_end": -1}),
        ("scheduler/scheduler_config.json", {"beta_start": None}),
        ("scheduler/scheduler_config.json", {"beta_schedule": "spam"}),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**12}),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": []}),
    ],
)
def test_settings_that_cannot_be_used(save, file, changes):
    folder = save(vae="kl")
    edit(folder / file, **changes)
    with pytest.raises((StorageError, UnsupportedModelError)):
        load_backbone(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", "{", "[" * 100_000])
def test_a_broken_tokenizer(save, tmp_path, text):
    words = tmp_path / "words"
    words.mkdir()
    (words / "vocab.json").write_text(text)
    (words / "merges.txt").write_text(text)
    with pytest.raises(StorageError, match="tokenizer"):
        load_backbone(save(), tokenizer=words)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_folder_never_falls_back_to_pickles(save, part):
    folder = save()
    (file,) = (folder / part).glob("*.safetensors")
    pickle = file.with_name("pytorch_model.bin" if part == "text_encoder" else f"{file.stem}.bin")
    torch.save(load_file(file), pickle)
    file.unlink()
    with pytest.raises(StorageError, match=rf"holds no {file.name}.*{pickle.name}, a pickle"):
        load_backbone(folder)


def test_a_variant_is_named(save):
    folder = save()
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    with pytest.raises(StorageError, match=r"There is diffusion_pytorch_model\.fp16\.safetensors"):
        load_backbone(folder)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_folder_with_weights_missing_or_strange(save, part):
    """Never in torch's words of a tensor without data."""
    folder = save()
    (file,) = (folder / part).glob("*.safetensors")
    whole = load_file(file)
    name = next(name for name in whole if name.endswith("weight"))
    for state in (
        {k: v for k, v in whole.items() if k != name},
        {**whole, name: whole[name][:1].clone()},
        {**whole, name: torch.zeros(())},
    ):
        save_file(state, file)
        with pytest.raises(
            UnsupportedModelError, match=rf"{name.removeprefix('text_model.')}"
        ) as e:
            load_backbone(folder)
        assert "meta" not in str(e.value)


def test_a_vae_with_the_names_diffusers_gave_at_first(save, tiny):
    folder = save(vae="kl")
    first = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(name):
        for new, old in first.items():
            name = name.replace(f".attentions.0.{new}.", f".attentions.0.{old}.")
        return name

    renamed(folder / "vae" / "diffusion_pytorch_model.safetensors", rename)
    found = load_backbone(folder).vae.state_dict()
    for name, value in tiny.vae("kl").state_dict().items():
        assert torch.equal(value, found[name]), name


def test_loading_draws_no_random_numbers(save):
    folder = save()
    before = torch.get_rng_state()
    load_backbone(folder)
    assert torch.equal(torch.get_rng_state(), before)
