"""Every stage runs from nothing, resumes, and ends as a folder that diffusers loads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from magicapture.paperdoll import Label
from magicapture.paperdoll.attributes import ATTRIBUTES
from magicapture.paperdoll.model import doll_backbone
from magicapture.paperdoll.tokenizer import LENGTH
from magicapture.sampling import SamplingSettings, sample
from pretrain import dataset
from pretrain.__main__ import main
from pretrain.card import SOURCES, checksum, write_card
from pretrain.export import trained_reader
from pretrain.preview import Model
from pretrain.report import captions, draw, drawn_by_transformer, obeyed, report
from pretrain.scores import dolls, landmark_error, overlap, psnr, verification

pytestmark = pytest.mark.slow

STATES = (
    *("vae", "unet", "transformer", "identity_loss", "identity_score"),
    *("finder", "parser", "style", "probe"),
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    out = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "SHARD", 4)
        few = ["--out", str(out), "--dolls", "4", "--batch", "4", "--device", "cpu"]
        main([*few, "--steps", "1"])
        main([*few, "--steps", "2", "--stage", "style", "--export", str(out / "weights")])
    return out, out / "weights"


def test_every_stage_leaves_its_state(built: tuple[Path, Path]) -> None:
    out, _ = built
    assert {file.name for file in out.glob("*.state.safetensors")} == {
        f"{name}.state.safetensors" for name in STATES
    }


def test_the_export_is_a_pipeline_that_draws(built: tuple[Path, Path]) -> None:
    from diffusers import StableDiffusionPipeline

    _, weights = built
    pipeline = StableDiffusionPipeline.from_pretrained(weights, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    result = pipeline("a photo of a person", num_inference_steps=2, height=128, width=128)
    assert result.images[0].size == (128, 128)
    assert pipeline.tokenizer.model_max_length == LENGTH


def test_the_exported_transformer_draws(built: tuple[Path, Path]) -> None:
    out, weights = built
    backbone = doll_backbone("transformer", weights)
    settings = SamplingSettings(sampler="dpmpp_2m", steps=2, guidance=3, width=128, height=128)
    asked = captions(2)
    drawn = sample(backbone, asked, settings=settings, seed=0)
    expected = drawn_by_transformer(out, asked, steps=2)
    torch.testing.assert_close(drawn, expected, atol=0.02, rtol=0)  # halves


def test_the_export_stays_small(built: tuple[Path, Path]) -> None:
    _, weights = built
    size = sum(file.stat().st_size for file in weights.rglob("*") if file.is_file())
    assert size < 60e6


def test_the_preview_samples_by_seed(built: tuple[Path, Path]) -> None:
    model = Model.of_run(built[0])
    first, again, other = (model.sample(["a sketch"], steps=2, seed=seed) for seed in (1, 1, 2))
    assert first.shape == (1, 3, 128, 128)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_report_scores_and_draws(built: tuple[Path, Path]) -> None:
    out, _ = built
    found = report(out, count=4, prompts=2, steps=2)
    assert len(found) == 6 and all(np.isfinite(value) for value in found.values())
    draw(out, steps=2, columns=1)
    assert all((out / f"{name}.png").exists() for name in ("samples", "vae", "transformer"))


def test_the_card_describes_the_very_files(built: tuple[Path, Path]) -> None:
    out, weights = built
    report(out, count=4, prompts=2, steps=2)
    text = write_card(out, weights).read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines()]
    stated = {row[0].strip("`"): row[-1].strip("`") for row in rows if len(row) == 6}
    assert {name: stated.get(name) for name in SOURCES} == {
        name: checksum(weights / name) for name in SOURCES
    }
    assert "VAE PSNR" in text and "| medium |" in text


def test_obedience_is_read_off_samples_and_dolls(built: tuple[Path, Path]) -> None:
    found = obeyed(built[0], count=2, steps=1)
    assert found["samples"].keys() == found["dolls"].keys() == ATTRIBUTES.keys()


def test_scores_read_the_networks(built: tuple[Path, Path]) -> None:
    out, _ = built
    some = dolls(4)
    assert all((doll.labels == Label.SKIN).any() for doll in some)
    assert 0 < psnr(Model.of_run(out).vae, some) < 40
    assert 0 <= verification(trained_reader(out, "identity_loss"), 4, 2) <= 1
    assert 0 < landmark_error(trained_reader(out, "finder"), some) < 128
    assert 0 <= overlap(trained_reader(out, "parser"), some) <= 1
