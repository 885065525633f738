"""The nodes for faces, with the real detector and face embedder on real photos."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file


@pytest.fixture(autouse=True)
def inferring(executor):
    """Every test here runs in inference mode, as nodes do."""


@pytest.fixture
def models(comfyui, shared_assets):
    """ComfyUI's model folders with YuNet and MobileFaceNet in them."""
    import folder_paths

    folder = Path(folder_paths.models_dir) / "facexlib"
    folder.mkdir(parents=True, exist_ok=True)
    names = {"yunet_s_640_640.onnx": "yunet.onnx", "foamliu_MobileFaceNet.onnx": "mobile.onnx"}
    for source, name in names.items():
        shutil.copyfile(shared_assets / "face" / source, folder / name)
    yield folder
    shutil.rmtree(folder)


def photos(assets, *names):
    """Photos as IMAGE batches of one."""
    arrays = (np.asarray(Image.open(assets / "photos" / n).convert("RGB")) for n in names)
    return [torch.from_numpy(a.copy())[None].float() / 255 for a in arrays]


def loaded(nodes, pack, images, masks=None):
    none = pack("nodes.references").NO_FOLDER
    return nodes.LoadPhotoSet.execute([none], images, masks, [""])[0]


PERSON = [f"person/foreground__0{n}.jpg" for n in (2, 3, 4)]


def test_photos_in_masks_landmarks_and_previews_out(nodes, pack, models, shared_assets):
    detector = nodes.LoadFaceDetector.execute(pack("nodes._comfy.files").AUTO)[0]
    references = loaded(nodes, pack, photos(shared_assets, *PERSON))
    filled, faces, styles, preview, report = nodes.MakeFaceMasks.execute(
        references, "face", 0.02, 0.02, detector
    ).args
    assert all(photo.face_mask is not None for photo in filled)
    assert all(photo.landmarks is not None for photo in filled)
    for face, style in zip(faces, styles, strict=True):
        assert face.shape == (1, 512, 512) and 0.01 < float(face.mean()) < 0.3
        torch.testing.assert_close(face + style, torch.ones_like(face))
    assert preview.ndim == 4 and preview.shape[-1] == 3
    assert report.count("an oval") == 3
    learnable = nodes.DefineConcept.execute(filled, "style", "oil-1", "person", 1)[0]
    assert learnable.concept.role == "style" and learnable.photos is filled


def test_own_masks_stay(nodes, pack, models, shared_assets):
    detector = nodes.LoadFaceDetector.execute("yunet.onnx")[0]
    own = torch.zeros(1, 512, 512)
    own[:, 150:400, 150:400] = 1
    images = photos(shared_assets, *PERSON[1:2])
    filled, *_, report = nodes.MakeFaceMasks.execute(
        loaded(nodes, pack, images, [own]), "face", 0.1, 0.1, detector
    ).args
    assert torch.equal(filled.photos[0].face_mask, own) and "your own mask" in report
    assert filled.photos[0].landmarks is not None


def test_check_references_finds_the_intruder(nodes, pack, models, shared_assets):
    detector = nodes.LoadFaceDetector.execute("yunet.onnx")[0]
    embedder = nodes.LoadFaceRecognitionModel.execute("mobile.onnx", "imagenet")[0]
    images = photos(shared_assets, *PERSON, "styles/Gentleman.jpg")
    references = loaded(nodes, pack, images)
    kept, sheet, report, data = nodes.CheckPhotos.execute(
        references, "subject", 512, True, detector, embedder
    ).args
    verdicts = [photo["verdict"] for photo in json.loads(data)["photos"]]
    assert verdicts == ["use", "use", "use", "leave out"]
    assert len(kept) == 3 and "another person" in report and sheet.shape[-1] == 3


def test_a_missing_model_says_what_to_get(nodes, pack):
    auto = pack("nodes._comfy.files").AUTO
    error = pack("magicapture.errors").StorageError
    with pytest.raises(error, match="Nothing is downloaded") as caught:
        nodes.LoadFaceParser.execute(auto)
    assert "release" in str(caught.value) and "licence" in str(caught.value)
    with pytest.raises(error, match="There is no face recognition model"):
        nodes.LoadFaceRecognitionModel.execute(auto, "arcface")


