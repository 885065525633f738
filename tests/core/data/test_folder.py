import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import magicapture
from magicapture.config import Recipe
from magicapture.data import Learnable, check_photos, load_folder
from magicapture.data.companions import MOST_PHOTOS
from magicapture.data.folder import LONGEST_CAPTION
from magicapture.errors import InputError
from magicapture.images import reading
from magicapture.tokens import Concept


def gradient(height=80, width=100):
    """A smooth picture (H,W,3) uint8 that is different in every corner."""
    y, x = np.mgrid[:height, :width]
    red, green = 255 * x / (width - 1), 255 * y / (height - 1)
    return np.stack([red, green, 0 * red + 60], axis=-1).round().astype(np.uint8)


def save(path, array=None, **options):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(gradient() if array is None else array).save(path, **options)


def as_array(image):
    return (image * 255).round().byte().permute(1, 2, 0).numpy()


def close(image, array, tolerance):
    difference = np.abs(as_array(image).astype(int) - array.astype(int))
    return difference.max() <= tolerance


@pytest.fixture
def one(tmp_path):
    """Loads a folder of one picture."""

    def load(**options):
        references = load_folder(tmp_path, **options)
        assert len(references) == 1
        return references

    return load


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [("a.png", 0), ("a.bmp", 0), ("A.JPG", 12), ("a.jpeg", 12), ("a.webp", 16)],
)
def test_kinds_of_files(tmp_path, one, name, tolerance):
    save(tmp_path / name)
    references = one()
    assert references.names == (name,)
    assert references.images[0].shape == (3, 80, 100)
    assert references.images[0].dtype == torch.float32
    assert close(references.images[0], gradient(), tolerance)
    (photo,) = references
    assert photo.face_mask is photo.caption is photo.landmarks is None
    assert references.warnings == ()


@pytest.mark.parametrize(
    ("orientation", "stored"),
    [
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (6, lambda a: np.rot90(a)),
        (8, lambda a: np.rot90(a, -1)),
    ],
)
def test_exif_turns_photos_and_their_masks_upright(tmp_path, one, orientation, stored):
    exif = Image.Exif()
    exif[0x0112] = orientation
    face = gradient()[..., :1].repeat(3, -1)
    for name, upright in [("a.jpg", gradient()), ("a.mask.png", face)]:
        save(tmp_path / name, np.ascontiguousarray(stored(upright)), exif=exif)
    references = one()
    assert close(references.images[0], gradient(), 12)
    assert close(references.photos[0].face_mask, face[..., :1], 0)


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "LA", "RGBA", "I;16"])
def test_every_colour_mode_becomes_rgb(tmp_path, one, mode):
    grey = gradient()[..., 0]
    rgb = Image.fromarray(gradient())
    image = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else rgb.convert(mode)
    image.save(tmp_path / ("a.jpg" if mode == "CMYK" else "a.png"), quality=100)
    loaded = one().images[0]
    assert loaded.shape == (3, 80, 100)
    if mode == "I;16":
        assert close(loaded, grey[..., None].repeat(3, -1), 0)
    else:
        expected = np.array(rgb.convert(mode).convert("RGB"))
        assert close(loaded, expected, 12 if mode == "CMYK" else 0)
    assert one().photos[0].face_mask is None


def test_transparency_becomes_white_and_the_mask(tmp_path, one):
    rgba = np.dstack([gradient(), np.full((80, 100), 255, np.uint8)])
    rgba[:, :50, 3] = 0
    rgba[:, 50:60, 3] = 51  # a fifth
    save(tmp_path / "a.png", rgba)
    references = one()
    loaded = as_array(references.images[0])
    assert (loaded[:, :50] == 255).all()
    assert (loaded[:, 60:] == gradient()[:, 60:]).all()
    blended = 0.2 * gradient()[:, 50:60] + 0.8 * 255
    assert np.abs(loaded[:, 50:60] - blended).max() <= 1
    mask = references.photos[0].face_mask
    assert mask[0, 3].tolist() == pytest.approx([0] * 50 + [0.2] * 10 + [1] * 40)
    assert "a.png: no mask file" in references.warnings[0]

    save(tmp_path / "a.mask.png", np.full((80, 100), 255, np.uint8))
    references = one()
    assert references.photos[0].face_mask.min() == 1
    assert references.warnings == ()


