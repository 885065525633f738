"""Each measure against its formula, and drawn people against the truth."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from magicapture.data import ReferenceSet
from magicapture.errors import InputError
from magicapture.evaluation import (
    Evaluation,
    Given,
    Models,
    References,
    evaluate,
    load_aesthetic_head,
)
from magicapture.evaluation.seen import masked_out
from magicapture.evaluation.tone import band, lab, skin_tone
from magicapture.faces.analyzer import embed_faces
from magicapture.faces.masks import FaceMask, face_mask
from magicapture.faces.protocols import Part
from magicapture.metrics import bootstrap, bootstrap_pairs
from magicapture.paperdoll.pairs import Pair, pictures, references

Make = Callable[..., list[Given]]

PROMPT = "a photo of a woman with round glasses"


@pytest.fixture(scope="module")
def against(models: Models, pair: Pair) -> References:
    return References.of(references(pair.source), references(pair.reference), models, tones=True)


@pytest.fixture(scope="module")
def found(models: Models, pair: Pair, against: References, given: Make) -> Evaluation:
    """True compositions, other people in the style, and the person in other styles."""
    groups = {
        "true": given(pictures(pair.unseen[:6]), PROMPT),
        "strangers": given(pictures(pair.others_in_style[:6])),
        "elsewhere": given(pictures(pair.otherwise[:6])),
    }
    return evaluate(groups, against, models)


def column(found: Evaluation, name: str, group: int = 0) -> list[float | None]:
    return [line.values[name] for line in found.groups[group].lines]


def test_identity_is_the_persons_and_no_strangers(found: Evaluation) -> None:
    true, strangers, elsewhere = (group.mean("identity") for group in found.groups)
    assert true and strangers and elsewhere
    assert true.low > 0.8 and elsewhere.low > 0.7 and strangers.high < 0.6
    photos, portraits = (group.mean("identity") for group in found.real)
    assert photos and photos.mean == pytest.approx(1) and portraits and portraits.mean < 0.6


def test_identity_is_the_mean_cosine_over_the_photos_own(
    found: Evaluation, models: Models, pair: Pair
) -> None:
    """From the networks' own outputs, with loops."""
    embedder = models.analyzer.embedder
    assert embedder is not None and found.own is not None

    def vector(image: Tensor, points: Tensor) -> Tensor:
        return embed_faces(embedder, [image], [points])[0]

    own = [vector(p.image, p.landmarks) for p in references(pair.source) if p.landmarks is not None]
    cosines = [float(a @ b) for i, a in enumerate(own) for j, b in enumerate(own) if i != j]
    assert found.own[0] == pytest.approx(sum(cosines) / len(cosines), abs=1e-5)
    image = pictures(pair.unseen[:1])[0]
    (face,) = models.analyzer.detector(image)
    mean = sum(float(vector(image, face.landmarks) @ one) for one in own) / len(own)
    assert column(found, "csim")[0] == pytest.approx(mean, abs=1e-5)
    assert column(found, "identity")[0] == pytest.approx(mean / found.own[0], abs=1e-5)


def test_style_is_that_of_pictures_without_faces(
    found: Evaluation, models: Models, pair: Pair
) -> None:
    assert models.pictures is not None
    bare = []
    for doll in (*pair.reference, pair.unseen[0]):
        image = torch.from_numpy(doll.image)
        masks = [
            face_mask(image, f, models.analyzer.parser).mask
            for f in models.analyzer.detector(image)
        ]
        if doll is not pair.unseen[0]:
            masks.append(torch.from_numpy(doll.mask))  # the user's own is masked out as well
        bare.append(masked_out(image, masks))
    vectors = models.pictures.of_images(torch.stack(bare))
    wanted = (vectors[-1] @ vectors[:-1].T).mean()
    assert column(found, "style")[0] == pytest.approx(float(wanted), abs=1e-5)
    own = vectors[:-1] @ vectors[:-1].T
    alone = (own.sum() - own.trace()) / (len(own) * (len(own) - 1))
    assert found.style_own == pytest.approx(float(alone), abs=1e-5)
    styled = found.real[1].mean("style")
    assert styled and styled.mean == pytest.approx(float(alone), abs=1e-5)


