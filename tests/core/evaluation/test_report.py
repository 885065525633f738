"""Bad pictures, missing models, many pictures; and the files that are written."""

from __future__ import annotations

import csv
import json
import re
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from magicapture.errors import InputError
from magicapture.evaluation import (
    Evaluation,
    Given,
    Models,
    References,
    evaluate,
    write_csv,
    write_page,
)
from magicapture.evaluation.report import Group, Line
from magicapture.faces.align import ARCFACE_TEMPLATE
from magicapture.faces.analyzer import FaceAnalyzer
from magicapture.faces.protocols import Face
from magicapture.paperdoll.pairs import Pair, pictures, references

Make = Callable[..., list[Given]]
SIDE = 40


def squares(image: Tensor) -> tuple[Face, ...]:
    """A detector that sees a face in each square of 40 px of the first row that is not black."""
    at = [torch.tensor([x, 0.0]) for x in torch.arange(0, image.shape[-1] - SIDE + 1.0, SIDE)]
    return tuple(
        Face(torch.cat([a, a + SIDE]), ARCFACE_TEMPLATE * (SIDE / 112) + a, 1.0)
        for a in at
        if image[:, 5, int(a[0]) + 5].any()
    )


def row(*colours: tuple[float, float, float]) -> Tensor:
    """A picture of a row of faces, each an even square of a colour."""
    return torch.tensor(colours).T[:, None, :, None].expand(3, SIDE, -1, SIDE).flatten(2)


ADA, BOB, NOBODY = (1.0, 0.1, 0.0), (0.1, 1.0, 0.0), (0.0, 0.0, 0.0)


@pytest.fixture
def simple() -> Models:
    """A face embedder that sees how red and how green a face is."""
    return Models(FaceAnalyzer(squares, embedder=lambda faces: faces[:, :2].mean(dim=(2, 3))))


def of(models: Models, *photos: Tensor, portraits: tuple[Tensor, ...] = ()) -> References:
    from magicapture.data import ReferenceSet

    looks = ReferenceSet.of(portraits) if portraits else None
    return References.of(ReferenceSet.of(photos), looks, models)


def test_pictures_without_a_face_or_with_two_are_named(simple: Models, given: Make) -> None:
    against = of(simple, row(ADA), row(ADA) * 0.9)
    shown = [row(ADA), row(BOB, ADA), row(NOBODY), row(BOB)]
    found = evaluate({"drawn": given(shown)}, against, simple)
    identity = [line.values["identity"] for line in found.groups[0].lines]
    assert identity == pytest.approx([1, 1, 0, 2 * 0.1 / 1.01], abs=1e-4)
    assert found.groups[0].lines[2].values["csim"] is None
    assert found.bad == [
        "drawn, 2.png: 2 faces; the one most like the person is measured.",
        "drawn, 3.png: no face is found; identity 0.",
    ]
    assert [line.notes for line in found.groups[0].lines][1:3] == [("2 faces",), ("no face",)]
    faces = found.groups[0].mean("faces")
    assert faces and faces.mean == 0.75
    assert "3.png: no face is found" in str(found)


def test_unreadable_pictures_are_named_and_the_others_measured(simple: Models, given: Make) -> None:
    def torn() -> Tensor:
        raise InputError("torn.png cannot be read")

    against = of(simple, row(ADA), row(ADA) * 0.9)
    bad = Given("torn.png", torn)
    told: list[tuple[int, int]] = []
    found = evaluate(
        {"a": [bad, *given([row(ADA)])], "b": [bad]},
        against,
        simple,
        on_progress=lambda *at: told.append(at),
    )
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert [len(group.lines) for group in found.groups] == [1, 0]
    assert found.bad[0] == "a, torn.png: torn.png cannot be read"
    assert found.groups[1].mean("identity") is None and "b (0 pictures)" in str(found)
    with pytest.raises(InputError, match=r"no picture to measure\.\ntorn.png: torn.png cannot"):
        evaluate({"b": [bad]}, against, simple)


