"""Five landmarks from MediaPipe's mesh, whose points are known by their numbers."""

from __future__ import annotations

import pytest
import torch

from magicapture.errors import InputError
from magicapture.faces.align import ARCFACE_TEMPLATE, similarity, transform
from magicapture.faces.mesh import SIZES, five_points

# x and y of some points in MediaPipe's canonical_face_model.obj, in centimetres; y points up.
CANONICAL = {
    33: (-4.445859, 2.663991),
    133: (-1.856432, 2.585245),
    362: (1.856432, 2.585245),
    263: (4.445859, 2.663991),
    4: (0.0, -0.463170),
    61: (-2.456206, -4.342621),
    291: (2.456206, -4.342621),
}


def canonical(size):
    """A mesh (size,2) in pixels with these points of the canonical face, the rest far away."""
    mesh = torch.full((size, 2), 1e4)
    for at, (x, y) in CANONICAL.items():
        mesh[at] = torch.tensor([100 + 10 * x, 100 - 10 * y])
    return mesh


@pytest.mark.parametrize("size", SIZES)
def test_the_canonical_face_lies_on_the_five_points_that_faces_are_aligned_to(size):
    points = five_points(canonical(size))
    assert points.shape == (5, 2)
    left, right, nose, mouth_left, mouth_right = points.tolist()
    assert left == pytest.approx([68.48855, 73.75382], abs=1e-3)
    assert right == pytest.approx([131.51145, 73.75382], abs=1e-3)
    assert nose == pytest.approx([100, 104.6317], abs=1e-3)
    assert mouth_left[0] < nose[0] < mouth_right[0] and mouth_left[1] == mouth_right[1]
    aligned = transform(similarity(points[None]), points[None])[0]
    apart = (aligned - ARCFACE_TEMPLATE).norm(dim=-1)
    assert float(apart.max()) < 5  # of 112 pixels; in another order some 30


@pytest.mark.parametrize("shape", [(5, 2), (478, 3), (2, 478), (477, 2)])
def test_another_shape_is_refused(shape):
    with pytest.raises(InputError, match="face's mesh is of shape"):
        five_points(torch.zeros(shape))


def test_numbers_that_are_not_finite_are_refused():
    with pytest.raises(InputError, match="NaN"):
        five_points(torch.full((478, 2), torch.nan))