def test_a_palette_with_transparency(tmp_path, one):
    image = Image.fromarray(np.repeat([[0] * 70 + [1] * 30], 80, 0).astype(np.uint8))
    image.putpalette([200, 0, 0, 0, 0, 200])  # makes it one of mode P
    image.save(tmp_path / "a.png", transparency=1)
    references = one()
    assert as_array(references.images[0])[5, 5].tolist() == [200, 0, 0]
    assert as_array(references.images[0])[5, 95].tolist() == [255] * 3
    assert references.photos[0].face_mask.mean() == pytest.approx(0.7)


@pytest.mark.parametrize("where", ["beside", "masks", "given", "given wins"])
def test_masks_mark_the_face_wherever_they_lie(tmp_path, where):
    face = np.zeros((80, 100), np.uint8)
    face[20:50, 30:60] = 255
    photos = tmp_path / "photos"
    for stem in ("ada.1", "bob"):
        save(photos / f"{stem}.jpg")
    place = {
        "beside": photos / "ada.1.mask.png",
        "masks": photos / "masks" / "ada.1.png",
        "given": tmp_path / "other" / "ada.1.webp",
        "given wins": tmp_path / "other" / "ada.1.png",
    }[where]
    save(place, face, lossless=True)
    if where == "given wins":
        save(photos / "ada.1.mask.png", 255 - face)
    given = {"masks": tmp_path / "other"} if where.startswith("given") else {}
    references = load_folder(photos, **given)
    assert references.names == ("ada.1.jpg", "bob.jpg")
    expected = torch.from_numpy(face)[None].float() / 255
    assert references.photos[0].face_mask.equal(expected)
    assert references.photos[1].face_mask is None
    if where != "given wins":
        assert references.warnings == ()