def test_photos_without_a_face_or_of_several_people_are_refused(simple: Models) -> None:
    with pytest.raises(InputError, match="No face is found in the person's 2 photos"):
        of(simple, row(NOBODY), row(NOBODY))
    with pytest.raises(InputError, match="one person"):
        of(simple, row((1.0, 0, 0)), row((0.0, 1, 0)))
    against = of(simple, row(ADA), row(NOBODY), row(ADA) * 0.9)
    assert against.warnings == ("image 2: no face is found in this photo of the person.",)
    assert against.person is not None and len(against.person.embeddings) == 2


def test_one_photo_and_one_picture(models: Models, pair: Pair, given: Make) -> None:
    photos, portraits = references(pair.source), references(pair.reference)
    against = References.of(photos.only([0]), portraits.only([0]), models)
    found = evaluate({"one": given(pictures(pair.unseen[:1]))}, against, models)
    line = found.groups[0].lines[0]
    assert line.values["identity"] == line.values["csim"], "a plain cosine"
    assert found.style_own == 1 and "diversity" not in found.columns
    interval = found.groups[0].mean("identity")
    assert interval and interval.low == interval.high
    assert found.real[0].mean("csim") is None, "nothing to compare the photo with"
    alone = References.of(photos.only([0]), None, models)
    found = evaluate({"one": given(pictures(pair.unseen[:1]))}, alone, models)
    assert "copies" not in found.columns and any("one training picture" in m for m in found.missing)


def test_pictures_of_any_size_are_measured_and_look_alike(
    models: Models, pair: Pair, given: Make
) -> None:
    against = References.of(references(pair.source), references(pair.reference), models)
    image = pictures(pair.unseen[:1])
    sized = [
        torch.nn.functional.interpolate(image, (side, side), mode="bicubic").clamp(0, 1)[0]
        for side in (96, 128, 500)
    ]
    wide = torch.nn.functional.pad(image, (40, 40, 0, 0), mode="replicate")[0]
    tiny = torch.rand(3, 5, 900)
    found = evaluate({"": given([*sized, wide, tiny])}, against, models)
    for name in ("identity", "style", "aesthetic"):
        values = [line.values[name] for line in found.groups[0].lines]
        assert values[:3] == pytest.approx([values[1]] * 3, abs=0.1), name
    assert found.groups[0].lines[4].values["style"] is not None


def test_each_missing_model_is_named_and_its_columns_left_out(
    models: Models, bare: Models, pair: Pair, given: Make
) -> None:
    photos, portraits = references(pair.source), references(pair.reference)
    shown = {"": given(pictures(pair.unseen[:3]), "a photo")}

    def columns(own: Models, style: bool = True) -> tuple[set[str], str]:
        against = References.of(photos, portraits if style else None, own)
        found = evaluate(shown, against, own)
        return set(found.columns), " ".join(found.missing)

    whole = {"score", "identity", "csim", "style", "aesthetic", "diversity", "copies", "obedience"}
    assert columns(models) == (whole | {"faces"}, "")
    assert columns(bare) == (
        {"copies", "faces"},
        "identity, CSIM: there is no face recognition model. "
        "style, diversity, aesthetic, obedience: there is no CLIP model.",
    )
    found, told = columns(replace(models, aesthetic=None, texts=None))
    assert whole - found == {"aesthetic", "obedience"}
    assert "no aesthetic head" in told and "no text encoder" in told
    found, told = columns(replace(models, analyzer=bare.analyzer))
    assert whole - found == {"identity", "csim"} and "score" in found
    found, told = columns(models, style=False)
    assert whole - found == {"style"} and "no portraits" in told
    shown[""] = given(pictures(pair.unseen[:3]))
    found, told = columns(models)
    assert whole - found == {"obedience"} and "there is no prompt" in told
    with pytest.raises(InputError, match="aesthetic head is given without the CLIP model"):
        Models(models.analyzer, aesthetic=models.aesthetic)


