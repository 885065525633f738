import errno
import os
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from magicapture import files
from magicapture.errors import InputError, StorageError
from magicapture.files import (
    MAX_NAME,
    atomic_write,
    check_writable,
    free_space,
    inside,
    require_space,
    safe_name,
    safe_path,
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


def test_what_is_being_written_has_an_ending_of_its_own_and_the_usual_permissions(tmp_path):
    seen = []
    plain = tmp_path / "plain"
    plain.write_text("x")
    atomic_write(tmp_path / "a.png", lambda p: (seen.append(p), p.write_text("x")))
    assert seen[0].suffix == ".tmp-magicapture" and seen[0].parent == tmp_path
    assert (tmp_path / "a.png").stat().st_mode == plain.stat().st_mode


def test_leftovers_go_and_what_others_are_writing_stays(tmp_path):
    def temporary(host, process, hours):
        file = tmp_path / f".00ff00ff-{host}-{process}.tmp-magicapture"
        file.write_bytes(b"half")
        os.utime(file, (time.time() - 3600 * hours,) * 2)
        return file

    ours = files._host()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    stay = [temporary(ours, os.getpid(), 0), temporary("0123abcd", gone.pid, 0)]
    foreign = tmp_path / ".notes.tmp"
    foreign.write_text("not ours")
    old = [temporary("0123abcd", 1, 2), temporary(ours, gone.pid, 0), temporary(ours, 1, 2)]
    atomic_write(tmp_path / "a.txt", lambda p: p.write_text("x"))
    assert set(tmp_path.iterdir()) == {*stay, foreign, tmp_path / "a.txt"}
    assert not any(file.exists() for file in old)


@pytest.mark.parametrize("folder", ["new/deep", "."])
def test_a_folder_that_takes_files_is_left_as_it_was(tmp_path, folder):
    check_writable(tmp_path / folder)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_takes_no_file_is_told_before_any_work(tmp_path):
    (tmp_path / "file").write_text("in its place")
    for folder in [tmp_path / "file", tmp_path / "file" / "sub", "/proc/magicapture", "/dev/null"]:
        with pytest.raises(StorageError, match="choose another folder"):
            check_writable(folder)
    with pytest.raises(StorageError, match="MiB free; this needs"):
        check_writable(tmp_path, 2**60)


def test_a_full_or_read_only_disk_is_told_before_any_work(tmp_path):
    """A real one of 64 KiB; root alone may mount it."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", tmp_path], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount")
    try:
        with pytest.raises(StorageError, match="MiB free; this needs"):
            check_writable(tmp_path)
        (tmp_path / "full").write_bytes(bytes(2**16 - 8192))
        with pytest.raises(OSError, match="space"), (tmp_path / "rest").open("wb", 0) as rest:
            while True:
                rest.write(bytes(4096))
        with pytest.raises(StorageError, match="the disk is full"):
            check_writable(tmp_path, 1)
        subprocess.run(["mount", "-o", "remount,ro", tmp_path], check=True)
        with pytest.raises(StorageError, match="Read-only"):
            check_writable(tmp_path, 1)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        *[("ada", "ada"), (" ada.safetensors ", "ada"), ("ada.SAFETENSORS", "ada")],
        *[("people/ada", "people/ada"), ("a\\b", "a/b"), ("v1.2", "v1.2"), ("a / b", "a/b")],
    ],
)
def test_a_path_of_plain_names_passes_without_its_ending(name, path):
    assert safe_path(name, "output name", ".safetensors") == path


@pytest.mark.parametrize(
    "name", ["", "/", "/a", "a/", "a//b", "../a", "a/../b", "C:/a", "a/nul", ".safetensors", "a/.b"]
)
def test_a_path_that_leaves_its_folder_is_refused(name):
    with pytest.raises(InputError, match=r"The output name .* or with a sub-folder"):
        safe_path(name, "output name", ".safetensors")


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
