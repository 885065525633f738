"""CLIP from the user's files: a folder, one file, with texts and without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from magicapture.backbones.clip_tokenizer import write_tokenizer
from magicapture.clip import load_clip, load_clip_text
from magicapture.errors import InputError, MagiCaptureError, StorageError
from magicapture.images import to_pil

SMALL = {
    "hidden_size": 64,  # one head, as a file without a config is read
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "hidden_act": "quick_gelu",
}
VISION = {**SMALL, "image_size": 32, "patch_size": 8, "projection_dim": 16}
IDS = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407, "vocab_size": 49408}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole CLIPModel with its tokenizer."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("clip")
    write_tokenizer(folder)
    config = CLIPConfig(text_config={**SMALL, **IDS}, vision_config=VISION, projection_dim=16)
    CLIPModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def eyes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a CLIPVisionModelWithProjection."""
    torch.manual_seed(4)
    folder = tmp_path_factory.mktemp("eyes")
    CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION)).save_pretrained(folder)
    return folder


def test_a_file_alone_is_what_its_folder_is(folder: Path) -> None:
    one, other = load_clip(folder), load_clip(folder / "model.safetensors")
    images = torch.rand(2, 3, 40, 40)
    assert torch.equal(one.of_images(images), other.of_images(images))
    for text in ("a photo of a woman with round glasses", "red", "red " * 200):
        assert torch.equal(one.of_text(text), other.of_text(text))


def test_eyes_alone_see_and_have_no_texts(eyes: Path) -> None:
    images = torch.rand(2, 3, 40, 40)
    for path in (eyes, eyes / "model.safetensors"):
        clip = load_clip(path)
        assert clip.tokenizer is None and clip.side == 32
        theirs = CLIPVisionModelWithProjection.from_pretrained(eyes)
        pixels = CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        )([to_pil(image) for image in images], return_tensors="pt").pixel_values
        wanted = torch.nn.functional.normalize(theirs(pixel_values=pixels).image_embeds, dim=-1)
        assert torch.cosine_similarity(clip.of_images(images), wanted).min() > 0.999


def test_of_a_long_picture_the_middle_counts_as_in_clips_own_processor(eyes: Path) -> None:
    clip = load_clip(eyes)
    wide = torch.rand(1, 3, 32, 80)
    torch.testing.assert_close(clip.of_images(wide), clip.of_images(wide[..., 24:56]))
    tall = torch.rand(3, 96, 64)
    processor = CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    pixels = processor(to_pil(tall), return_tensors="pt").pixel_values
    theirs = clip.model(pixel_values=pixels).image_embeds
    assert float(torch.cosine_similarity(clip.of_images(tall[None]), theirs)) > 0.999


def lacking(path: Path, to: Path) -> Path:
    weights = load_file(path / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, to / "model.safetensors")
    return to / "model.safetensors"


def lacking_in_a_folder(path: Path, to: Path) -> Path:
    (to / "config.json").write_text((path / "config.json").read_text())
    return lacking(path, to).parent


def renamed(path: Path, to: Path) -> Path:
    weights = load_file(path / "model.safetensors")
    save_file({f"visual.{name}": value for name, value in weights.items()}, to / "a.safetensors")
    return to / "a.safetensors"


def another(path: Path, to: Path) -> Path:
    (to / "config.json").write_text('{"model_type": "siglip"}')
    (to / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes())
    return to


def pickled(path: Path, to: Path) -> Path:
    torch.save(load_file(path / "model.safetensors"), to / "clip.pt")
    return to / "clip.pt"


BAD: dict[str, tuple[Callable[[Path, Path], Path], type[MagiCaptureError], str]] = {
    "weights that lack": (lacking, InputError, "visual_projection.weight"),
    "none left at random": (lacking_in_a_folder, InputError, "lacks 1 of its weights"),
    "OpenCLIP's names": (renamed, InputError, "transformers' names"),
    "another model": (another, InputError, "siglip"),
    "a pickle": (pickled, InputError, "no .safetensors file"),
    "no folder of a model": (lambda path, to: to, StorageError, "no folder of a CLIP model"),
    "nothing": (lambda path, to: to / "x.safetensors", StorageError, "no file"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_clip_model_is_named(kind: str, eyes: Path, tmp_path: Path) -> None:
    make, error, words = BAD[kind]
    with pytest.raises(error, match=words):
        load_clip(make(eyes, tmp_path))


def test_the_text_half_alone_and_inside_a_whole_model(folder: Path, tmp_path: Path) -> None:
    whole = load_file(folder / "model.safetensors")
    half = {key: value for key, value in whole.items() if key.startswith("text_")}
    save_file(half, tmp_path / "text.safetensors")
    clip = load_clip(folder)
    for file in (folder / "model.safetensors", tmp_path / "text.safetensors"):
        text = "a photo of a woman with round glasses"
        torch.testing.assert_close(load_clip_text(file).of_text(text), clip.of_text(text))
    del half["text_projection.weight"]
    save_file(half, tmp_path / "bare.safetensors")
    with pytest.raises(InputError, match="has no text_projection"):
        load_clip_text(tmp_path / "bare.safetensors")
