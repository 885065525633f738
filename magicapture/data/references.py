"""The photos of one concept, with what is known about each."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import Role
from ..errors import InputError
from .masks import face_mask, face_to_concept


@dataclass(frozen=True, eq=False)
class ReferenceSet:
    """The photos of a subject or of a style; a field left empty is unknown for every photo.

    images: (3,H,W) float32 RGB in 0..1, of any sizes.
    masks: (1,H,W) in 0..1 or None; 1 = inside the concept (`masks.face_to_concept`).
    landmarks: (5,2) in pixels (x, y), pixel centres at integers, or None: the eye on the left of
        the picture, the eye on the right, the nose, the mouth's left and right corner.
    captions: the prompt of a photo in the user's own words, or None.
    names: how messages call the photos.
    role: what the masks are of.
    warnings: what was noticed while loading.

    Raises InputError where counts or shapes do not fit; `check_references` looks at the contents.
    """

    images: tuple[Tensor, ...]
    masks: tuple[Tensor | None, ...] = ()
    landmarks: tuple[Tensor | None, ...] = ()
    captions: tuple[str | None, ...] = ()
    names: tuple[str, ...] = ()
    role: Role = "subject"
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.images)
        numbered = tuple(f"image {i + 1}" for i in range(count))
        none = (None,) * count
        defaults = {"masks": none, "landmarks": none, "captions": none, "names": numbered}
        for field, default in defaults.items():
            given = tuple(getattr(self, field)) or default
            if len(given) != count:
                raise InputError(
                    f"There are {len(given)} {field} for {count} photos; give one a photo, or none."
                )
            object.__setattr__(self, field, given)
        object.__setattr__(self, "images", tuple(self.images))
        for i, name in enumerate(self.names):
            _require_shape(self.images[i], (3, None, None), f"{name}: the picture")
            if (mask := self.masks[i]) is not None:
                _require_shape(mask, (1, None, None), f"{name}: the mask")
            if (points := self.landmarks[i]) is not None:
                _require_shape(points, (5, 2), f"{name}: the face's landmarks")

    def __len__(self) -> int:
        return len(self.images)

    def face(self, index: int) -> Tensor | None:
        """The mask (1,H,W) of the face in one photo, whatever the role; None without a mask."""
        mask = self.masks[index]
        return None if mask is None else face_mask(mask, self.role)

    def only(self, indices: Sequence[int]) -> ReferenceSet:
        """Some of the photos, with all that is known about them, in the order given."""
        fields = ("images", "masks", "landmarks", "captions", "names")
        some: dict[str, Any] = {
            name: tuple(getattr(self, name)[i] for i in indices) for name in fields
        }
        return dataclasses.replace(self, **some)

    def with_role(self, role: Role) -> ReferenceSet:
        """The same photos as those of a subject or of a style, their masks turned to match."""
        faces = (self.face(i) for i in range(len(self)))
        masks = tuple(None if face is None else face_to_concept(face, role) for face in faces)
        return dataclasses.replace(self, masks=masks, role=role)


def fingerprint(references: ReferenceSet) -> str:
    """A sha256 (hex) of role, pixels, masks, landmarks and captions; names do not count."""
    digest = hashlib.sha256(references.role.encode())
    for i, caption in enumerate(references.captions):
        for tensor in (references.images[i], references.masks[i], references.landmarks[i]):
            digest.update(tensor_digest(tensor))
        digest.update(hashlib.sha256(repr(caption).encode()).digest())
    return digest.hexdigest()


def tensor_digest(tensor: Tensor | None) -> bytes:
    """A sha256 of a tensor's shape and float32 values; of nothing for None."""
    if tensor is None:
        return hashlib.sha256(b"none").digest()
    values = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
    digest = hashlib.sha256(repr(values.shape).encode())
    digest.update(values)
    return digest.digest()


def _require_shape(tensor: Tensor, expected: Sequence[int | None], what: str) -> None:
    fits = tensor.ndim == len(expected) and all(
        want in (None, have) for want, have in zip(expected, tensor.shape, strict=True)
    )
    if not (fits and tensor.is_floating_point()):
        shape = ",".join("HW"[i - 1] if n is None else str(n) for i, n in enumerate(expected))
        raise InputError(
            f"{what} is {tensor.dtype} of shape {tuple(tensor.shape)}; expected floats of shape "
            f"({shape})."
        )
