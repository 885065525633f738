"""The renderer's ground truth agrees with its pixels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from magicapture.paperdoll import (
    FACE_LABELS,
    Label,
    Pose,
    identity_from_seed,
    pose_from_seed,
    render,
    style_from_seed,
)
from magicapture.paperdoll.drawing.traits import HAIRS, MEDIA

SEEDS = range(40)


def _doll(seed: int, **style: object):
    chosen = replace(style_from_seed(seed), **style)
    return render(identity_from_seed(seed), chosen, pose_from_seed(seed))


def _widened(mask: np.ndarray, by: int = 1) -> np.ndarray:
    padded = np.pad(mask, by)
    size = 2 * by + 1
    return np.lib.stride_tricks.sliding_window_view(padded, (size, size)).max((-1, -2))


def test_a_doll_is_a_picture_with_its_truth() -> None:
    for size in (64, 128, 200):
        doll = render(identity_from_seed(1), style_from_seed(2), pose_from_seed(3), size)
        assert doll.image.shape == (3, size, size) and doll.image.dtype == np.float32
        assert doll.mask.shape == (1, size, size) and doll.mask.dtype == np.float32
        assert doll.labels.shape == (size, size) and doll.labels.dtype == np.uint8
        assert doll.landmarks.shape == (5, 2) and doll.landmarks.dtype == np.float32
        assert doll.image.min() >= 0 and doll.image.max() <= 1
        assert doll.mask.min() >= 0 and doll.mask.max() <= 1


def test_same_seed_same_picture() -> None:
    for seed in SEEDS:
        a, b = _doll(seed), _doll(seed)
        assert np.array_equal(a.image, b.image) and np.array_equal(a.labels, b.labels)
    assert not np.array_equal(_doll(0).image, _doll(1).image)


def test_mask_is_where_the_face_labels_are() -> None:
    for seed in SEEDS:
        doll = _doll(seed)
        labelled = np.isin(doll.labels, list(FACE_LABELS))
        mask = doll.mask[0]
        inner = ~_widened(~labelled)
        assert mask[inner].min() > 0.45  # thin seams between two parts may be half covered
        assert (mask[inner] > 0.95).mean() > 0.99
        assert mask[~_widened(labelled)].max() < 0.55
        assert abs(mask.sum() / labelled.sum() - 1) < 0.03
        assert 0.1 < mask.mean() < 0.4


def test_identity_changes_nothing_outside_the_face() -> None:
    for seed in SEEDS:
        style, pose = replace(style_from_seed(seed), medium="photo"), pose_from_seed(seed)
        one = identity_from_seed(seed)
        other = replace(identity_from_seed(seed + 500), tone=one.tone, undertone=one.undertone)
        a, b = render(one, style, pose), render(other, style, pose)
        elsewhere = (a.mask[0] == 0) & (b.mask[0] == 0)
        assert elsewhere.mean() > 0.4
        assert np.abs(a.image - b.image)[:, elsewhere].max() < 1e-5


def test_skin_outside_the_face_is_the_neck_alone() -> None:
    for seed in SEEDS:
        style = replace(style_from_seed(seed), medium="photo", clothes="shirt")
        pose, one = pose_from_seed(seed), identity_from_seed(seed)
        a = render(one, style, pose)
        b = render(replace(one, tone=1 - one.tone), style, pose)
        changed = (np.abs(a.image - b.image).max(0) > 0.02) & (a.mask[0] == 0)
        assert not (changed & ~_widened(a.labels == Label.NECK, 2)).any()


def test_style_changes_nothing_inside_the_face() -> None:
    for seed in SEEDS:
        identity, pose = identity_from_seed(seed), pose_from_seed(seed)
        a = render(identity, replace(style_from_seed(seed), medium="photo"), pose)
        b = render(identity, replace(style_from_seed(seed + 500), medium="photo"), pose)
        both = (a.mask[0] == 1) & (b.mask[0] == 1)
        assert both.mean() > 0.1
        assert np.abs(a.image - b.image)[:, both].max() < 1e-6


def test_media_change_colours_only() -> None:
    dolls = [_doll(7, medium=medium) for medium in MEDIA]
    for doll in dolls[1:]:
        assert np.array_equal(doll.labels, dolls[0].labels)
        assert np.array_equal(doll.mask, dolls[0].mask)
        assert np.abs(doll.image - dolls[0].image).mean() > 0.02


def test_landmarks_lie_on_their_parts() -> None:
    for seed in SEEDS:
        identity = replace(identity_from_seed(seed), glasses="none", beard="none")
        doll = render(identity, replace(style_from_seed(seed), hair="bald"), pose_from_seed(seed))
        left, right, nose, *corners = doll.landmarks
        for point, label in ((left, Label.LEFT_EYE), (right, Label.RIGHT_EYE)):
            parts = np.argwhere(doll.labels == label)[:, ::-1]
            assert np.abs(parts.mean(0) - point).max() < 2.0
        x, y = np.rint(nose).astype(int)
        assert doll.labels[y, x] == Label.NOSE
        mouth = np.isin(doll.labels, (Label.MOUTH, Label.UPPER_LIP, Label.LOWER_LIP))
        ends = np.argwhere(mouth.any(0))[[0, -1], 0]
        for corner, end in zip(corners, ends, strict=True):
            assert abs(corner[0] - end) < 4.0
            rows = np.argwhere(mouth[:, end])[:, 0]
            assert rows.min() - 4 < corner[1] < rows.max() + 4


def test_parts_appear_when_they_are_there_only() -> None:
    seed = 11
    for glasses in ("none", "round", "square"):
        identity = replace(identity_from_seed(seed), glasses=glasses)
        labels = render(identity, style_from_seed(seed)).labels
        assert (labels == Label.GLASSES).any() == (glasses != "none")
    for beard in ("none", "stubble", "moustache", "goatee", "beard"):
        identity = replace(identity_from_seed(seed), beard=beard)
        labels = render(identity, style_from_seed(seed)).labels
        assert (labels == Label.BEARD).any() == (beard not in ("none", "stubble"))
    for hair in HAIRS:
        labels = _doll(seed, hair=hair).labels
        assert (labels == Label.HAIR).any() == (hair != "bald")
        assert (labels == Label.HAT).any() == (hair == "beanie")


def test_the_face_fills_half_the_width() -> None:
    widths = []
    for seed in SEEDS:
        skin = np.argwhere(render(identity_from_seed(seed), style_from_seed(seed)).mask[0].max(0))
        widths.append((skin[-1, 0] - skin[0, 0] + 1) / 128)
    assert 0.45 < np.mean(widths) < 0.65


def test_pose_moves_the_truth_with_the_picture() -> None:
    identity, style = identity_from_seed(5), style_from_seed(5)
    still = render(identity, style, Pose())
    moved = render(identity, style, Pose(shift=(8 / 64, -4 / 64)))
    assert np.allclose(moved.landmarks - still.landmarks, (8, -4), atol=1e-3)
    assert np.allclose(moved.mask[0, :100, 16:], still.mask[0, 4:104, 8:-8], atol=1e-3)


def test_sizes_agree() -> None:
    one = identity_from_seed(3), style_from_seed(3), pose_from_seed(3)
    small, large = render(*one, size=64), render(*one, size=256)
    shrunk = large.mask.reshape(1, 64, 4, 64, 4).mean((2, 4))
    assert np.abs(shrunk - small.mask).mean() < 0.01
    assert np.allclose((large.landmarks + 0.5) / 4 - 0.5, small.landmarks, atol=1e-3)


def test_an_unknown_medium_is_named() -> None:
    with pytest.raises(ValueError, match="oil"):
        _doll(1, medium="oil")
