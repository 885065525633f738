"""Restoring the faces of a picture: how many, how strongly, and under which mask."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from magicapture.errors import InputError
from magicapture.faces.align import FFHQ_TEMPLATE
from magicapture.faces.protocols import Face, Part
from magicapture.refine.models import FaceRestorer
from magicapture.refine.restore import RestoreSettings, restore_faces


def face(side: float, x: float, y: float) -> Face:
    """A face whose aligned head is `side` pixels wide, with its corner at (x, y)."""
    corner = torch.tensor([x, y])
    return Face(
        torch.cat([corner, corner + side]), FFHQ_TEMPLATE * (side / 512) + corner, score=0.9
    )


def darker(faces: Tensor) -> Tensor:
    """A restorer whose effect is seen at every pixel."""
    return 0.5 * faces


def skin_everywhere(heads: Tensor) -> Tensor:
    return torch.full((len(heads), *heads.shape[-2:]), int(Part.SKIN))


def test_every_face_is_restored_and_nothing_else() -> None:
    image = torch.rand(3, 300, 400) / 2 + 0.5
    faces = [face(100, 20 + 130 * i, 30 + 120 * j) for i in range(3) for j in range(2)]
    seen: list[tuple[int, int]] = []
    restored = restore_faces(image, faces, darker, progress=lambda *at: seen.append(at))
    assert len(restored.faces) == 6 and seen[-1] == (6, 6) and not restored.parsed
    middle = torch.stack([f.landmarks.mean(dim=0).round().long() for f in faces])
    x, y = middle.unbind(-1)
    assert float(restored.mask[0, y, x].min()) > 0.95
    assert float(restored.image[:, y, x].max()) < 0.6
    outside = restored.mask[0] == 0
    assert 0.3 < float(outside.float().mean()) < 0.9
    assert torch.equal(restored.image[:, outside], image[:, outside])


def test_a_parser_draws_the_mask() -> None:
    image = torch.rand(3, 300, 300)
    drawn, parsed = (
        restore_faces(image, [face(200, 40, 40)], darker, parser)
        for parser in (None, skin_everywhere)
    )
    assert parsed.parsed and parsed.mask.sum() > 2 * drawn.mask.sum()


def test_where_the_parser_sees_nothing_the_mask_is_drawn() -> None:
    image, faces = torch.rand(3, 300, 300), [face(200, 40, 40)]
    blind = restore_faces(image, faces, darker, lambda heads: 0 * skin_everywhere(heads))
    assert not blind.parsed
    assert torch.equal(blind.mask, restore_faces(image, faces, darker).mask)


@pytest.mark.parametrize("strength", [0.0, 0.25])
def test_strength_is_a_blend(strength) -> None:
    image, faces = torch.rand(3, 200, 200), [face(150, 20, 20)]
    whole = restore_faces(image, faces, darker).image
    part = restore_faces(image, faces, darker, settings=RestoreSettings(strength)).image
    torch.testing.assert_close(part, torch.lerp(image, whole, strength))


def test_no_face_leaves_the_picture() -> None:
    image = torch.rand(3, 50, 60)
    restored = restore_faces(image, [], darker)
    assert torch.equal(restored.image, image) and not restored.mask.any()


def test_progress_may_stop_between_faces() -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore_faces(torch.rand(3, 99, 99), [face(50, 9, 9)] * 3, darker, progress=stop)


def test_a_real_network_on_a_real_face(small_gfpgan, photo) -> None:
    image, found = photo
    restored = restore_faces(image, [found], FaceRestorer(small_gfpgan))
    assert restored.image.isfinite().all() and (restored.image != image).any()
    assert restored.faces[0].before.shape == restored.faces[0].after.shape == (3, 512, 512)
    outside = restored.mask[0] == 0
    assert torch.equal(restored.image[:, outside], image[:, outside])
    x, y = found.landmarks.round().long().unbind(-1)
    assert float(restored.mask[0, y, x].min()) > 0.9


@pytest.mark.parametrize("change", [{"strength": 1.2}, {"strength": -0.1}, {"feather": 100}])
def test_settings_out_of_range_are_refused(change) -> None:
    with pytest.raises(InputError):
        RestoreSettings(**change)
