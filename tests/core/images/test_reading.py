"""Picture files of every kind: formats, depths, colour profiles, sizes."""

import struct
import subprocess
import time

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, features

from magicapture.errors import InputError
from magicapture.images import Picture, bounded, read_picture, reading


def gradient(height=80, width=100):
    """A smooth picture (H,W,3) uint8 that is different in every corner."""
    y, x = np.mgrid[:height, :width]
    red, green = 255 * x / (width - 1), 255 * y / (height - 1)
    return np.stack([red, green, 0 * red + 60], axis=-1).round().astype(np.uint8)


def as_array(picture):
    return (picture.image * 255).round().byte().permute(1, 2, 0).numpy()


def differs(picture, array):
    return int(np.abs(as_array(picture).astype(int) - array.astype(int)).max())


# -- formats ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("a.png", 0),
        ("a.bmp", 0),
        ("a.tif", 0),
        ("a.TIFF", 0),
        ("a.jpg", 12),
        ("a.jfif", 12),
        ("a.jpe", 12),
        ("a.webp", 16),
        ("a.avif", 16),
    ],
)
def test_formats_by_their_usual_endings(tmp_path, name, tolerance):
    kind = {v: k for k, of in reading.ENDINGS.items() for v in of}["." + name.split(".")[1].lower()]
    if kind not in reading.formats():
        pytest.skip(f"this Pillow reads no {kind}")
    Image.fromarray(gradient()).save(tmp_path / name, format=kind)
    assert differs(read_picture(tmp_path / name), gradient()) <= tolerance


def test_the_content_counts_and_not_the_ending(tmp_path):
    Image.fromarray(gradient()).save(tmp_path / "a.png", format="JPEG")
    assert differs(read_picture(tmp_path / "a.png"), gradient()) <= 12


def test_a_phones_jpeg_with_a_second_picture_behind_it(tmp_path):
    first, second = Image.fromarray(gradient()), Image.new("RGB", (100, 80))
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second])
    assert differs(read_picture(tmp_path / "a.jpg"), gradient()) <= 12


def test_postscript_is_never_opened(tmp_path, monkeypatch):
    """Pillow would hand it to Ghostscript, whatever the file is called."""
    Image.fromarray(gradient()).save(tmp_path / "x.eps")
    (tmp_path / "x.eps").rename(tmp_path / "x.png")
    started = []
    for name in ("check_call", "Popen", "run"):
        monkeypatch.setattr(subprocess, name, lambda *args, **_: started.append(args))
    with pytest.raises(InputError, match=r"x\.png cannot be read \(its content is none of PNG"):
        read_picture(tmp_path / "x.png")
    assert not started


@pytest.mark.parametrize("kind", ["GIF", "PPM", "TGA", "ICO", "PCX", "SGI", "PDF"])
def test_formats_that_are_not_named_are_not_opened(tmp_path, kind):
    Image.fromarray(gradient()).save(tmp_path / "x", format=kind)
    (tmp_path / "x").rename(tmp_path / "x.jpg")
    with pytest.raises(InputError, match="its content is none of PNG, JPEG, "):
        read_picture(tmp_path / "x.jpg")


