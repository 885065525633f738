"""Which file belongs to which photo."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image

from magicapture.data import load_folder
from magicapture.errors import InputError

FACE = np.zeros((80, 100), np.uint8)
FACE[20:60, 30:60] = 255


def save(path, array=None):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(FACE if array is None else array).save(path)


@pytest.mark.parametrize(
    ("photo", "mask"),
    [
        ("1.png", "1-masklabel.png"),  # OneTrainer
        ("1.png", "1_mask.png"),
        ("1.jpg", "1-mask.png"),
        ("1.jpg", "1.mask.jpg"),
        ("1.jpg", "1 mask.webp"),
        ("1.jpg", "1_face_mask.png"),
        ("1.jpg", "1.jpg.mask.png"),
        ("1.jpg", "1.JPG.MASK.PNG"),
        ("IMG_1.JPG", "img_1.mask.png"),
        ("img_1.jpg", "IMG_1-MaskLabel.PNG"),
        ("1.jpg", "mask_1.png"),
        ("1.jpg", "Mask-1.png"),
        ("1.jpg", "masks/1.png"),  # kohya's scripts, ai-toolkit
        ("1.jpg", "mask/1.png"),
        ("1.jpg", "Masks/1.PNG"),
        ("1.jpg", "masks/1.jpg.png"),
        ("1.jpg", "masks/1-masklabel.png"),
        ("1.jpg", "masks/1_mask.png"),
    ],
)
def test_masks_under_the_names_of_other_trainers(tmp_path, photo, mask):
    save(tmp_path / photo, np.full((80, 100, 3), 90, np.uint8))
    save(tmp_path / mask)
    references = load_folder(tmp_path)
    assert references.names == (photo,)
    (loaded,) = (photo.face_mask for photo in references)
    assert loaded is not None
    assert (loaded - torch.from_numpy(FACE).float()[None] / 255).abs().max() < 0.2
    assert references.warnings == ()


def test_a_given_folder_of_masks_as_kohyas_scripts_have_it(tmp_path):
    save(tmp_path / "photos" / "IMG_1.jpg", np.full((80, 100, 3), 90, np.uint8))
    save(tmp_path / "photos_mask" / "img_1.png")
    references = load_folder(tmp_path / "photos", masks=tmp_path / "photos_mask")
    assert references.photos[0].face_mask.mean() == pytest.approx(FACE.mean() / 255)


@pytest.mark.parametrize("name", ["2_mask.png", "2-masklabel.png", "2.jpg.mask.png"])
def test_a_mask_without_its_photo_is_no_photo(tmp_path, name):
    save(tmp_path / "1.png")
    save(tmp_path / name)
    references = load_folder(tmp_path)
    assert references.names == ("1.png",)
    assert references.warnings[0].endswith(f"left alone: {name}.")
    assert "Rename it if it is a photo" in references.warnings[1]


def test_onetrainers_conditioning_images_are_no_photos(tmp_path):
    save(tmp_path / "1.png")
    save(tmp_path / "1-condlabel.png")
    references = load_folder(tmp_path)
    assert references.names == ("1.png",) and references.photos[0].face_mask is None
    assert references.warnings[0].endswith("left alone: 1-condlabel.png.")


@pytest.mark.parametrize("name", ["mask_party.png", "masked ball.png", "mask.png", "unmask.png"])
def test_photos_whose_names_hold_the_word(tmp_path, name):
    save(tmp_path / name)
    assert load_folder(tmp_path).names == (name,)


def test_the_second_of_two_masks_is_told(tmp_path):
    save(tmp_path / "1.png")
    save(tmp_path / "1.mask.png")
    save(tmp_path / "masks" / "1.png", 255 - FACE)
    references = load_folder(tmp_path)
    assert references.photos[0].face_mask.mean() == pytest.approx(FACE.mean() / 255)
    assert references.warnings == (f"In the folder {tmp_path} these were left alone: 1.png.",)


@pytest.mark.parametrize(
    "shared", ["x.mask.png", "x_mask.png", "X-masklabel.png", "masks/x.png", "x.txt",
               "x.landmarks.json"]
)  # fmt: skip
def test_what_two_photos_would_share_is_an_error(tmp_path, shared):
    for name in ("x.png", "x.jpg"):
        save(tmp_path / name)
    if shared.endswith("png"):
        save(tmp_path / shared)
    else:
        (tmp_path / shared).write_text("a woman")
    with pytest.raises(InputError, match=r"belongs to both x\.jpg and x\.png; give these photos"):
        load_folder(tmp_path)


def test_a_whole_name_tells_them_apart(tmp_path):
    save(tmp_path / "x.jpg", np.full((80, 100, 3), 90, np.uint8))
    save(tmp_path / "x.png", np.full((80, 100, 3), 190, np.uint8))
    save(tmp_path / "x.png.mask.png")
    (tmp_path / "x.jpg.txt").write_text("a woman")
    references = load_folder(tmp_path)
    assert [mask is None for mask in (photo.face_mask for photo in references)] == [True, False]
    assert [photo.caption for photo in references] == ["a woman", None]


def test_names_that_differ_in_capitals_alone(tmp_path):
    for name in ("ada", "Ada"):
        save(tmp_path / f"{name}.png")
    if len(list(tmp_path.iterdir())) == 1:
        pytest.skip("this file system does not tell capitals apart")
    (tmp_path / "ada.txt").write_text("small")
    (tmp_path / "Ada.txt").write_text("large")
    references = load_folder(tmp_path)
    assert dict((photo.name, photo.caption) for photo in references) == {
        "ada.png": "small",
        "Ada.png": "large",
    }


def test_accents_as_different_systems_write_them(tmp_path):
    save(tmp_path / (unicodedata.normalize("NFD", "zoé") + ".png"))
    save(tmp_path / (unicodedata.normalize("NFC", "zoé") + ".mask.png"))
    (tmp_path / (unicodedata.normalize("NFC", "ZOÉ") + ".TXT")).write_text("a woman")
    references = load_folder(tmp_path)
    assert references.photos[0].face_mask is not None and [p.caption for p in references] == [
        "a woman"
    ]
