import errno
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from magicapture.errors import InputError, StorageError
from magicapture.files import (
    MAX_NAME,
    atomic_write,
    free_space,
    inside,
    require_space,
    safe_name,
)


@pytest.mark.parametrize("name", ["ada", "ada-1_b", "Zoë", "日本", "v1.2", "a b", "x" * MAX_NAME])
def test_plain_names_pass(name):
    assert safe_name(name, "output name") == name


def test_outer_spaces_are_dropped():
    assert safe_name("  ada \n", "output name") == "ada"


@pytest.mark.parametrize(
    "name",
    [
        *["", "  ", ".", "..", "../ada", "a/b", "a\\b", "C:ada", "a\0b", "a\nb", ".ada", "ada."],
        *["NUL", "com1.txt", "what?", "<ada>", "x" * (MAX_NAME + 1), "é" * 61],
    ],
)
def test_names_that_leave_or_break_a_folder_are_refused(name):
    with pytest.raises(InputError, match=r"The output name .* expected a plain name"):
        safe_name(name, "output name")


def test_inside_follows_links_and_allows_sub_folders(tmp_path):
    assert inside(tmp_path, "a/../b") == tmp_path.resolve() / "b"
    assert inside(tmp_path, "a/b.txt") == tmp_path.resolve() / "a" / "b.txt"
    (tmp_path / "out").symlink_to("/")
    for name in ["..", "../x", "a/../../x", "/etc/passwd", "out/etc", ".", ""]:
        with pytest.raises(StorageError, match="is not inside"):
            inside(tmp_path, name)
    with pytest.raises(StorageError):  # a sibling whose name begins alike
        inside(tmp_path, f"../{tmp_path.name}-2/x")


def test_atomic_write_replaces_and_makes_folders(tmp_path):
    path = tmp_path / "new" / "a.txt"
    for text in ["one", "two"]:
        atomic_write(path, lambda p, text=text: p.write_text(text))
        assert path.read_text() == text
    assert os.listdir(path.parent) == ["a.txt"]


def test_atomic_write_keeps_the_suffix_and_the_usual_permissions(tmp_path):
    seen = []
    plain = tmp_path / "plain"
    plain.write_text("x")
    atomic_write(tmp_path / "a.png", lambda p: (seen.append(p), p.write_text("x")))
    assert seen[0].suffix == ".png" and seen[0].parent == tmp_path
    assert (tmp_path / "a.png").stat().st_mode == plain.stat().st_mode


def test_full_disk_keeps_the_old_file_and_says_so(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def write(p):
        p.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StorageError, match="The disk is full"):
        atomic_write(path, write)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("save", [save_file, lambda tensors, p: torch.save(tensors, p)])
def test_a_write_that_really_runs_out_of_space_is_a_storage_error(tmp_path, save):
    resource = pytest.importorskip("resource", reason="file size limits are POSIX's")
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.zeros(1)}, path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(StorageError, match="unchanged"):
            atomic_write(path, lambda p: save({"x": torch.zeros(100_000)}, p))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert load_file(path)["x"].shape == (1,)
    assert os.listdir(tmp_path) == ["a.safetensors"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, KeyError, InputError])
def test_other_errors_pass_through_and_leave_nothing(tmp_path, error):
    def write(p):
        p.write_bytes(b"half")
        raise error("x")

    with pytest.raises(error):
        atomic_write(tmp_path / "a.bin", write)
    assert os.listdir(tmp_path) == []


def test_a_folder_in_the_way_is_a_storage_error(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(StorageError, match="could not be written"):
        atomic_write(tmp_path / "a", lambda p: p.write_text("x"))
    with pytest.raises(StorageError):
        (tmp_path / "f").write_text("x")
        atomic_write(tmp_path / "f" / "a", lambda p: p.write_text("x"))


def test_space_is_measured_for_a_folder_yet_to_be_made(tmp_path):
    assert free_space(tmp_path / "not" / "yet") > 0
    require_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(StorageError, match="MiB free; this needs"):
        require_space(tmp_path, 2**60)