def test_faces_get_the_colour_of_the_rest() -> None:
    image = torch.rand(3, 20, 20)
    mask = torch.zeros(1, 20, 20)
    mask[:, 5:15, 5:15] = 1
    bare = masked_out(image, [mask, mask * 0.5])
    rest = image[:, mask[0] == 0].mean(dim=1)
    torch.testing.assert_close(bare[:, 10, 10], rest)
    assert torch.equal(bare[:, 0], image[:, 0])
    other = torch.where(mask > 0, torch.rand(3, 20, 20), image)
    assert torch.equal(bare, masked_out(other, [mask]))
    grey = image.mean(0, keepdim=True).expand(3, -1, -1)
    torch.testing.assert_close(masked_out(grey, [mask])[0], masked_out(grey, [mask])[2])
    assert masked_out(image, []) is image
    assert masked_out(image, [torch.ones(1, 20, 20)]).isfinite().all()


def test_score_is_the_harmonic_mean_of_both_shares(found: Evaluation) -> None:
    assert found.style_own
    for line in found.groups[0].lines:
        identity, style = line.values["identity"], line.values["style"]
        assert identity is not None and style is not None
        a, b = (min(max(v, 0), 1) for v in (identity, style / found.style_own))
        assert line.values["score"] == pytest.approx(2 * a * b / (a + b), abs=1e-5)


def test_aesthetic_diversity_and_obedience_are_read_off_whole_pictures(
    found: Evaluation, models: Models, pair: Pair
) -> None:
    assert models.pictures is not None and models.texts is not None and models.aesthetic is not None
    whole = models.pictures.of_images(pictures(pair.unseen[:6]))
    torch.testing.assert_close(
        torch.tensor(column(found, "aesthetic")), whole @ models.aesthetic.weight + 5
    )
    text = models.texts.of_text(PROMPT)[0]
    torch.testing.assert_close(torch.tensor(column(found, "obedience")), whole @ text)
    assert "obedience" not in found.groups[1].lines[0].values  # it has no prompt
    pairs = [1 - float(whole[i] @ whole[j]) for i in range(6) for j in range(i)]
    diverse = found.groups[0].mean("diversity")
    assert diverse and diverse.mean == pytest.approx(sum(pairs) / len(pairs), abs=1e-5)


def test_copies_of_training_pictures_are_told_also_in_the_mirror(
    models: Models, pair: Pair, against: References, given: Make
) -> None:
    photo, portrait = pictures(pair.source)[0], pictures(pair.reference)[1]
    noisy = (photo + 0.01 * torch.randn(photo.shape)).clamp(0, 1)
    shown = [photo, portrait.flip(-1), noisy, *pictures(pair.unseen[:3])]
    found = evaluate({"": given(shown)}, against, models)
    assert column(found, "copies") == [1, 1, 1, 0, 0, 0]
    assert "a copy of a training picture" in found.groups[0].lines[0].notes
    assert "copies" not in found.real[0].lines[0].values


# -- intervals --------------------------------------------------------------------------------


def test_the_interval_of_pairs_is_that_of_drawing_items_anew() -> None:
    rng = np.random.default_rng(1)
    points = rng.normal(size=(60, 2)) * rng.gamma(1, size=(60, 1))
    far = np.linalg.norm(points[:, None] - points[None], axis=-1)
    found = bootstrap_pairs((far.sum(1) / 59).tolist())
    assert found.mean == pytest.approx(far.sum() / (60 * 59))
    drawn = []
    for _ in range(4000):
        at = rng.integers(60, size=60)
        own = at[:, None] == at[None]  # the same item twice is no pair
        drawn.append(far[np.ix_(at, at)][~own].mean())
    low, high = np.quantile(drawn, (0.025, 0.975))
    assert (found.low, found.high) == pytest.approx((low, high), rel=0.06)
    naive = bootstrap((far.sum(1) / 59).tolist())
    assert naive.high - naive.low < 0.6 * (high - low), "items alone would promise too much"


def test_intervals_are_scipys_and_need_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    stats = pytest.importorskip("scipy.stats")
    data = np.random.default_rng(0).gamma(2, size=40)
    found = bootstrap(data.tolist())
    theirs = stats.bootstrap((data,), np.mean, method="percentile", rng=1).confidence_interval
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), rel=0.02)
    monkeypatch.setattr("magicapture.metrics.intervals._TOGETHER", 400)
    assert bootstrap(data.tolist()) == pytest.approx(found)


# -- aesthetic heads --------------------------------------------------------------------------