def test_without_any_file_photos_get_masks_and_checks(nodes, pack, monkeypatch):
    """What a new user has: the detector of the pack, no parser, no face recognition model."""
    said = []
    faces = pack("nodes.faces")
    monkeypatch.setattr(faces, "show_text", lambda text, node: said.append(text))
    loaders = (nodes.LoadFaceParser, nodes.LoadFaceRecognitionModel)
    default = [loader.define_schema().inputs[0].default for loader in loaders]
    assert default == ["best found, or none"] * 2
    parser = nodes.LoadFaceParser.execute(default[0])[0]
    embedder = nodes.LoadFaceRecognitionModel.execute(default[1], "arcface")[0]
    assert parser is None and embedder is None
    assert "a mask is an oval; one is parsing_bisenet.pth in models/facexlib" in said[0]
    assert "the identity loss is off; one is " in said[1]
    person = nodes.DrawPaperdollPhotos.execute(1_000_000, 1_000_099, 4)[0]
    bare = loaded(nodes, pack, [image.movedim(0, -1)[None] for image in person.images])
    filled, *_, report = nodes.MakeFaceMasks.execute(bare, "face", 0.02, 0.02).args
    assert report.count("an oval") == 4
    assert all(photo.landmarks is not None for photo in filled)
    data = nodes.CheckPhotos.execute(filled, "subject", 64, False).args[3]
    assert all(photo["faces"] == 1 for photo in json.loads(data)["photos"])


def test_a_file_put_there_later_is_taken(nodes, pack, models):
    """ComfyUI runs a loader again when its fingerprint changes."""
    choice = pack("nodes._comfy.files").OR_NONE
    before = nodes.LoadFaceRecognitionModel.fingerprint_inputs(choice, "imagenet")
    assert nodes.LoadFaceRecognitionModel.execute(choice, "imagenet")[0] is None
    shutil.copyfile(models / "mobile.onnx", models / "w600k_r50.onnx")
    assert nodes.LoadFaceRecognitionModel.fingerprint_inputs(choice, "imagenet") != before
    assert nodes.LoadFaceRecognitionModel.execute(choice, "imagenet")[0].name == "w600k_r50.onnx"
    for loader in (nodes.LoadFaceDetector, nodes.LoadFaceParser):
        assert loader.fingerprint_inputs(choice) == loader.fingerprint_inputs(choice)


def test_check_models_lists_found_and_missing(nodes, models):
    report = nodes.CheckModels.execute()[0]
    assert "found    face_detection_yunet_2023mar.onnx" in report
    assert "missing  parsing_bisenet.pth" in report
    assert "found    yunet_s.safetensors" in report
    assert all(name in report for name in ("MagiCapture 0.", "ComfyUI 0.", "peft ", "Device: cpu"))


def test_models_are_found_by_links_beside_others_folders_and_in_comfyuis_own(
    nodes, pack, models, tmp_path, monkeypatch
):
    """An extra folder and ComfyUI's models/detection, whose MediaPipe files are none of ours."""
    import folder_paths

    known = {k: (list(v[0]), v[1]) for k, v in folder_paths.folder_names_and_paths.items()}
    known.pop("facexlib", None)
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", known)
    (tmp_path / "extra").mkdir()
    folder_paths.add_model_folder_path("facexlib", str(tmp_path / "extra"))
    (tmp_path / "far").mkdir()
    shutil.copyfile(models / "yunet.onnx", tmp_path / "far" / "far_yunet.onnx")
    (tmp_path / "extra" / "linked").symlink_to(tmp_path / "far")
    own = Path(folder_paths.models_dir) / "detection"
    own.mkdir(exist_ok=True)
    try:
        shutil.copyfile(models / "yunet.onnx", own / "own_yunet.onnx")
        save_file({"detector.weight": torch.zeros(1)}, own / "mediapipe.safetensors")
        listed = nodes.LoadFaceDetector.define_schema().inputs[0].options
        assert {"yunet.onnx", "linked/far_yunet.onnx", "own_yunet.onnx"} <= set(listed)
        assert "mediapipe.safetensors" not in listed
        assert nodes.LoadFaceDetector.execute("linked/far_yunet.onnx")[0] is not None
        assert len(nodes.LoadFaceRecognitionModel.define_schema().inputs[0].options) > 2
    finally:
        shutil.rmtree(own)


