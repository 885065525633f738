"""Folders, progress, Cancel and sockets."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image


@pytest.fixture
def no_insightface(comfyui, monkeypatch):
    """ComfyUI as it starts, without a folder for face models."""
    import folder_paths

    known = {k: (list(v[0]), v[1]) for k, v in folder_paths.folder_names_and_paths.items()}
    known.pop("insightface", None)
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", known)
    return folder_paths


def test_an_unknown_kind_gets_a_folder_of_its_own(pack, no_insightface):
    folders = pack.comfy.model_folders("insightface")
    assert folders == [Path(no_insightface.models_dir) / "insightface"]
    assert pack.comfy.model_folders("insightface") == folders


def test_extra_model_paths_of_the_user_stay(pack, no_insightface, tmp_path):
    from utils.extra_config import load_extra_path_config

    config = tmp_path / "extra_model_paths.yaml"
    config.write_text(f"mine:\n  base_path: {tmp_path}\n  insightface: faces\n  loras: own_loras\n")
    load_extra_path_config(str(config))
    own = Path(no_insightface.models_dir) / "insightface"  # which ComfyUI itself would forget
    assert pack.comfy.model_folders("insightface") == [tmp_path / "faces", own]
    assert pack.comfy.model_folders("insightface") == [tmp_path / "faces", own]
    assert tmp_path / "own_loras" in pack.comfy.model_folders("loras")
    assert len(pack.comfy.model_folders("loras")) > 1
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "arc.onnx").touch()
    assert pack.comfy.find_file("insightface", "arc.onnx") == tmp_path / "faces" / "arc.onnx"


def test_a_name_cannot_lead_out_of_its_folder(pack, no_insightface, tmp_path):
    (tmp_path / "faces").mkdir()
    (tmp_path / "secret.onnx").touch()
    no_insightface.add_model_folder_path("insightface", str(tmp_path / "faces"))
    assert pack.comfy.find_file("insightface", "../secret.onnx") is None
    assert pack.comfy.find_file("insightface", str(tmp_path / "secret.onnx")) is None
    assert pack.comfy.find_file("insightface", "none.onnx") is None


def test_results_go_to_comfyuis_output(pack):
    import folder_paths

    assert pack.comfy.output_folder() == Path(folder_paths.get_output_directory())


def test_cancel_is_heeded_and_lets_the_next_run_go(pack):
    import comfy.model_management as management

    progress = pack.comfy.Progress(10)
    progress.update(1)
    for asks in (pack.comfy.check_cancel, lambda: progress.update(2)):
        management.interrupt_current_processing()
        with pytest.raises(pack.comfy.Cancelled):
            asks()
        asks()


def test_progress_and_previews_reach_the_hook(pack, monkeypatch):
    import comfy.utils

    seen = []
    hook = lambda *args, node_id: seen.append((*args, node_id))  # noqa: E731
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    progress = pack.comfy.Progress(4, "7")
    picture = Image.new("RGB", (8, 8))
    progress.update(3, picture)
    progress.update(4)
    assert seen[0][:2] == (3, 4) and seen[0][2][:2] == ("JPEG", picture) and seen[0][3] == "7"
    assert seen[1] == (4, 4, None, "7")


def test_texts_go_to_the_node(pack, monkeypatch):
    import server

    seen = []
    fake = SimpleNamespace(send_progress_text=lambda text, node: seen.append((text, node)))
    pack.comfy.show_text("unseen", "7")  # without a server nothing happens
    monkeypatch.setattr(server.PromptServer, "instance", fake, raising=False)
    pack.comfy.show_text("12 steps left", "7")
    pack.comfy.show_text("unseen", None)
    assert seen == [("12 steps left", "7")]


@pytest.mark.parametrize(
    "name", ["<img src=x onerror=alert(1)>.png", "<script>alert(1)</script>.png", "a&lt;b.png"]
)
def test_a_photos_name_under_a_node_is_no_html(pack, monkeypatch, name):
    """The frontends put the text into the page as HTML, ComfyUI 0.3.64's as it comes."""
    import server

    seen = []
    fake = SimpleNamespace(send_progress_text=lambda text, node: seen.append(text))
    monkeypatch.setattr(server.PromptServer, "instance", fake, raising=False)
    pack.comfy.show_text(f'{name}: it\'s "the same" picture\nas b.png & counts twice', "7")
    (sent,) = seen
    parser, shown, tags = HTMLParser(), [], []
    parser.handle_data, parser.handle_starttag = shown.append, lambda tag, _: tags.append(tag)
    parser.feed(sent)
    parser.close()
    assert tags == []
    assert "".join(shown) == f'{name}: it\'s "the same" picture\nas b.png & counts twice'
    assert "\n" in sent and '"' in sent


def test_the_nodes_id_is_known_inside_the_executor_alone(pack):
    assert pack.comfy.node_id(SimpleNamespace(hidden=SimpleNamespace(unique_id="7"))) == "7"
    assert pack.comfy.node_id(SimpleNamespace(hidden=None)) is None
    assert pack.comfy.node_id(object()) is None


# -- sockets ----------------------------------------------------------------------------------


def test_images_survive_the_sockets_and_become_ordinary_tensors(pack, executor):
    batch = torch.rand(2, 5, 7, 3)
    images = pack.comfy.images_from_socket(batch)
    assert images.shape == (2, 3, 5, 7) and images.is_contiguous()
    assert batch.is_inference() and not images.is_inference()
    assert torch.equal(pack.comfy.images_to_socket(images), batch)


@pytest.mark.parametrize("channels", [1, 4])
def test_grey_and_transparent_images_become_rgb(pack, channels):
    batch = torch.rand(1, 5, 7, channels)
    images = pack.comfy.images_from_socket(batch)
    assert images.shape == (1, 3, 5, 7)
    assert torch.equal(images[0, 0], batch[0, ..., 0])
    assert torch.equal(images[0, 2], batch[0, ..., min(2, channels - 1)])


def test_what_leaves_is_within_0_to_1(pack):
    outside = torch.tensor([-1.0, 2.0]).view(1, 1, 1, 2)
    images = pack.comfy.images_to_socket(outside.expand(1, 3, 1, 2))
    assert images.min() == 0 and images.max() == 1
    masks = pack.comfy.masks_to_socket(outside)
    assert masks.shape == (1, 1, 2) and masks.min() == 0 and masks.max() == 1


def test_masks_survive_the_sockets(pack, executor):
    batch = torch.rand(2, 5, 7)
    masks = pack.comfy.masks_from_socket(batch)
    assert masks.shape == (2, 1, 5, 7) and not masks.is_inference()
    assert torch.equal(pack.comfy.masks_to_socket(masks), batch)
    assert pack.comfy.masks_from_socket(batch[0]).shape == (1, 1, 5, 7)


def test_wrong_shapes_say_what_was_expected(pack):
    error = pack("magicapture.errors").InputError
    with pytest.raises(error, match="batch, height, width, 3"):
        pack.comfy.images_from_socket(torch.zeros(3, 5, 7))
    with pytest.raises(error, match="batch, height, width"):
        pack.comfy.masks_from_socket(torch.zeros(1, 1, 5, 7))
