"""Reference sets written into folders: read again they are the same, and nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from magicapture.data import ReferenceSet, load_folder
from magicapture.data.writing import save_photo_set
from magicapture.errors import InputError, StorageError


def set_of(names: list[str], seed: int = 0, size: tuple[int, int] = (40, 32)) -> ReferenceSet:
    """Photos of whole bytes, a mask, landmarks and a caption each."""
    generator = torch.Generator().manual_seed(seed)
    count = len(names)
    images = torch.randint(0, 256, (count, 3, *size), generator=generator).float() / 255
    masks = torch.zeros(count, 1, *size)
    masks[..., 8:24, 8:24] = 1
    points = torch.rand(count, 5, 2, generator=generator) * 20 + 5
    captions = [f"photo {i} of ada" for i in range(count)]
    return ReferenceSet.of(
        images, face_masks=masks, landmarks=points, captions=captions, names=names
    )


def assert_same(one: ReferenceSet, other: ReferenceSet) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.image, b.image) and torch.equal(a.face_mask, b.face_mask)
        assert torch.allclose(a.landmarks, b.landmarks, atol=0.01) and a.caption == b.caption


def files_in(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in sorted(folder.iterdir())}


def test_a_set_is_read_again_as_it_was(tmp_path: Path) -> None:
    references = set_of(["a.jpg", "image 2", "A.png", "../x", "ada_mask", "con"])
    saved = save_photo_set(references, tmp_path / "people" / "ada")
    again = load_folder(saved.folder)
    assert saved.folder == tmp_path / "people" / "ada" and not again.warnings
    assert {p.name for p in again} == {
        *("a.png", "image 2.png", "A-2.png", "photo-4.png", "photo-5.png", "photo-6.png")
    }
    order = [again.names.index(n) for n in ("a.png", "image 2.png", "A-2.png", "photo-4.png")]
    assert_same(references.only(range(4)), again.only(order))
    assert str(saved) == "6 photos, 6 masks, 6 landmark files, 6 captions"
    assert [p.name for p in tmp_path.iterdir()] == ["people"]  # nothing beside the folder


def test_what_is_known_goes_beside_photos_that_are_there(tmp_path: Path) -> None:
    """Also where the photo is larger than what is read: landmarks are in the file's pixels."""
    pixels = np.random.default_rng(1).integers(0, 255, (3100, 3200, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "IMG_1.jpg", quality=60)
    before = (tmp_path / "IMG_1.jpg").read_bytes()
    read = load_folder(tmp_path)
    height, width = read.photos[0].size
    mask = torch.zeros(1, height, width)
    mask[:, 100:900, 100:900] = 1
    points = torch.tensor([[300.0, 300], [500, 300], [400, 400], [330, 500], [470, 500]])
    known = read.known("face_masks", [mask]).known("landmarks", [points])
    saved = save_photo_set(known, tmp_path)
    assert saved.folder == tmp_path and not saved.backups
    assert {f.name for f in tmp_path.iterdir()} == {
        *("IMG_1.jpg", "IMG_1.mask.png", "IMG_1.landmarks.json")
    }
    assert (tmp_path / "IMG_1.jpg").read_bytes() == before
    stored = json.loads((tmp_path / "IMG_1.landmarks.json").read_text())
    assert stored[0][0] == pytest.approx((300.5) * 3200 / width - 0.5, abs=0.01)
    (photo,) = load_folder(tmp_path)
    assert torch.allclose(photo.landmarks, points, atol=0.02)
    assert torch.equal(photo.face_mask, mask)


def test_a_second_time_nothing_is_written_and_changes_keep_the_old(tmp_path: Path) -> None:
    references = set_of(["a.png", "b.png"])
    save_photo_set(references, tmp_path / "ada")
    before = files_in(tmp_path / "ada")
    again = save_photo_set(references, tmp_path / "ada")
    assert str(again) == "no file" and files_in(tmp_path / "ada") == before
    moved = references.known("captions", ["another", references.photos[1].caption])
    saved = save_photo_set(moved, tmp_path / "ada")
    assert [f.name for f in saved.backups] == ["a.txt.bak1"]
    assert saved.backups[0].read_bytes() == before["a.txt"]
    read = load_folder(tmp_path / "ada")
    assert read.photos[0].caption == "another" and not read.warnings


def test_masks_of_other_names_are_replaced_where_they_lie(tmp_path: Path) -> None:
    references = set_of(["a.png"])
    save_photo_set(references, tmp_path / "ada")
    (tmp_path / "ada" / "masks").mkdir()
    (tmp_path / "ada" / "a.mask.png").rename(tmp_path / "ada" / "masks" / "a.png")
    mask = torch.zeros(1, 40, 32)
    mask[:, 10:20, 10:20] = 1
    save_photo_set(references.known("face_masks", [mask]), tmp_path / "ada")
    read = load_folder(tmp_path / "ada")
    assert torch.equal(read.photos[0].face_mask, mask) and not read.warnings
    assert not (tmp_path / "ada" / "a.mask.png").exists()


@pytest.mark.parametrize("others", ["other pictures", "fewer", "no photos", "a file"])
def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, others: str) -> None:
    references, folder = set_of(["a.png", "b.png"]), tmp_path / "ada"
    if others == "a file":
        folder.write_text("mine")
    elif others == "no photos":
        folder.mkdir()
        (folder / "letter.doc").write_text("mine")
    else:
        there = set_of(["a.png", "b.png", "c.png"], seed=0 if others == "fewer" else 1)
        save_photo_set(there, folder)
        references = references if others != "fewer" else there.only([0, 1])
    before = None if folder.is_file() else files_in(folder)
    saved = save_photo_set(references, folder)
    assert saved.folder == tmp_path / "ada-2"
    assert_same(references, load_folder(tmp_path / "ada-2"))
    assert before is None or files_in(folder) == before


def test_a_failure_leaves_everything_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    references = set_of(["a.png", "b.png"])
    save_photo_set(references, tmp_path / "ada")
    before = files_in(tmp_path / "ada")
    changed = references.known("captions", ["one", "two"])
    write = Path.write_text

    def full(self: Path, text: str, *args: str) -> int:
        if text.startswith("two"):
            raise OSError(28, "No space left on device")
        return write(self, text, *args)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(StorageError, match="disk is full"):
        save_photo_set(changed, tmp_path / "ada")
    assert files_in(tmp_path / "ada") == before


def test_a_damaged_file_beside_a_photo_is_named(tmp_path: Path) -> None:
    references = set_of(["a.png"])
    save_photo_set(references, tmp_path / "ada")
    (tmp_path / "ada" / "a.landmarks.json").write_text("{}")
    with pytest.raises(InputError, match=r"a\.landmarks\.json"):
        save_photo_set(references, tmp_path / "ada")