def test_what_cannot_be_read_says_why(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"empty.png cannot be read \(the file is empty\)"):
        read_picture(tmp_path / "empty.png")
    with pytest.raises(InputError, match=r"gone.png cannot be read \(No such file"):
        read_picture(tmp_path / "gone.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(InputError, match=r"folder.png cannot be read \(Is a directory"):
        read_picture(tmp_path / "folder.png")


def test_a_kind_of_a_known_format_that_is_not_read_is_called_so(tmp_path):
    Image.fromarray(gradient()).save(tmp_path / "a.tif")
    whole = (tmp_path / "a.tif").read_bytes()
    bits = struct.pack("<HHI", 258, 3, 3)  # the tag of bits a channel, and where they stand
    at = struct.unpack_from("<I", whole, whole.index(bits) + 8)[0]
    floats = whole[:at] + struct.pack("<HHH", 24, 24, 24) + whole[at + 6 :]
    (tmp_path / "a.tif").write_bytes(floats)
    with pytest.raises(
        InputError, match=r"a\.tif cannot be read \(it is TIFF, damaged or of a kind"
    ):
        read_picture(tmp_path / "a.tif")


@pytest.mark.skipif("HEIF" in reading.formats(), reason="pillow-heif is installed")
def test_a_phones_heic_under_another_ending_is_told(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    with pytest.raises(InputError, match=r"\(it holds HEIF\); reading that needs .*pillow-heif"):
        read_picture(tmp_path / "a.jpg")


def test_of_several_pictures_the_first_is_read_and_said(tmp_path):
    first, second = Image.fromarray(gradient()), Image.new("RGB", (50, 40))
    first.save(tmp_path / "a.tif", save_all=True, append_images=[second, second])
    loaded = read_picture(tmp_path / "a.tif")
    assert differs(loaded, gradient()) == 0
    assert loaded.warning == "the first of its 3 pictures is read."


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "RGBA", "L", "I;16"])
def test_a_tiff_on_its_side(tmp_path, mode):
    turned = Image.Exif()
    turned[0x0112] = 6
    picture, shown = Image.fromarray(np.rot90(gradient())), gradient()
    if mode in ("L", "I;16"):
        picture, shown = picture.convert("L"), np.asarray(Image.fromarray(shown).convert("L"))
        if mode == "I;16":
            picture = Image.fromarray(np.asarray(picture).astype(np.uint16) * 257)
        shown = np.repeat(shown[..., None], 3, -1)
    else:
        picture = picture.convert(mode)
    picture.save(tmp_path / "a.tif", exif=turned)
    assert differs(read_picture(tmp_path / "a.tif"), shown) <= 1


def test_heic_by_its_package(tmp_path):
    pytest.importorskip("pillow_heif")
    assert "HEIF" in reading.formats()
    Image.fromarray(gradient()).save(tmp_path / "a.heic", format="HEIF", quality=95)
    assert differs(read_picture(tmp_path / "a.heic"), gradient()) <= 12


@pytest.mark.skipif("HEIF" in reading.formats(), reason="pillow-heif is installed")
def test_heic_is_read_where_its_package_is_installed():
    assert "HEIF" not in reading.formats()
    assert "pillow-heif" in reading.NEEDS["HEIF"]


# -- depth ------------------------------------------------------------------------------------


def test_16_bits_and_floats(tmp_path):
    grey = gradient()[..., 0]
    for name, values in {
        "16.png": grey.astype(np.uint16) * 257,
        "16.tif": grey.astype(np.uint16) * 257,
        "32.tif": grey.astype(np.int64).astype(np.uint32).astype(np.int32) * 257,
        "unit.tif": grey.astype(np.float32) / 255,
        "bytes.tif": grey.astype(np.float32),
        "words.tif": grey.astype(np.float32) * 257,
        "over.tif": np.minimum(grey.astype(np.float32) / 255, 0.9) * 1.2,
    }.items():
        Image.fromarray(values).save(tmp_path / name)
        expected = grey if name != "over.tif" else (values * 255).clip(0, 255).round()
        loaded = read_picture(tmp_path / name)
        assert differs(loaded, np.repeat(expected[..., None], 3, -1)) <= 1, name


def test_a_big_endian_tiff_of_16_bits(tmp_path):
    grey = gradient()[..., 0]
    strip = (grey.astype(np.uint16) * 257).astype(">u2").tobytes()
    tags = [(256, 4, 100), (257, 4, 80), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 8)]
    tags += [(277, 3, 1), (278, 4, 80), (279, 4, len(strip))]
    entries = b"".join(
        struct.pack(">HHI", tag, kind, 1)
        + (struct.pack(">HH", value, 0) if kind == 3 else struct.pack(">I", value))
        for tag, kind, value in tags
    )
    head = b"MM\x00*" + struct.pack(">I", 8 + len(strip))
    directory = struct.pack(">H", len(tags)) + entries + bytes(4)
    (tmp_path / "a.tif").write_bytes(head + strip + directory)
    loaded = read_picture(tmp_path / "a.tif")
    assert differs(loaded, np.repeat(grey[..., None], 3, -1)) == 0


def test_floats_that_are_no_numbers(tmp_path):
    values = np.full((80, 100), np.nan, np.float32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match=r"a\.tif holds values that are no numbers"):
        read_picture(tmp_path / "a.tif")


# -- colour profiles --------------------------------------------------------------------------

D50 = np.array([0.9642, 1.0, 0.8249])
BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
PRIMARIES = {  # xy of red, green, blue; xy of white; gamma
    "adobe": ([(0.64, 0.33), (0.21, 0.71), (0.15, 0.06)], (0.3127, 0.3290), 2.19921875),
    "p3": ([(0.68, 0.32), (0.265, 0.69), (0.15, 0.06)], (0.3127, 0.3290), 2.2),
    "prophoto": ([(0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001)], (0.3457, 0.3585), 1.8),
    "srgb": ([(0.64, 0.33), (0.30, 0.60), (0.15, 0.06)], (0.3127, 0.3290), None),
}


