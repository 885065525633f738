"""The judge: scores fall when they should, and splits never meet."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from magicapture.backbones import load_backbone
from magicapture.demo.drawing import SAMPLING
from magicapture.errors import InputError, StorageError
from magicapture.metrics import METRICS, Case
from magicapture.paperdoll import (
    Split,
    identity_from_seed,
    pose_from_seed,
    render,
    split_of,
    style_from_seed,
)
from magicapture.paperdoll.attributes import ATTRIBUTES, COLOURLESS
from magicapture.paperdoll.captions import read, vocabulary
from magicapture.paperdoll.edits import KINDS, Edit, edits
from magicapture.paperdoll.judge import Judge, Readers
from magicapture.paperdoll.pairs import Pair, _other_seeds, make_pair, masks, pictures, references
from magicapture.paperdoll.weights import READERS, model_folder
from magicapture.sampling import sample

FIRST = Split.DEVELOPMENT.seeds.start


@pytest.fixture(scope="module")
def pair() -> Pair:
    """A development pair in colours."""
    return make_pair(FIRST + 7, FIRST + 40)


@pytest.fixture(scope="module")
def judge() -> Judge:
    """The shipped networks."""
    try:
        return Judge.load()
    except StorageError as error:
        pytest.skip(f"the paperdoll readers are not there: {error}")


@pytest.fixture(scope="module")
def case(judge: Judge, pair: Pair) -> Case:
    """The pair as the judge knows it."""
    return judge.case(pair)


@pytest.fixture(scope="module")
def ceiling(judge: Judge, pair: Pair, case: Case) -> dict[str, float]:
    """True compositions, scored as results are."""
    return judge.scores(pictures(pair.unseen), case)


def untrained() -> Judge:
    """A judge with networks that know nothing; what compares pixels works all the same."""
    torch.manual_seed(0)
    names = ("identity_score", "finder", "parser", "style", "probe")
    return Judge(Readers(*(READERS[name]().eval() for name in names)))


def blurred(images: Tensor) -> Tensor:
    small = F.interpolate(images, (10, 10), mode="area")
    return F.interpolate(small, images.shape[-2:], mode="bilinear")


# -- pairs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", list(Split))
def test_all_seeds_of_a_pair_are_of_its_split_and_differ(split: Split) -> None:
    identity, style = split.seeds[3], split.seeds[-1]
    seeds = list(_other_seeds(identity, style, 300))
    assert {split_of(seed) for seed in seeds} == {split}
    assert len({*seeds, identity, style}) == len(seeds) + 2 >= 302
    assert seeds == list(_other_seeds(identity, style, 300))


def test_a_pair_of_two_splits_is_refused() -> None:
    with pytest.raises(InputError, match="two splits"):
        make_pair(FIRST, Split.TEST.seeds.start)


def test_a_pair_holds_what_it_says(pair: Pair) -> None:
    assert len(pair.source) == len(pair.reference) == 5
    in_training_poses = pair.truth[-len(pair.training) :]
    assert len(in_training_poses) == len(pair.training) == 10
    for true, shown in zip(in_training_poses, pair.training, strict=True):
        assert abs(true.landmarks[:2].mean(0) - shown.landmarks[:2].mean(0)).max() < 3
    outside = ~((masks(pair.reference) + masks(in_training_poses[5:])) > 0)
    ears_and_neck = 0.06  # the neck takes the person's skin tone
    same = (pictures(pair.reference) - pictures(in_training_poses[5:])).abs() < 1e-3
    assert (same | ~outside).float().mean() > 1 - ears_and_neck


def test_references_have_exact_masks_and_landmarks(pair: Pair) -> None:
    found = references(pair.source)
    assert torch.equal(torch.stack(found.images), pictures(pair.source))
    faces = [photo.face_mask for photo in found if photo.face_mask is not None]
    assert torch.equal(torch.stack(faces), masks(pair.source))


def test_edits_ask_for_what_the_pair_lacks_in_words_that_captions_use() -> None:
    words = set(vocabulary())
    for seed in range(FIRST, FIRST + 200):
        identity, style = identity_from_seed(seed), style_from_seed(seed)
        found = edits(identity, style)
        assert list(found) == ["face", "scene", "expression"]
        for edit in found.values():
            assert set(edit.words.split()) <= words
            assert ATTRIBUTES[edit.attribute][edit.index] == edit.value
            said = {one.slot: one.word for one in read(f"a photo of a person, {edit.words}")}
            assert said[edit.attribute] == edit.value
        assert found["face"] != found["expression"]
        of_person = {"glasses": identity.glasses, "beard": identity.beard, "mood": None}
        for kind in ("face", "expression"):
            assert of_person[found[kind].attribute] in ("none", None)
        have = {"background": style.background, "background colour": style.background_name}
        assert have[found["scene"].attribute] != found["scene"].value
        assert style.medium not in COLOURLESS or found["scene"].attribute == "background"


def test_every_kind_of_edit_has_its_metrics() -> None:
    assert {f"obeys_{kind}{how}" for kind in KINDS for how in ("", "_in_words")} == {
        name for name in METRICS if name.startswith("obeys")
    }


# -- what compares pixels ---------------------------------------------------------------------


def test_distance_and_copies_need_no_trained_network(pair: Pair) -> None:
    judge = untrained()
    case = Case(
        torch.ones(3, 128),
        torch.ones(3, 96),
        *(
            F.interpolate(x, (32, 32), mode="area")
            for x in (pictures(pair.truth), masks(pair.truth))
        ),
        F.interpolate(pictures(pair.training), (32, 32), mode="area"),
        torch.full((10,), 0.01),
        0.0,
        0.0,
        "pale",
    )
    exact = judge.scores(pictures(pair.truth[:4]), case)
    assert exact["distance"] == exact["face_distance"] == exact["scene_distance"] == 0
    assert exact["copies"] == 0
    lighter = judge.scores((pictures(pair.truth[:4]) * 0.9 + 0.1), case)
    expected = (0.1 * (1 - pictures(pair.truth[:4]))).mean()
    assert lighter["distance"] == pytest.approx(float(expected), abs=2e-3)
    trained_on = judge.scores(pictures(pair.training[3:7]), case)
    assert trained_on["copies"] == 1
    assert judge.scores(pictures(pair.training[3:7]).flip(-1), case)["copies"] == 1


# -- with the shipped networks ----------------------------------------------------------------


def test_true_compositions_score_high(ceiling: dict[str, float]) -> None:
    assert ceiling["identity"] > 0.85 and ceiling["style"] > 0.9 and ceiling["both"] > 0.85
    assert ceiling["faces"] == 1 and ceiling["collapse"] < 0.1 and ceiling["copies"] == 0
    assert json.loads(json.dumps(ceiling)) == ceiling


def test_another_person_lowers_identity_alone(
    judge: Judge, pair: Pair, case: Case, ceiling: dict[str, float]
) -> None:
    swapped = judge.scores(pictures(pair.others_in_style[:16]), case)
    assert swapped["identity"] < ceiling["identity"] - 0.5
    assert swapped["style"] > 0.9 * ceiling["style"]
    assert swapped["face_distance"] > ceiling["face_distance"]
    assert swapped["identity_missing"] > 0.8 and swapped["style_missing"] < 0.1


def test_another_style_lowers_style_alone(
    judge: Judge, pair: Pair, case: Case, ceiling: dict[str, float]
) -> None:
    swapped = judge.scores(pictures(pair.source), case)
    assert swapped["style"] < ceiling["style"] - 0.5
    assert swapped["identity"] > 0.9 * ceiling["identity"]
    assert swapped["scene_distance"] > 2 * ceiling["scene_distance"]
    assert swapped["style_missing"] >= 0.6 and swapped["identity_missing"] < 0.2


def test_hard_photos_leave_the_measure_as_it_was(judge: Judge, pair: Pair, case: Case) -> None:
    found = judge.case(make_pair(FIRST + 7, FIRST + 40, hard="all"))
    assert torch.equal(found.source, case.source) and torch.equal(found.truth, case.truth)
    assert found.identity_floor == case.identity_floor
    assert not torch.equal(found.training[:5], case.training[:5])


def test_blur_lowers_both(judge: Judge, pair: Pair, case: Case, ceiling: dict[str, float]) -> None:
    soft = judge.scores(blurred(pictures(pair.unseen)), case)
    assert soft["identity"] < ceiling["identity"] - 0.1
    assert soft["style"] < ceiling["style"] - 0.1
    assert soft["distance"] > ceiling["distance"]


def test_training_pictures_are_told_as_copies(judge: Judge, pair: Pair, case: Case) -> None:
    assert judge.scores(pictures(pair.training), case)["copies"] == 1
    assert judge.scores(pictures(pair.unseen), case)["copies"] == 0


def test_the_probe_reads_edits_and_the_judge_their_cost(
    judge: Judge, pair: Pair, case: Case, ceiling: dict[str, float]
) -> None:
    asked = edits(pair.identity, pair.style)
    assert [edit.value for edit in asked.values()] == ["round", "red", "smiling"]
    unasked = dict.fromkeys(asked, pictures(pair.unseen))
    before = judge.edited(unasked, asked, case)
    assert before["obeys_face"] < 0.1 and before["obeys_scene"] < 0.3
    assert before["identity_edited"] == pytest.approx(ceiling["identity"])
    assert before["style_edited"] == pytest.approx(ceiling["style"])
    glasses = replace(pair.identity, glasses="round", glasses_colour=(0.1, 0.1, 0.1))
    red = replace(pair.style, background="plain", background_colour=(0.8, 0.16, 0.18))
    poses = [pose_from_seed(FIRST + i) for i in range(8)]
    shown = {
        "face": [render(glasses, pair.style, pose) for pose in poses],
        "scene": [render(pair.identity, red, pose) for pose in poses],
        "expression": [render(pair.identity, pair.style, replace(p, smile=0.8)) for p in poses],
    }
    after = judge.edited({kind: pictures(dolls) for kind, dolls in shown.items()}, asked, case)
    assert after["obeys_face"] > 0.7 and after["obeys_scene"] > 0.7
    assert after["obeys_expression"] == 1 > before["obeys_expression"]
    assert after["identity_edited"] > 0.9 * ceiling["identity"]
    assert after["style_edited"] > 0.9 * ceiling["style"]


@pytest.mark.parametrize("mood", ["smiling", "calm"])
def test_the_untrained_model_obeys_expressions(judge: Judge, mood: str) -> None:
    settings = replace(SAMPLING, steps=8, edit=mood)
    prompts = ["a photo of a person"] * 4
    images = sample(load_backbone(model_folder()), prompts, None, settings, seed=3)
    assert judge.obedience(images, Edit(mood, "mood", mood)) >= 0.5
