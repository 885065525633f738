"""Verdicts: by figures with known answers, and on the real photos."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from magicapture.data import ReferenceSet
from magicapture.data.faces import with_faces
from magicapture.doctor import contact_sheet, judge_photos
from magicapture.faces.align import FFHQ_TEMPLATE
from magicapture.faces.analyzer import FaceAnalyzer
from magicapture.faces.detect import load_detector
from magicapture.faces.embed import load_face_embedder
from magicapture.faces.protocols import Face


def frontal(image: Tensor) -> tuple[Face, ...]:
    """Takes every picture for a head that fills it; black ones show nobody."""
    if not image.any():
        return ()
    scale = image.shape[-1] / 512
    box = torch.tensor([108.0, 100, 404, 480]) * scale
    return (Face(box, FFHQ_TEMPLATE * scale, 1.0),)


def noise(seed: int, side: int = 256) -> Tensor:
    return torch.rand(3, side, side, generator=torch.Generator().manual_seed(seed))


def verdicts(images: list[Tensor], **kwargs) -> list[tuple[str, str]]:
    references, found = with_faces(ReferenceSet.of(images), FaceAnalyzer(frontal))
    report = judge_photos(references, found, "subject", **kwargs)
    return [(photo.verdict, "; ".join(photo.reasons)) for photo in report.photos]


def test_no_face_a_small_one_a_blurred_one_and_a_twin() -> None:
    blurred = torch.nn.functional.avg_pool2d(noise(3), 31, 1, 15)
    blurred = torch.nn.functional.avg_pool2d(blurred, 31, 1, 15)
    found = verdicts(
        [noise(1), torch.zeros(3, 64, 64), blurred, noise(2), noise(1) * 0.9 + 0.05],
        resolution=256,
    )
    assert [verdict for verdict, _ in found] == ["use", "leave out", "care", "use", "care"]
    assert found[1][1] == "no face was found" and "blurred" in found[2][1]
    assert "image 1" in found[4][1]
    (tiny, why), *_ = verdicts([noise(1)], resolution=64)  # the face is then 37 px wide
    assert tiny == "care" and "37 px" in why


def test_another_person_by_the_median_cosine() -> None:
    def embedder(faces: Tensor) -> Tensor:
        bright = (faces.mean(dim=(1, 2, 3)) > 0.6).float()
        return torch.stack([1 - bright, bright], dim=1)

    images = [noise(n) for n in range(5)] + [noise(9) * 0.3 + 0.7]
    analyzer = FaceAnalyzer(frontal, embedder=embedder)
    references, found = with_faces(ReferenceSet.of(images), analyzer)
    report = judge_photos(references, found, "subject", embedder=embedder)
    assert [photo.verdict for photo in report.photos] == ["use"] * 5 + ["leave out"]
    assert "another person" in report.photos[5].text
    assert report.identity == pytest.approx(1, abs=0.01)  # of those that are not left out
    style = judge_photos(references, found, "style", embedder=embedder)
    assert style.count("leave out") == 0 and style.identity is None


def test_own_masks_and_landmarks_stay() -> None:
    mask, points = torch.zeros(1, 256, 256), torch.rand(5, 2) * 100
    mask[:, 40:240, 50:210] = 1
    given = ReferenceSet.of((noise(1), noise(2)), face_masks=(mask, None), landmarks=(points, None))
    filled, found = with_faces(given, FaceAnalyzer(frontal))
    assert torch.equal(filled.photos[0].face_mask, mask)
    assert filled.photos[0].landmarks is points and filled.photos[1].landmarks is not None
    assert [one.origin for one in found] == ["yours", "oval"] and "an oval" in str(found[1])
    nobody, _ = with_faces(ReferenceSet.of([torch.zeros(3, 64, 64)]), FaceAnalyzer(frontal))
    assert nobody.photos[0].face_mask is None and "no face was found" in nobody.warnings[0]


def test_masks_of_ones_own_that_mark_no_face_are_told() -> None:
    marked, beside = torch.zeros(1, 256, 256), torch.zeros(1, 256, 256)
    marked[:, 40:240, 50:210] = 1
    beside[:, :20, :20] = 1
    masks = (torch.zeros(1, 256, 256), torch.ones(1, 256, 256), beside, marked)
    images = tuple(noise(n) for n in range(4))
    given = ReferenceSet.of(images, face_masks=masks)
    references, found = with_faces(given, FaceAnalyzer(frontal))
    report = judge_photos(references, found, "subject")
    empty, full, elsewhere, right = report.photos
    assert empty.text.startswith("leave out: your own mask is empty: paint the face")
    assert full.text.startswith("leave out: your own mask is full: paint the face alone")
    assert elsewhere.text == "leave out: no face was found inside your own mask"
    assert right.verdict == "use" and right.mask is None
    assert "face 148 px wide, your own mask is empty" in str(found[0])
    assert str(found[2]) == "your own mask, and none of the faces found lies in it"
    alone, _ = with_faces(given.only([0]), FaceAnalyzer(frontal))
    first = alone.photos[0]
    assert first.landmarks is not None and torch.equal(first.face_mask, masks[0])


@pytest.mark.parametrize(("scale", "verdict"), [(0.9, "use"), (0.6, "care")])
def test_a_mask_that_leaves_out_much_of_the_face_is_told(scale, verdict) -> None:
    """The oval of a frontal face, made smaller, leaves out 1 - scale^2 of it."""
    y, x = torch.meshgrid(*[torch.arange(256.0)] * 2, indexing="ij")
    oval = ((x - 128) / (74 * scale)) ** 2 + ((y - 146) / (95 * scale)) ** 2 <= 1
    given = ReferenceSet.of((noise(1), noise(2)), face_masks=(oval.float()[None], None))
    references, found = with_faces(given, FaceAnalyzer(frontal))
    small, whole = judge_photos(references, found, "subject").photos
    assert small.narrow == pytest.approx(1 - scale**2, abs=0.03) and whole.narrow is None
    assert small.verdict == verdict
    assert ("leaves out 64% of the face" in small.text) == (verdict == "care")


def test_the_intruder_among_real_photos_and_no_one_else(shared_assets) -> None:
    from magicapture.data.folder import read_picture

    files = sorted((shared_assets / "photos" / "person").glob("*.jpg"))
    files += [shared_assets / "photos" / "styles" / "Men_suit.jpg"]
    images = tuple(read_picture(file).image for file in files)
    face = shared_assets / "face"
    embedder = load_face_embedder(face / "foamliu_MobileFaceNet.onnx", "imagenet")
    analyzer = FaceAnalyzer(load_detector(face / "yunet_s_640_640.onnx"), None, embedder)
    references, found = with_faces(
        ReferenceSet.of(images, names=tuple(f.name for f in files)), analyzer
    )
    report = judge_photos(references, found, "subject", embedder=embedder)
    strangers = [p.name for p in report.photos if "person" in p.text]
    assert strangers == ["Men_suit.jpg"] and report.count("leave out") == 1
    assert 0.5 < (report.identity or 0) < 0.65
    assert json.loads(report.to_json())["photos"][20]["verdict"] == "leave out"
    sheet = contact_sheet(references, found, report, side=64)
    assert sheet.shape[0] == 3 and sheet.min() >= 0 and sheet.max() <= 1
