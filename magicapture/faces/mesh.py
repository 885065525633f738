"""MediaPipe's mesh of a face, and the five landmarks in it.

Points are told by their number in MediaPipe's canonical face model, whose connections name them:
FACEMESH_RIGHT_EYE runs from 33 to 133, FACEMESH_LEFT_EYE from 362 to 263, FACEMESH_LIPS from 61 to
291; of FACEMESH_NOSE 4 stands out the most. Right and left are the person's, so that the right eye
is on the left of the picture.
"""

from __future__ import annotations

from torch import Tensor

from ..errors import InputError

SIZES = (468, 478)
"""Points of a mesh; the ten more are the irises."""

_POINTS = ((33, 133), (362, 263), (4,), (61,), (291,))
"""For each landmark the points whose middle it is; an eye's are its corners, which do not move
with the gaze."""


def five_points(mesh: Tensor) -> Tensor:
    """The landmarks (5,2) of a mesh (468,2) or (478,2), in the order of `Face.landmarks`.

    Raises InputError for another shape, and for numbers that are not finite.
    """
    if mesh.ndim != 2 or mesh.shape[0] not in SIZES or mesh.shape[1] != 2:
        raise InputError(
            f"A face's mesh is of shape {tuple(mesh.shape)}; expected MediaPipe's, (478,2) or "
            "(468,2)."
        )
    if not mesh.isfinite().all():
        raise InputError("A face's mesh has NaN or infinite numbers; find the face anew.")
    return mesh.new_tensor([mesh[list(at)].mean(dim=0).tolist() for at in _POINTS])