def test_odd_pictures_by_the_sockets(nodes, pack, models, shared_assets):
    """Grey, with alpha, of 24 megapixels, and without a face: each masked, or named."""
    detector = nodes.LoadFaceDetector.execute("yunet.onnx")[0]
    plain, grey, alpha, huge = photos(shared_assets, *PERSON, "person/foreground__08.jpg")
    huge = torch.nn.functional.interpolate(huge.movedim(-1, 1), (6000, 6000)).movedim(1, -1)
    images = [
        plain,
        grey.mean(-1, keepdim=True),
        torch.cat([alpha, torch.ones_like(alpha[..., :1])], dim=-1),
        huge[:, 1000:5000],
        torch.full_like(plain, 0.5),
    ]
    references = loaded(nodes, pack, images)
    sizes = [tuple(image.shape) for image in references.images]
    assert sizes == [(3, 512, 512)] * 3 + [(3, 1536, 2304), (3, 512, 512)]
    filled, faces, _, _, report = nodes.MakeFaceMasks.execute(
        references, "face", 0.02, 0.02, detector
    ).args
    shares = [float(face.mean()) for face in faces]
    assert all(0.01 < share < 0.4 for share in shares[:4]) and shares[4] == 0
    assert faces[3].shape == (1, 1536, 2304)
    assert "image 5: no face was found; no mask" in report
    data = nodes.CheckPhotos.execute(filled, "subject", 512, False, detector).args[3]
    verdicts = [photo["verdict"] for photo in json.loads(data)["photos"]]
    assert verdicts == ["use", "use", "use", "use", "leave out"]


def test_a_folder_with_files_that_are_no_photos(nodes, pack, models, shared_assets):
    import folder_paths

    folder = Path(folder_paths.get_input_directory()) / "odd"
    folder.mkdir()
    try:
        shutil.copyfile(shared_assets / "photos" / PERSON[0], folder / "good.jpg")
        (folder / "notes.txt").write_text("taken in May")
        references = nodes.LoadPhotoSet.execute(["odd"])[0]
        detector = nodes.LoadFaceDetector.execute("yunet.onnx")[0]
        report = nodes.MakeFaceMasks.execute(references, "face", 0, 0, detector).args[4]
        assert "good.jpg: face" in report and "left alone: notes.txt" in report
        (folder / "torn.jpg").write_bytes((folder / "good.jpg").read_bytes()[:5000])
        error = pack("magicapture.errors").InputError
        with pytest.raises(error, match=r"Load Photo Set: .*torn\.jpg cannot be read"):
            nodes.LoadPhotoSet.execute(["odd"])
    finally:
        shutil.rmtree(folder)


def test_identity_of_dolls_with_networks_of_the_pack(nodes, pack):
    person, _, _, styles, *_, truth = nodes.DrawPaperdollPhotos.execute(1_000_000, 1_000_099, 4)
    detector, parser, embedder = nodes.LoadPaperdollFaceModels.execute().args
    loss = pack("magicapture.paperdoll.weights").loss_embedder()
    measure = nodes.MeasureIdentity.execute
    share, report, data = measure(truth, person, embedder, detector, loss).args
    assert share > 0.85 and json.loads(data)["of_the_loss"] is False
    assert "another than the identity loss used" in report
    strangers, report, _ = measure(styles, person, embedder, detector, embedder).args
    assert strangers < 0.5 and "WARNING" in report
    adapter = pack("magicapture.adapters.adapter").Adapter(
        {}, {}, "sd1", info={"face_model": "one.onnx"}
    )
    report = measure(truth, person, embedder, detector, adapter=adapter).args[1]
    assert "another than the identity loss used" in report
    bare = loaded(nodes, pack, [image.movedim(0, -1)[None] for image in person.images])
    report = nodes.MakeFaceMasks.execute(bare, "face", 0, 0, detector, parser, embedder).args[4]
    assert report.count("mask by the parser") == 4


def test_the_second_best_embedder(nodes, pack, models):
    files = pack("nodes._comfy.files")

    def chosen():
        loaded = (
            nodes.LoadFaceRecognitionModel.execute(f, "imagenet")[0]
            for f in (files.AUTO, files.SECOND)
        )
        return [embedder.name for embedder in loaded]

    shutil.copyfile(models / "mobile.onnx", models / "glintr100.onnx")
    assert chosen() == ["glintr100.onnx", "glintr100.onnx"]
    shutil.copyfile(models / "mobile.onnx", models / "w600k_r50.onnx")
    assert chosen() == ["glintr100.onnx", "w600k_r50.onnx"]
