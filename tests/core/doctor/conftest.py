"""A folder of photos such as people have them: everything that can be wrong with one."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

TURN_RIGHT = 6  # EXIF: the camera was held so that the picture must be turned right by 90 degrees


@pytest.fixture(scope="session")
def bad_photos(shared_assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three good photos of a person, and one of each bad kind, named after it."""
    folder = tmp_path_factory.mktemp("photos")
    person = sorted((shared_assets / "photos" / "person").glob("foreground*"))
    others = sorted((shared_assets / "photos" / "styles").glob("*.jpg"))

    def photo(number: int) -> Image.Image:
        return Image.open(person[number - 1]).convert("RGB")

    for number in (2, 3, 4):
        photo(number).save(folder / f"good{number}.jpg", quality=95)
    photo(2).save(folder / "twin.jpg", quality=60)
    photo(6).convert("L").save(folder / "grey.png")
    cut_out = photo(7)
    cut_out.putalpha(Image.new("L", cut_out.size, 255))
    cut_out.save(folder / "rgba.png")
    photo(8).resize((6000, 6000)).crop((0, 500, 6000, 4500)).save(folder / "huge.jpg", quality=80)
    exif = Image.Exif()
    exif[0x0112] = TURN_RIGHT
    photo(10).transpose(Image.Transpose.ROTATE_90).save(folder / "turned.jpg", exif=exif)
    Image.linear_gradient("L").resize((512, 512)).save(folder / "nobody.png")
    small = Image.new("RGB", (512, 512), (90, 110, 130))
    small.paste(photo(5).resize((98, 98)), (200, 190))  # a face 210 px wide becomes 40
    small.save(folder / "small.png")
    photo(3).crop((250, 0, 512, 512)).save(folder / "edge.png")
    crowd = Image.new("RGB", (800, 600))
    for i, file in enumerate((*others, person[0], person[8], person[10])):
        crowd.paste(Image.open(file).convert("RGB").resize((200, 200)), (i % 4 * 200, i // 4 * 200))
    crowd.save(folder / "crowd.jpg", quality=95)
    (folder / "notes.txt").write_text("taken in May")
    (folder / "list.csv").write_text("a,b")
    return folder
