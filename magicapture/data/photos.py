"""A photo and what is known about it, and the photos of one concept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .masks import fit


@dataclass(frozen=True, eq=False)
class Photo:
    """One photo, of a person or of a style.

    image: (3,H,W) float32 RGB in 0..1.
    face_mask: (1,H,W) in 0..1, 1 on the face (for a style as well), or None where it is unknown;
        one of another size and the same shape is brought to the photo's here.
    landmarks: (5,2) in pixels (x, y), pixel centres at integers, or None: the eye on the left of
        the picture, the eye on the right, the nose, the mouth's left and right corner.
    caption: the photo in the user's own words, or None.
    taught: (1,H,W) in 0..1, of a pseudo-label: where it may be taught; None is everywhere.
    name: how messages call it.

    Raises InputError for other shapes; `checks.check_photos` looks at the contents.
    """

    image: Tensor
    face_mask: Tensor | None = None
    landmarks: Tensor | None = None
    caption: str | None = None
    name: str = "photo"
    taught: Tensor | None = None

    def __post_init__(self) -> None:
        _require_shape(self.image, (3, None, None), f"{self.name}: the picture")
        for field in ("face_mask", "taught"):
            if (mask := getattr(self, field)) is not None:
                _require_shape(mask, (1, None, None), f"{self.name}: the mask")
                try:
                    object.__setattr__(self, field, fit(mask, self.size))
                except InputError as error:
                    raise InputError(f"{self.name}: {error}.") from error
        if self.landmarks is not None:
            _require_shape(self.landmarks, (5, 2), f"{self.name}: the face's landmarks")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.image.shape[-2], self.image.shape[-1]


@dataclass(frozen=True, eq=False)
class ReferenceSet:
    """The photos of one concept, with what was noticed while loading them."""

    photos: tuple[Photo, ...]
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, images: Iterable[Tensor], **known: Sequence[Any]) -> ReferenceSet:
        """Photos from lists with one entry each: `face_masks`, `landmarks`, `captions`, `names`.

        A list left out or empty is unknown for every photo. Raises InputError for another count.
        """
        photos = tuple(Photo(image, name=f"image {i + 1}") for i, image in enumerate(images))
        references = cls(photos)
        for what, values in known.items():
            references = references.known(what, values) if len(values) else references
        return references

    def known(self, what: str, values: Sequence[Any]) -> ReferenceSet:
        """The set with one of `of`'s lists taken over; raises InputError for another count."""
        if len(values) != len(self):
            one, more = _NOUNS[what]
            given = f"is {len(values)} {one}" if len(values) == 1 else f"are {len(values)} {more}"
            raise InputError(
                f"There {given} for {len(self)} photo{'s' * (len(self) != 1)}; give one for each "
                "photo, in the same order, or none."
            )
        pairs = zip(self.photos, values, strict=True)
        return replace(self, photos=tuple(replace(p, **{_FIELDS[what]: v}) for p, v in pairs))

    def __len__(self) -> int:
        return len(self.photos)

    def __iter__(self) -> Iterator[Photo]:
        return iter(self.photos)

    @property
    def images(self) -> tuple[Tensor, ...]:
        """The pictures (3,H,W)."""
        return tuple(photo.image for photo in self.photos)

    @property
    def names(self) -> tuple[str, ...]:
        """How messages call the photos."""
        return tuple(photo.name for photo in self.photos)

    def only(self, indices: Iterable[int]) -> ReferenceSet:
        """Some of the photos, in the order given."""
        return replace(self, photos=tuple(self.photos[i] for i in indices))


_FIELDS = {
    "face_masks": "face_mask",
    "landmarks": "landmarks",
    "captions": "caption",
    "names": "name",
}
_NOUNS = {
    "face_masks": ("face mask", "face masks"),
    "landmarks": ("set of landmarks", "sets of landmarks"),
    "captions": ("caption", "captions"),
    "names": ("name", "names"),
}


def fingerprint(photos: ReferenceSet) -> str:
    """A sha256 (hex) of pixels, masks, landmarks and captions; names do not count."""
    digest = hashlib.sha256()
    for photo in photos:
        for tensor in (photo.image, photo.face_mask, photo.landmarks):
            digest.update(tensor_digest(tensor))
        digest.update(hashlib.sha256(repr(photo.caption).encode()).digest())
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