@pytest.mark.parametrize("kind", ["white on transparent", "0 and 1", "RGB", "palette", "16 bit"])
def test_kinds_of_mask_files(tmp_path, one, kind):
    save(tmp_path / "a.jpg")
    face = np.zeros((80, 100), np.uint8)
    face[20:50, 30:60] = 255
    image = {
        "white on transparent": lambda: Image.fromarray(np.dstack([np.full_like(face, 255), face])),
        "0 and 1": lambda: Image.fromarray(face // 255),
        "RGB": lambda: Image.fromarray(face[..., None].repeat(3, -1)),
        "palette": lambda: Image.fromarray(face).convert("P"),
        "16 bit": lambda: Image.fromarray(face.astype(np.uint16) * 257),
    }[kind]()
    image.save(tmp_path / "a.mask.png")
    assert torch.equal(one().photos[0].face_mask, torch.from_numpy(face)[None].float() / 255)


def test_huge_photos_are_scaled_down_with_mask_and_landmarks(tmp_path, one, monkeypatch):
    monkeypatch.setattr(reading, "MAX_SHORT_SIDE", 100)
    face = np.zeros((300, 450), np.uint8)
    face[90:180, 150:300] = 255
    save(tmp_path / "a.png", gradient(300, 450))
    save(tmp_path / "a.mask.png", face)
    points = [[151, 91], [298, 91], [223, 135], [151, 178], [298, 178]]
    (tmp_path / "a.landmarks.json").write_text(json.dumps(points))
    references = one()
    assert references.images[0].shape == (3, 100, 150)
    assert close(references.images[0], gradient(100, 150), 3)
    assert torch.equal(
        references.photos[0].face_mask, torch.from_numpy(face[1::3, 1::3])[None].float() / 255
    )
    expected = [[50, 30], [99, 30], [74, 134 / 3], [50, 59], [99, 59]]
    torch.testing.assert_close(references.photos[0].landmarks, torch.tensor(expected))


def test_a_mask_gets_the_size_of_its_photo(tmp_path, one):
    save(tmp_path / "a.png")
    face = np.zeros((160, 200), np.uint8)
    face[40:100, 60:120] = 255
    expected = torch.from_numpy(face[::2, ::2]).float()[None] / 255
    for mask in (face, face[::2, ::2], face[::4, ::4]):
        save(tmp_path / "a.mask.png", np.ascontiguousarray(mask))
        loaded = one().photos[0].face_mask
        assert loaded.shape == (1, 80, 100)
        assert (loaded - expected).abs().mean() < 0.01
    save(tmp_path / "a.mask.png", face[:, :100])
    with pytest.raises(InputError, match=r"a\.mask\.png: the mask is 100x160 pixels and the pict"):
        one()


def test_an_inverted_mask_is_told(tmp_path, one):
    face = np.zeros((80, 100), np.uint8)
    face[20:60, 30:60] = 255
    save(tmp_path / "a.png")
    save(tmp_path / "a.mask.png", face)
    assert one().warnings == ()
    save(tmp_path / "a.mask.png", 255 - face)
    (warning,) = one().warnings
    assert warning.startswith("a.png: the mask marks all four corners")
    # Where landmarks say where the face is, there is no need to guess.
    points = [[40, 30], [50, 30], [45, 36], [41, 44], [49, 44]]
    (tmp_path / "a.landmarks.json").write_text(json.dumps(points))
    assert one().warnings == ()


def test_captions_and_natural_order(tmp_path):
    for name in ["photo10.png", "photo2.PNG", "Photo1.png", "b.png"]:
        save(tmp_path / name)
    (tmp_path / "photo2.txt").write_text("\ufeffa woman\n in a café \n", "utf-8")
    (tmp_path / "b.txt").write_text(" \n")
    references = load_folder(tmp_path)
    assert references.names == ("b.png", "Photo1.png", "photo2.PNG", "photo10.png")
    captions = [photo.caption for photo in references]
    assert captions == [None, None, "a woman in a café", None]
    assert references.warnings == ()


def test_photos_may_differ_in_size(tmp_path):
    sizes = [(80, 100), (120, 70), (64, 64)]
    for i, (height, width) in enumerate(sizes):
        save(tmp_path / f"{i}.png", gradient(height, width))
    loaded = load_folder(tmp_path)
    assert [tuple(image.shape[1:]) for image in loaded.images] == sizes


def test_what_is_no_photo_is_left_alone_and_listed(tmp_path):
    save(tmp_path / "a.jpg")
    save(tmp_path / "lost.mask.png")
    save(tmp_path / "masks" / "nobody.png")
    for name in ["notes.txt", "b.gif", ".hidden", "model.safetensors"]:
        (tmp_path / name).write_text("x")
    (tmp_path / "older").mkdir()
    (tmp_path / "c.png").mkdir()
    references = load_folder(tmp_path)
    assert references.names == ("a.jpg",)
    left, lost = references.warnings
    listed = "b.gif, c.png (a folder), lost.mask.png, model.safetensors, nobody.png, notes.txt"
    assert left.endswith(f"left alone: {listed}, older (a folder).")
    assert lost.startswith("lost.mask.png: a mask by the name, but there is no photo for it")


@pytest.mark.skipif("HEIF" in reading.formats(), reason="pillow-heif is installed")
def test_heic_without_its_package_is_told(tmp_path):
    save(tmp_path / "a.jpg")
    (tmp_path / "IMG_1.HEIC").write_text("x")
    left, needed = load_folder(tmp_path).warnings
    assert left.endswith("left alone: IMG_1.HEIC.")
    assert needed.startswith("IMG_1.HEIC: reading it needs the package pillow-heif")
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(InputError, match=r"no photo; .*found IMG_1.HEIC.*needs the package"):
        load_folder(tmp_path)


def test_a_folder_of_thousands_is_refused_before_the_first_is_read(tmp_path):
    for number in range(MOST_PHOTOS + 1):
        (tmp_path / f"{number}.jpg").write_bytes(b"")  # reading one would be another error
    with pytest.raises(InputError, match=r"has 201 photos; at most 200 are read, and 4 to 6"):
        load_folder(tmp_path)


def test_a_broken_link_is_named(tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(InputError, match=r"b\.png is a link to .*gone\.png, which is not there"):
        load_folder(tmp_path)
    (tmp_path / "b.png").unlink()
    (tmp_path / "b.png").symlink_to("b.png")
    with pytest.raises(InputError, match=r"b\.png is a link to b\.png, which is not there"):
        load_folder(tmp_path)
    (tmp_path / "b.png").unlink()
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    assert len(load_folder(tmp_path)) == 2


def test_a_name_that_is_no_text(tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9\n.png"))
    (name,) = load_folder(tmp_path).names
    assert name == "caf\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}.png"
    json.dumps(name).encode()


def test_folders_and_files_that_may_not_be_read(tmp_path):
    """As a user without rights, also where the tests run as root."""
    photos, locked = tmp_path / "photos", tmp_path / "locked"
    for folder in (photos, locked):
        save(folder / "a.png")
    (photos / "a.png").chmod(0)
    locked.chmod(0)
    tmp_path.chmod(0o755)
    script = (
        "import os, sys\n"
        "from PIL import Image\n"
        "from magicapture.data import load_folder\n"
        "from magicapture.errors import InputError\n"
        "Image.init()\n"  # its readers are files too, which that user may not be able to read
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "for folder in sys.argv[1:]:\n"
        "    try: load_folder(folder)\n"
        "    except InputError as error: print(error)\n"
    )
    command = [sys.executable, "-c", script, "photos", "locked"]
    environment = {**os.environ, "PYTHONPATH": str(Path(magicapture.__file__).parents[1])}
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
        )
    finally:
        locked.chmod(0o700)
    first, second = result.stdout.splitlines()
    assert "a.png cannot be read (Permission denied); check that it is there and may" in first
    assert "The folder of photos locked cannot be read (Permission denied); check" in second


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(InputError, match="missing does not exist"):
        load_folder(tmp_path / "missing")
    save(tmp_path / "a.png")
    (tmp_path / "masks").mkdir()
    with pytest.raises(InputError, match=r"a.png is a file; give the folder"):
        load_folder(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"folder of masks .* is that of the photos; leave it out"):
        load_folder(tmp_path, masks=tmp_path / "masks" / "..")
    with pytest.raises(InputError, match=r"folder of masks .*masks-2 does not exist"):
        load_folder(tmp_path, masks=tmp_path / "masks-2")


def test_a_folder_without_photos(tmp_path):
    with pytest.raises(InputError, match=r"has no photo; expected .*\.png.*it is empty"):
        load_folder(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.png").mkdir()
    with pytest.raises(InputError, match=r"has no photo; .*found a.txt, b.png \(a folder\)"):
        load_folder(tmp_path)


@pytest.mark.parametrize("name", ["bad.jpg", "bad.png", "bad.webp", "good.mask.png"])
@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_a_damaged_picture_is_named(tmp_path, name, damage):
    save(tmp_path / "good.png")
    save(tmp_path / name)
    data = (tmp_path / name).read_bytes()
    content = {"cut": data[: len(data) // 2], "text": b"not a picture", "empty": b""}[damage]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name} cannot be read .*take it out of the folder"):
        load_folder(tmp_path)


def test_a_caption_that_is_no_text(tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match=r"a.txt cannot be read as text .*UTF-8"):
        load_folder(tmp_path)


def test_a_caption_is_short(tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("word " * (LONGEST_CAPTION // 5))
    assert len(load_folder(tmp_path).photos[0].caption) < LONGEST_CAPTION
    (tmp_path / "a.txt").write_text("word " * 1000)
    with pytest.raises(
        InputError, match=r"a.txt is a caption of 4,999 characters .*at most 2,000"
    ) as error:
        load_folder(tmp_path)
    assert len(str(error.value)) < 400
    (tmp_path / "a.txt").write_text("word " * 2_000_000)
    with pytest.raises(InputError, match=r"a.txt has 10,000,000 bytes; expected a short") as error:
        load_folder(tmp_path)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[[1, 2]]",
        '"x"',
        "[[1,2],[1],[1],[1],[1]]",
        "NaN",
        "[" * 50_000,
        f"[[{10**400}, 1]]",
    ],
)
def test_landmarks_that_are_none(tmp_path, text):
    save(tmp_path / "a.png")
    (tmp_path / "a.landmarks.json").write_text(text)
    with pytest.raises(InputError, match=r"a.landmarks.json does not hold five \[x, y\] pairs"):
        load_folder(tmp_path)


def test_real_photos(shared_assets):
    person = load_folder(shared_assets / "photos" / "person")
    assert len(person) == 20 and person.warnings == ()
    assert {tuple(image.shape) for image in person.images} == {(3, 512, 512)}
    styles = load_folder(shared_assets / "photos" / "styles")
    concept, recipe = Concept("film", "style"), Recipe(masked=False)
    assert check_photos(Learnable(concept, styles), recipe) == ()
