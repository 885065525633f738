"""The name of a run: another for whatever changes the result, and the same for the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from magicapture.backbones import DiffusersBackbone, load_backbone
from magicapture.faces.embed import FaceEmbeddingNetwork, Normalisation
from magicapture.sampling import SamplingSettings, sample
from magicapture.schedule import DiscreteLevels, FlowLevels, Schedule
from magicapture.tokens import TokenVectors
from magicapture.training import Trainer
from magicapture.training.fingerprint import run_name

NORMALISATION = Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture
def face_model(embedder) -> FaceEmbeddingNetwork:
    return FaceEmbeddingNetwork(embedder, NORMALISATION)


@pytest.fixture
def model(make_backbone, tiny) -> DiffusersBackbone:
    """With a VAE and a fast decoder of their own, as people use it."""
    return make_backbone(vae="kl", decoder=tiny.vae("tiny"))


def last_weight(part: str) -> Callable[[DiffusersBackbone], None]:
    """One bit of the last weight of a part."""

    def change(backbone: DiffusersBackbone) -> None:
        weight = list(backbone.modules[part].parameters())[-1].data
        weight.view(torch.int32).view(-1)[-1] ^= 1

    return change


def schedule(change: Callable[[Schedule], Schedule]):
    return lambda backbone: setattr(backbone, "schedule", change(backbone.schedule))


def zero_snr(schedule: Schedule) -> Schedule:
    abar = schedule.levels.alphas_cumprod
    return replace(schedule, levels=DiscreteLevels(abar - abar[-1]))


def more_words(backbone: DiffusersBackbone) -> None:
    words = copy.deepcopy(backbone.tokenizers["clip_l"])
    words.add_tokens(["<another>"])
    backbone.tokenizers = {"clip_l": words}


def gelu(backbone: DiffusersBackbone) -> None:
    for module in backbone.text_encoders["clip_l"].modules():
        if hasattr(module, "activation_fn"):
            module.activation_fn = torch.nn.GELU()


CHANGES: dict[str, Callable[[DiffusersBackbone], object]] = {
    **{part: last_weight(part) for part in ("unet", "clip_l", "vae", "decoder")},
    "no fast decoder": lambda b: setattr(b, "decoder", None),
    "the VAE's scale": lambda b: b.vae.register_to_config(scaling_factor=0.13025),
    "the prediction": schedule(lambda s: replace(s, prediction="v_prediction")),
    "the noise": schedule(zero_snr),
    "another process": schedule(lambda s: replace(s, levels=FlowLevels())),
    "the words": more_words,
    "the precision": lambda b: b.unet.bfloat16(),
    "an activation": gelu,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_any_change_of_the_model_gives_another_name(change, model):
    before = model.fingerprint()
    change(model)
    assert model.fingerprint() != before


def test_any_change_of_the_face_model_gives_another_name(make_job, model, face_model):
    before = run_name(make_job(), model, face_model)
    assert run_name(make_job(), model, None) != before
    other = FaceEmbeddingNetwork(face_model.network, NORMALISATION, name="renamed.onnx")
    assert run_name(make_job(), model, other) == before
    imagenet = replace(NORMALISATION, std=(0.229, 0.224, 0.225))
    other = FaceEmbeddingNetwork(face_model.network, imagenet)
    assert run_name(make_job(), model, other) != before
    face_model.network.layers[0].bias.data[-1] += 1e-6
    assert run_name(make_job(), model, face_model) != before


def test_a_face_model_that_is_not_used_does_not_count(make_job, model, face_model):
    job = make_job(phases=make_job().recipe.phases[:1])
    assert run_name(job, model, face_model) == run_name(job, model, None)


def test_another_job_has_another_name(make_job, model):
    assert len({run_name(job, model, None) for job in (make_job(), make_job(1))}) == 2


def test_what_was_done_with_a_model_does_not_change_the_name(make_job, model, face_model):
    before = run_name(make_job(), model, face_model)
    sample(model, "a person", TokenVectors({}), SamplingSettings(steps=2, width=64, height=64))
    phases = (replace(make_job().recipe.phases[1], steps=1),)
    job = make_job(phases=phases, precision="bf16", checkpointing=True)
    with Trainer.open(job, model, embedder=face_model) as trainer:
        trainer.run(preview_every=1, preview=SamplingSettings(steps=2, width=64, height=64))
    assert run_name(make_job(), model, face_model) == before


def test_a_model_read_again_has_the_same_name(make_job, model, tmp_path):
    model.unet.save_pretrained(tmp_path / "unet")
    model.vae.save_pretrained(tmp_path / "vae")
    model.text_encoders["clip_l"].save_pretrained(tmp_path / "text_encoder")
    model.tokenizers["clip_l"].save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text("{}")
    (tmp_path / "model_index.json").write_text("{}")
    names = {run_name(make_job(), load_backbone(tmp_path), None) for _ in range(2)}
    assert len(names) == 1
    (tmp_path / "scheduler" / "scheduler_config.json").write_text('{"beta_end": 0.0121}')
    assert run_name(make_job(), load_backbone(tmp_path), None) not in names