def to_xyz(space):
    """Linear R, G, B of a space to X, Y, Z seen under D50."""
    primaries, white, _ = PRIMARIES[space]
    as_xyz = lambda xy: np.array([xy[0] / xy[1], 1, (1 - xy[0] - xy[1]) / xy[1]])  # noqa: E731
    columns = np.stack([as_xyz(xy) for xy in primaries], axis=1)
    matrix = columns * np.linalg.solve(columns, as_xyz(white))
    cones = (BRADFORD @ D50) / (BRADFORD @ as_xyz(white))
    return np.linalg.inv(BRADFORD) @ np.diag(cones) @ BRADFORD @ matrix


def fixed(values):
    return b"".join(struct.pack(">i", round(65536 * v)) for v in values)


def profile(space):
    """A matrix profile of a space (ICC.1:2001), made by hand."""
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(256 * PRIMARIES[space][2]))
    text = space.encode() + b"\0"
    parts = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(78),
        b"wtpt": b"XYZ " + bytes(4) + fixed(D50),
        **{
            name: b"XYZ " + bytes(4) + fixed(column)
            for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), to_xyz(space).T, strict=True)
        },
        **{name: curve for name in (b"rTRC", b"gTRC", b"bTRC")},
    }
    table, data, start = b"", b"", 128 + 4 + 12 * len(parts)
    for name, part in parts.items():
        part += bytes(-len(part) % 4)
        table += name + struct.pack(">II", start + len(data), len(part))
        data += part
    size = start + len(data)
    header = struct.pack(">I4sI4s4s4s12s4s", size, bytes(4), 0x02100000, b"mntr", b"RGB ", b"XYZ ",
                         bytes(12), b"acsp")  # fmt: skip
    header += bytes(68 - len(header)) + fixed(D50)
    return header + bytes(128 - len(header)) + struct.pack(">I", len(parts)) + table + data


def seen_in_srgb(values, space):
    """Values (...,3) uint8 of a space as sRGB's, by the spaces' own definitions."""
    linear = (values / 255) ** PRIMARIES[space][2]
    srgb = linear @ (np.linalg.inv(to_xyz("srgb")) @ to_xyz(space)).T
    srgb = srgb.clip(0, 1)
    encoded = np.where(srgb <= 0.0031308, 12.92 * srgb, 1.055 * srgb ** (1 / 2.4) - 0.055)
    return encoded * 255


