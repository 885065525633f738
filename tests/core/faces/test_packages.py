"""The one command that installs the packages for models of faces."""

from __future__ import annotations

import sys
from importlib import metadata

import pytest

from magicapture.faces import packages
from magicapture.faces.packages import install_command, needs


@pytest.fixture
def opencv(monkeypatch) -> set[str]:
    """The names under which OpenCV is installed; pip takes each for another package."""
    names = {"opencv-python"}

    def version(distribution: str) -> str:
        if distribution in names:
            return "4.10"
        raise metadata.PackageNotFoundError(distribution)

    monkeypatch.setattr(packages.metadata, "version", version)
    return names


def test_every_package_of_the_extra_is_installed_by_one_command(repo, opencv) -> None:
    command = install_command(["facexlib"])
    assert command == f"{sys.executable} -m pip install -r {repo / 'requirements-faces.txt'}"
    assert install_command(["onnx2torch", "onnx"]) == command
    assert str(needs("Reading it", ["facexlib"])) == f"Reading it needs facexlib; run {command}"


def test_other_packages_are_named(opencv) -> None:
    assert install_command(["onnxruntime"]).endswith(" -m pip install onnxruntime")
    assert " install toy -r " in install_command(["toy", "onnx"])


def test_without_the_list_the_packages_are_named(opencv, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(packages, "_LIST", tmp_path / "gone.txt")
    assert install_command().endswith("pip install insightface facexlib onnx onnx2torch")


def test_opencv_of_another_name_is_left_alone(opencv) -> None:
    opencv.clear()
    opencv.add("opencv-contrib-python")
    assert install_command().endswith("requirements-faces.txt --no-deps")


def test_paths_with_spaces_are_quoted(opencv, monkeypatch) -> None:
    monkeypatch.setattr(sys, "executable", "C:\\My Apps\\python.exe")
    assert install_command(["toy"]) == '"C:\\My Apps\\python.exe" -m pip install toy'