def test_laions_heads_of_one_layer_and_of_five(tmp_path: Path) -> None:
    torch.manual_seed(0)
    one = nn.Linear(12, 1)
    five = nn.Sequential(
        *(nn.Linear(12, 10), nn.Dropout(0.2), nn.Linear(10, 9), nn.Dropout(0.2)),
        *(nn.Linear(9, 8), nn.Dropout(0.1), nn.Linear(8, 7), nn.Linear(7, 1)),
    ).eval()
    named = {f"layers.{name}": value for name, value in five.state_dict().items()}
    seen = F.normalize(torch.randn(5, 12), dim=-1)
    for name, network, weights in (
        ("one.pth", one, one.state_dict()),
        ("five.pth", five, named),
        ("five.safetensors", five, named),
    ):
        file = tmp_path / name
        if file.suffix == ".pth":
            torch.save(weights, file)
        else:
            save_file(weights, file)
        head = load_aesthetic_head(file)
        assert head.name == name
        torch.testing.assert_close(head(seen), network(seen)[:, 0])
    with pytest.raises(InputError, match="embeddings of 12 numbers, and this CLIP model's have 16"):
        head(torch.rand(1, 16))


@pytest.mark.parametrize(
    "weights",
    [
        {"weight": torch.rand(2, 12)},
        {"0.weight": torch.rand(4, 12), "1.weight": torch.rand(1, 5)},
        {"weight": torch.rand(1, 3, 3, 3)},
        {"weight": torch.rand(1, 12), "bias": torch.rand(2)},
        {"weight": torch.rand(1, 12), "running_mean": torch.rand(12)},
        {"bias": torch.rand(1)},
    ],
)
def test_what_is_no_head_is_refused(weights: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(weights, tmp_path / "head.safetensors")
    with pytest.raises(InputError, match="lead from a CLIP embedding to one number"):
        load_aesthetic_head(tmp_path / "head.safetensors")


# -- skin tone --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("colour", "wanted"),
    [
        ((255, 255, 255), (100, 0, 0)),
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
        ((119, 119, 119), (50.03, 0, 0)),
        ((4, 4, 4), (1.10, 0, 0)),
    ],
)
def test_lab_of_known_colours(colour: tuple[int, ...], wanted: tuple[float, float, float]) -> None:
    assert lab(torch.tensor(colour) / 255) == pytest.approx(wanted, abs=0.05)


def test_tone_is_the_angle_of_the_skins_colour(models: Models, pair: Pair) -> None:
    image = pictures(pair.source)[0].clone()
    (face,) = models.analyzer.detector(image)
    mask = face_mask(image, face, models.analyzer.parser)
    assert mask.parts is not None and (mask.parts == Part.SKIN).any()
    colour = torch.tensor([224, 172, 105]) / 255  # L* 73.5, b* 41.6
    even = colour[:, None, None].expand_as(image)
    light, _, yellow = lab(colour)
    for seen in (mask, FaceMask(mask.mask, False)):
        tone = skin_tone(even, face, seen)
        assert tone == pytest.approx(math.degrees(math.atan((light - 50) / yellow)), abs=0.3)
    assert skin_tone(even.mean(0, keepdim=True).expand_as(image), face, mask) is None
    names = [band(angle) for angle in (80, 50, 30, 20, 0, -60, -90)]
    assert names == ["very light", "light", "intermediate", "tan", "brown", "dark", "dark"]


def test_tones_are_read_where_asked_for(
    found: Evaluation, models: Models, pair: Pair, given: Make
) -> None:
    assert found.tone is not None and "tone" in found.columns
    for line in found.groups[2].lines:
        tone = line.values["tone"]
        if tone is not None:
            assert line.values["tone_shift"] == pytest.approx(tone - found.tone)
            assert line.band == band(tone)
    bands = found.bands()
    assert sum(len(group.lines) for group in bands) == sum(
        line.band is not None for group in found.groups for line in group.lines
    )
    assert all(group.mean("diversity") is None for group in bands)
    photos = references(pair.source)
    plain = evaluate(
        {"": given(pictures(pair.unseen[:1]))}, References.of(photos, None, models), models
    )
    assert "tone" not in plain.columns and not plain.bands()


def test_landmarks_of_ones_own_count(models: Models, pair: Pair) -> None:
    photos = references(pair.source)
    moved = ReferenceSet(
        tuple(replace(p, landmarks=p.landmarks + 3) for p in photos if p.landmarks is not None)
    )
    one, other = (References.of(p, None, models) for p in (photos, moved))
    assert one.person and other.person
    assert not torch.allclose(one.person.embeddings, other.person.embeddings)