@pytest.mark.parametrize("space", ["adobe", "p3", "prophoto"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colour_profiles_are_honoured(tmp_path, space, mode):
    values = (64 + gradient() * 0.4).round().astype(np.uint8)  # inside sRGB
    image = Image.fromarray(values)
    if mode == "RGBA":
        image.putalpha(255)
    elif mode == "P":
        image = image.quantize(200)
        values = np.asarray(image.convert("RGB"))
    image.save(tmp_path / "a.png", icc_profile=profile(space))
    expected = seen_in_srgb(values, space)
    loaded = read_picture(tmp_path / "a.png")
    assert loaded.warning is None
    assert np.abs(as_array(loaded) - expected).max() <= 2
    assert np.abs(values - expected).mean() > 2  # what ignoring it costs


def test_profiles_in_every_format(tmp_path):
    values = (64 + gradient() * 0.4).round().astype(np.uint8)
    expected = seen_in_srgb(values, "prophoto")
    for name in ("a.jpg", "a.tif", "a.webp"):
        Image.fromarray(values).save(
            tmp_path / name, icc_profile=profile("prophoto"), quality=95, lossless=True
        )
        loaded = as_array(read_picture(tmp_path / name))
        assert np.abs(loaded - expected).mean() <= 2, name


def test_srgb_itself_changes_nothing(tmp_path):
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    values = np.random.default_rng(0).integers(0, 256, (80, 100, 3), np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png", icc_profile=own)
    assert differs(read_picture(tmp_path / "a.png"), values) == 0


def test_grey_pictures_with_profiles(tmp_path):
    grey = gradient()[..., 0]
    Image.fromarray(grey).save(tmp_path / "a.png", icc_profile=profile("adobe"))
    loaded = read_picture(tmp_path / "a.png")
    expected = seen_in_srgb(np.repeat(grey[..., None], 3, -1), "adobe")
    assert loaded.warning is None and np.abs(as_array(loaded) - expected).max() <= 2


def test_transparency_stays_beside_a_profile(tmp_path):
    rgba = np.dstack([np.full((80, 100, 3), 120, np.uint8), np.full((80, 100), 255, np.uint8)])
    rgba[:, :50, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "a.png", icc_profile=profile("prophoto"))
    loaded = read_picture(tmp_path / "a.png")
    assert loaded.alpha is not None and loaded.alpha.mean() == 0.5
    assert (as_array(loaded)[:, :50] == 255).all()
    expected = seen_in_srgb(rgba[0, 60, :3], "prophoto")
    assert np.abs(as_array(loaded)[0, 60] - expected).max() <= 2


@pytest.mark.parametrize(
    ("broken", "warning"),
    [
        (b"no profile at all", "damaged"),
        (profile("adobe")[:200], "damaged"),
        (profile("adobe").replace(b"RGB ", b"CMYK", 1), "ignored"),
        (profile("adobe").replace(b"RGB ", b"zzzz", 1), "damaged"),
    ],
)
def test_a_broken_profile_is_ignored_with_a_warning(tmp_path, broken, warning):
    Image.fromarray(gradient()).save(tmp_path / "a.png", icc_profile=broken)
    loaded = read_picture(tmp_path / "a.png")
    assert differs(loaded, gradient()) == 0
    assert loaded.warning is not None and warning in loaded.warning


def test_cmyk_without_a_profile_and_lab(tmp_path):
    rgb = Image.fromarray(gradient())
    rgb.convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    assert differs(read_picture(tmp_path / "a.jpg"), gradient()) <= 12
    mild = (64 + gradient() * 0.4).round().astype(np.uint8)
    lab = ImageCms.profileToProfile(
        Image.fromarray(mild),
        ImageCms.createProfile("sRGB"),
        ImageCms.createProfile("LAB"),
        outputMode="LAB",
    )
    lab.save(tmp_path / "a.tif")
    assert differs(read_picture(tmp_path / "a.tif"), mild) <= 8


# -- size -------------------------------------------------------------------------------------


def test_a_huge_png_is_refused_before_it_is_decoded(tmp_path):
    Image.new("1", (13000, 13000)).save(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size < 100_000
    before = time.perf_counter()
    with pytest.raises(InputError, match=r"13000x13000 pixels, 169 megapixels; at most 120"):
        read_picture(tmp_path / "a.png")
    assert time.perf_counter() - before < 1


def test_pillows_own_limit_is_put_back(tmp_path):
    Image.fromarray(gradient()).save(tmp_path / "a.png")
    before = Image.MAX_IMAGE_PIXELS
    read_picture(tmp_path / "a.png")
    assert before is not None and before == Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = 100  # as a program that is careful may have it
    try:
        assert read_picture(tmp_path / "a.png").size == (80, 100)
        assert Image.MAX_IMAGE_PIXELS == 100
    finally:
        Image.MAX_IMAGE_PIXELS = before


def test_a_large_jpeg_is_decoded_smaller(tmp_path, monkeypatch):
    """The kind of a phone's 200 megapixels, at a tenth of the size."""
    monkeypatch.setattr(reading, "MAX_SHORT_SIDE", 100)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(gradient(900, 1200)).save(tmp_path / "a.jpg", exif=exif, quality=95)
    image, size = reading.open_picture(tmp_path / "a.jpg")
    assert image.size == (225, 300) and size == (1200, 900)  # turned; a quarter is decoded
    loaded = read_picture(tmp_path / "a.jpg")
    assert loaded.image.shape == (3, 133, 100) and loaded.size == (1200, 900)
    turned = np.rot90(gradient(100, 133), -1)
    assert differs(loaded, turned) <= 6


def test_a_jpeg_that_is_little_too_large_is_decoded_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_SHORT_SIDE", 100)
    Image.fromarray(gradient(300, 390)).save(tmp_path / "a.jpg")
    assert reading.open_picture(tmp_path / "a.jpg")[0].size == (390, 300)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1536, 2048), (1536, 2048)),
        ((3072, 4096), (1536, 2048)),
        ((20000, 200), (6144, 61)),
        ((1, 20000), (1, 6144)),
        ((1600, 20000), (492, 6144)),
    ],
)
def test_both_sides_are_bounded(size, expected):
    assert bounded(*size) == expected
    assert bounded(*size[::-1]) == expected[::-1]


def test_a_panorama(tmp_path):
    Image.new("RGB", (20000, 200), "red").save(tmp_path / "a.png")
    loaded = read_picture(tmp_path / "a.png")
    assert isinstance(loaded, Picture) and loaded.size == (200, 20000)
    assert loaded.image.shape == (3, 61, 6144)


def test_a_transparent_colour_survives_the_scaling(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_SHORT_SIDE", 20)
    values = np.full((80, 100, 3), (200, 0, 0), np.uint8)
    values[:, 50:] = (0, 0, 250)
    Image.fromarray(values).save(tmp_path / "a.png", transparency=(0, 0, 250))
    loaded = read_picture(tmp_path / "a.png")
    assert loaded.alpha is not None
    assert loaded.alpha[0, 10, :9].min() == 1 and loaded.alpha[0, 10, 16:].max() == 0
    assert torch.equal(loaded.image[:, 10, 20], torch.ones(3))


def test_formats_are_those_of_this_pillow():
    assert {"PNG", "JPEG", "BMP", "TIFF"} <= set(reading.formats())
    assert ("WEBP" in reading.formats()) == features.check("webp")
