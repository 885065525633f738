"""The part of a picture that shows its style: all that is not face."""

from __future__ import annotations

from torch import Tensor


def without_faces(images: Tensor, faces: Tensor, fill: float = 0.5) -> Tensor:
    """Images (B,3,H,W) in 0..1 with their faces (B,1,H,W; 1 = face) filled with one grey.

    For embedders that take whole pictures, such as CLIP's image encoder, so that likeness of
    style does not count likeness of faces (P, "Evaluation").
    """
    return images * (1 - faces) + fill * faces