def test_a_thousand_pictures_are_in_memory_one_at_a_time(simple: Models) -> None:
    against = of(simple, row(ADA), row(ADA) * 0.9)
    before: list[weakref.ref[Tensor]] = []

    def read() -> Tensor:
        assert sum(one() is not None for one in before[-3:]) == 0, "an earlier picture is kept"
        image = row(NOBODY if len(before) % 100 else ADA) * torch.rand(1)  # a mask takes 50 ms
        before.append(weakref.ref(image))
        return image

    found = evaluate({"": [Given(str(i), read) for i in range(1000)]}, against, simple)
    assert len(found.groups[0].lines) == 1000 and len(before) == 1000
    assert sum(len(line.thumbnail) for line in found.groups[0].lines) < 5e6


def test_the_losss_own_face_model_is_told(simple: Models, given: Make) -> None:
    against = of(simple, row(ADA), row(ADA) * 0.9)

    def told(loss: object) -> str:
        shown = {"": given([row(ADA)])}
        return str(evaluate(shown, against, simple, loss=loss))  # type: ignore[arg-type]

    assert "WARNING: the identity loss used it too" in told(simple.analyzer.embedder)
    assert "another than the identity loss used" in told("w600k_r50.onnx")
    assert "Unknown whether" in told(None)


# -- files ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found(models: Models, pair: Pair, given: Make) -> Evaluation:
    against = References.of(references(pair.source), references(pair.reference), models, tones=True)
    grey = torch.full((3, 128, 128), 0.5)
    groups = {
        "with <b>": given([*pictures(pair.unseen[:3]), grey], "a photo"),
        "without": given(pictures(pair.others_in_style[:3])),
    }
    return evaluate(groups, against, models, loss="x")


def test_json_holds_all_figures_and_no_picture(found: Evaluation) -> None:
    data = json.loads(json.dumps(found.as_dict()))
    assert set(data["columns"]) == set(found.columns)
    assert list(data["means"]) == ["with <b>", "without"]
    mean = found.groups[0].mean("identity")
    assert mean and data["means"]["with <b>"]["identity"] == [round(v, 4) for v in mean]
    assert len(data["pictures"]) == 7 and data["pictures"][3]["notes"] == ["no face"]
    assert data["real"]["the person's photos"]["identity"][0] == pytest.approx(1)
    assert data["face_model_of_the_loss"] is False
    assert len(json.dumps(data)) < 40_000


def test_csv_has_a_line_for_each_picture_and_no_formula(found: Evaluation, tmp_path: Path) -> None:
    odd = Line("=1+1.png", {"identity": None, "score": 0.5}, 1, b"")
    whole = replace(found, groups=(*found.groups, Group("@home", (odd,))))
    write_csv(whole, tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 and rows[0]["group"] == "with <b>"
    line = found.groups[0].lines[0]
    assert float(rows[0]["identity"]) == pytest.approx(line.values["identity"], abs=1e-4)
    assert rows[3]["notes"] == "no face" and rows[3]["csim"] == ""
    assert (rows[7]["group"], rows[7]["picture"]) == ("'@home", "'=1+1.png")


def test_the_page_holds_all_it_shows_sorted_by_score(found: Evaluation, tmp_path: Path) -> None:
    write_page(found, tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text("utf-8")
    assert "with &lt;b&gt;" in text and "<b>" not in text.replace("<b>0", "")
    assert not re.findall(r"(?:src|href)=\"(?!data:image/jpeg;base64,)", text)
    assert "default-src 'none'" in text and "<script" not in text
    assert text.count("<figure>") == 7 + 10
    for group, begin in zip(found.groups, ("with &lt;b&gt;</h3>", "without</h3>"), strict=True):
        part = text[text.index(begin) :].partition('<div class="group">')[0]
        scores = [float(s) for s in re.findall(r"<b>([\d.]+)</b>", part)][: len(group.lines)]
        assert len(scores) == len(group.lines) and scores == sorted(scores, reverse=True)
    for told in ("By skin tone", "no face is found; identity 0", "Carlini", "(0."):
        assert told in text
